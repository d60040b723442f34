// How the image-edge weight gradient is cut into blocks, what of it does not fit, and what its
// kernels are told.
#pragma once

#include <algorithm>

#include "cuda/conv2d_bias_leaky_relu_weight.h"
#include "cuda/tensor_core.h"

namespace fastgen::cuda {

inline constexpr int kMostWeightThreads = 512;  // on a multiprocessor: 128 registers each
inline constexpr int kStepPixels = 16;      // the terms of one product
inline constexpr int kWarpFilters = 32;     // rows of a warp's product
inline constexpr int kMostColumnTiles = 6;  // of 8 columns, each a tap and a channel
inline constexpr int kWeightThreads = 256;  // of a block
inline constexpr int kWeightResident = 2;   // blocks on a multiprocessor
inline constexpr int kMostStages = 6;       // see wait_for_async_groups()
inline constexpr int kMostTilePixels = 256;

// A block goes over tiles of the map, one after the other, and adds up the products of
// chunk_filters filters with 8 * column_tiles columns. A tile is some whole rows of one image, or,
// where rows are long, a piece of one: so its pixels are neighbours in memory. Its part of the map
// and the patch of the picture that it looks at wait in one of several stages of shared memory.
struct EdgeWeightPlan {
  int tile_width, tile_height;
  int tile_pixels;  // with what fills up the last step
  int steps;        // of each warp, in a tile
  int threads;
  int resident;          // blocks on a multiprocessor
  int log_filter_warps;  // so many of a block's warps lie side by side in filters
  int chunk_filters, filter_chunks;
  int columns;  // kernel_h * kernel_w * channels
  int column_tiles, column_chunks;
  int stages;
  int log_pixel_vectors;  // 16-byte pieces of one pixel's filters
  int map_pitch;          // bytes from pixel to pixel in shared memory
  int patch_rows, patch_pitch;  // elements from row to row
  int patch_piece;  // elements that one copy takes of a row of the picture; 1: one at a time
  FastDivide by_tiles_x, by_tiles_y, by_patch_pieces, by_kernel_row, by_tile_width;
  FastDivide by_filter_chunks;
  std::uint32_t tiles;
  int map_bytes, stage_bytes, table_bytes, shared_bytes;
  std::uint32_t blocks;  // per chunk of filters and of columns
  std::uint32_t share, blocks_with_more;  // tiles of a block; so many have one more
  const char* problem;   // or nullptr
};

// So many of a block's warps have the same filters and different pixels.
FASTGEN_HD int pixel_warps(const EdgeWeightPlan& plan) {
  return plan.threads / 32 >> plan.log_filter_warps;
}

// Quads of four floats that the sums of one block take.
FASTGEN_HD int block_quads(const EdgeWeightPlan& plan) {
  return (2 << plan.log_filter_warps) * plan.column_tiles * 32;
}

inline std::int64_t partial_floats(const EdgeWeightPlan& plan) {
  return std::int64_t{4} * block_quads(plan) * plan.blocks * plan.filter_chunks *
         plan.column_chunks;
}

// How many elements of a row of the picture one copy can take: rows lie one pixel after the other,
// and no piece reaches over the end of one.
template <typename T>
int picture_piece(const ImageEdgeWeightCall& call) {
  const std::int64_t* strides = call.picture_strides;
  const bool runs = strides[3] == call.channels && (call.channels == 1 || strides[1] == 1);
  if (!runs) return 1;
  for (int bytes = 16; bytes > static_cast<int>(sizeof(T)) && bytes >= 4; bytes /= 2) {
    const std::int64_t piece = bytes / static_cast<int>(sizeof(T));
    if (call.width * call.channels % piece == 0 && strides[2] % piece == 0 &&
        strides[0] % piece == 0 && is_aligned(call.picture, static_cast<std::size_t>(bytes))) {
      return static_cast<int>(piece);
    }
  }
  return 1;
}

// Whether every index within one image fits 32 bits.
inline bool edge_weight_fits(const ImageEdgeWeightCall& call) {
  constexpr std::int64_t kLimit = std::int64_t{1} << 31;
  std::int64_t picture = 0;
  const std::int64_t extents[] = {1, call.channels, call.height, call.width};
  for (int d = 0; d < 4; ++d) {
    if (call.picture_strides[d] < 0) return false;
    if (d > 0) picture += (extents[d] - 1) * call.picture_strides[d];
  }
  const std::int64_t padded = (call.height + 2 * call.padding_h + call.stride_h) *
                              (call.width + 2 * call.padding_w + call.stride_w) * call.channels;
  return picture < kLimit && padded < kLimit &&
         (call.map_height + 1) * (call.map_width + kMostTilePixels) * call.filters < kLimit;
}

// Tiles of so many pixels a row and rows, if they are the best so far: little that is copied and
// multiplied for nothing, and every block with as much to do.
template <typename T>
void try_tile(const ImageEdgeWeightCall& call, int pixels, std::int64_t width, std::int64_t height,
              std::int64_t at_once, int shared_limit, double& best, EdgeWeightPlan& plan) {
  constexpr int kRun = kWideExtent<T>;
  const std::int64_t tiles_x = ceil_div(call.map_width, width);
  const std::int64_t tiles_y = ceil_div(call.map_height, height);
  const std::int64_t tiles = tiles_x * tiles_y * call.batch;
  const std::int64_t rows = (height - 1) * call.stride_h + call.kernel_h;
  const std::int64_t row =
      ((width - 1) * call.stride_w + call.kernel_w) * call.channels + plan.patch_piece - 1;
  const std::int64_t pitch = ceil_div(row, kRun) * kRun;
  const std::int64_t map_bytes = std::int64_t{pixels} * plan.map_pitch;
  const std::int64_t stage_bytes = map_bytes + rows * pitch * static_cast<int>(sizeof(T));
  const std::int64_t table_bytes = std::int64_t{pixels} * 4;
  const std::int64_t rounds = ceil_div(tiles, at_once);
  const std::int64_t stages =
      std::min({std::int64_t{kMostStages}, (shared_limit - table_bytes) / stage_bytes,
                std::max<std::int64_t>(2, rounds + 1)});
  // Behind the last tile, the stages hold the sums that each warp has of all its pixels.
  const std::int64_t sums = std::int64_t{16} * block_quads(plan) * pixel_warps(plan);
  const std::int64_t shared = std::max(stages * stage_bytes, sums) + table_bytes;
  if (stages < 2 || shared > shared_limit || tiles >= std::int64_t{1} << 31) return;
  // The last tile's products overlap with no copies; a tile costs a barrier besides, about what
  // copies 3 KiB; and two stages leave little in flight.
  const double cost = static_cast<double>(rounds + 1) * static_cast<double>(stage_bytes + 3072) *
                      (stages < 3 && rounds > 1 ? 1.25 : 1.0);
  if (plan.problem == nullptr && cost >= best) return;
  best = cost;
  plan.problem = nullptr;
  plan.tile_width = static_cast<int>(width);
  plan.tile_height = static_cast<int>(height);
  plan.tile_pixels = pixels;
  plan.steps = pixels / (kStepPixels * pixel_warps(plan));
  plan.stages = static_cast<int>(stages);
  plan.patch_rows = static_cast<int>(rows);
  plan.patch_pitch = static_cast<int>(pitch);
  plan.by_tiles_x = FastDivide(static_cast<std::uint32_t>(tiles_x));
  plan.by_tiles_y = FastDivide(static_cast<std::uint32_t>(tiles_y));
  plan.by_patch_pieces = FastDivide(static_cast<std::uint32_t>(pitch / plan.patch_piece));
  plan.by_tile_width = FastDivide(static_cast<std::uint32_t>(width));
  plan.tiles = static_cast<std::uint32_t>(tiles);
  plan.map_bytes = static_cast<int>(map_bytes);
  plan.stage_bytes = static_cast<int>(stage_bytes);
  plan.table_bytes = static_cast<int>(table_bytes);
  plan.shared_bytes = static_cast<int>(shared);
  // As few blocks as need no more turns: each leaves a partial sum.
  plan.blocks = static_cast<std::uint32_t>(
      std::max<std::int64_t>(1, ceil_div(tiles, std::max<std::int64_t>(1, rounds))));
  plan.share = plan.tiles / plan.blocks;
  plan.blocks_with_more = plan.tiles % plan.blocks;
}

template <typename T>
void choose_tile(const ImageEdgeWeightCall& call, int multiprocessors, int shared_limit,
                 int threads, int resident, EdgeWeightPlan& plan) {
  plan.threads = threads, plan.resident = resident;
  const std::int64_t at_once = std::max<std::int64_t>(
      1, std::int64_t{multiprocessors} * resident / (plan.filter_chunks * plan.column_chunks));
  const int limit = (shared_limit + 1024) / resident - 1024;  // a block takes 1 KiB for itself
  const int turn = kStepPixels * pixel_warps(plan);
  double best = 0;
  for (int pixels = turn; pixels <= kMostTilePixels; pixels += turn) {
    if (call.map_width <= pixels) {
      const std::int64_t rows = std::min(pixels / call.map_width, call.map_height);
      try_tile<T>(call, pixels, call.map_width, rows, at_once, limit, best, plan);
      try_tile<T>(call, pixels, call.map_width, (rows + 1) / 2, at_once, limit, best, plan);
    }
    for (int parts = 1; parts <= 4; parts *= 2) {
      const std::int64_t width = ceil_div(call.map_width, ceil_div(call.map_width, pixels) * parts);
      try_tile<T>(call, pixels, width, 1, at_once, limit, best, plan);
    }
  }
}

// threads: of a block, 256 or 512. resident: blocks on a multiprocessor. Fewer of both where shared
// memory does not reach.
template <typename T>
EdgeWeightPlan edge_weight_plan(const ImageEdgeWeightCall& call, int multiprocessors,
                                int shared_limit, int threads, int resident) {
  EdgeWeightPlan plan{};
  if (call.channels > 4 || call.channels < 1) {
    plan.problem = "image_edge_conv2d_weight takes 1 to 4 channels of a picture";
    return plan;
  }
  if (!edge_weight_fits(call)) {
    plan.problem = "an image of 2^31 or more elements, or a negative stride of memory";
    return plan;
  }
  const int log_run = sizeof(T) == 4 ? 2 : 3;
  plan.log_filter_warps = call.filters > kWarpFilters ? 1 : 0;
  plan.chunk_filters = kWarpFilters << plan.log_filter_warps;
  plan.filter_chunks = static_cast<int>(ceil_div(call.filters, plan.chunk_filters));
  plan.log_pixel_vectors = 5 + plan.log_filter_warps - log_run;
  // So that the reads of a product fall on different banks: see load_rows().
  plan.map_pitch = plan.chunk_filters * static_cast<int>(sizeof(T)) + (sizeof(T) == 4 ? 32 : 16);
  plan.columns = static_cast<int>(call.kernel_h * call.kernel_w * call.channels);
  const int column_tiles = (plan.columns + 7) / 8;
  plan.column_chunks = (column_tiles + kMostColumnTiles - 1) / kMostColumnTiles;
  const int per_chunk = (column_tiles + plan.column_chunks - 1) / plan.column_chunks;
  plan.column_tiles = (per_chunk + 1) / 2 * 2;  // the kernel is made for 2, 4 and 6
  plan.by_filter_chunks = FastDivide(static_cast<std::uint32_t>(plan.filter_chunks));
  plan.by_kernel_row = FastDivide(static_cast<std::uint32_t>(call.kernel_w * call.channels));
  plan.patch_piece = picture_piece<T>(call);

  plan.problem = "a kernel or a stride too large for image_edge_conv2d_weight";
  choose_tile<T>(call, multiprocessors, shared_limit, threads, resident, plan);
  if (plan.problem != nullptr) choose_tile<T>(call, multiprocessors, shared_limit, 256, 1, plan);
  return plan;
}

// What the kernels are told.
template <typename T>
struct EdgeWeightArguments {
  const T* picture;
  const T* map;
  T* result;
  float* partials;  // [column chunk][filter chunk][block][quad]
  std::int64_t image_stride;                     // from image to image of the picture
  int channel_stride, row_stride, column_stride;  // within one
  std::int64_t result_strides[4];
  int channels, height, width, filters, kernel_w, map_height, map_width;
  int stride_h, stride_w, padding_h, padding_w;
  bool wide;  // 16 bytes of a pixel's filters can be copied at once
  EdgeWeightPlan plan;
};

template <typename T>
EdgeWeightArguments<T> edge_weight_arguments(const ImageEdgeWeightCall& call,
                                             const EdgeWeightPlan& plan) {
  const auto small = [](std::int64_t value) { return static_cast<int>(value); };
  EdgeWeightArguments<T> a{};
  a.picture = static_cast<const T*>(call.picture);
  a.map = static_cast<const T*>(call.map);
  a.result = static_cast<T*>(call.result);
  a.partials = call.partials;
  a.image_stride = call.picture_strides[0];
  a.channel_stride = small(call.picture_strides[1]);
  a.row_stride = small(call.picture_strides[2]);
  a.column_stride = small(call.picture_strides[3]);
  for (int d = 0; d < 4; ++d) a.result_strides[d] = call.result_strides[d];
  a.channels = small(call.channels), a.filters = small(call.filters);
  a.height = small(call.height), a.width = small(call.width);
  a.kernel_w = small(call.kernel_w);
  a.map_height = small(call.map_height), a.map_width = small(call.map_width);
  a.stride_h = small(call.stride_h), a.stride_w = small(call.stride_w);
  a.padding_h = small(call.padding_h), a.padding_w = small(call.padding_w);
  a.wide = call.filters % kWideExtent<T> == 0 && is_aligned(call.map, 16);
  a.plan = plan;
  return a;
}

}  // namespace fastgen::cuda
