// The weight gradient of an image-edge convolution: a matrix product of filters by (taps and
// channels of the picture), whose terms are the pixels of the whole batch.
//
// Bound. A pixel of the map costs K C R S multiply-adds and K elements of memory traffic, the
// picture C stride^2 / K of that. With 64 filters, 3 channels and 4x4 taps that is 48 multiply-adds
// an element, where a device of 132 multiprocessors has 27 of float32 before memory waits for
// arithmetic: so everything goes to the tensor cores, and the rest of the work is to keep reads of
// memory in flight.
//
// A warp adds up 32 filters by 8 * kTiles columns in registers, over 16 pixels a step. In memory
// the filters of a pixel are neighbours and the pixels of a filter are not, the reverse of what the
// product's rows want: 16-bit values are transposed on the way out of shared memory, and of float32
// values a register holds one anyway. The columns are gathered from the staged rows of the picture:
// each lane knows where its columns' taps lie within a window, and reads from a table where its
// pixels' windows begin.
#pragma once

#include "cuda/async_copy.h"
#include "cuda/conv2d_bias_leaky_relu_weight_plan.h"

namespace fastgen::cuda {

// ------------------------------------------------------------------------- who holds which element

struct WeightLane {
  int group, in_group;  // lane = 4 group + in_group
  int filter_warp, pixel_warp;

  FASTGEN_HD WeightLane(const EdgeWeightPlan& plan, int thread)
      : group(thread % 32 / 4),
        in_group(thread % 4),
        filter_warp(thread / 32 & ((1 << plan.log_filter_warps) - 1)),
        pixel_warp(thread / 32 >> plan.log_filter_warps) {}
};

// The filter, among the 32 of a warp, of row group + 8 half of its product `tile`. A lane's two
// float32 filters are neighbours.
template <typename T>
FASTGEN_HD int row_filter(int tile, int half, int group) {
  return 16 * tile + (sizeof(T) == 4 ? 2 * group + half : 8 * half + group);
}

// The pixel, among the 16 of a step, that is number i of the lane's four: TF32 takes two in each of
// two products, 16-bit types take two a word.
template <typename T>
FASTGEN_HD int column_pixel(int i, int in_group) {
  return sizeof(T) == 4 ? 4 * i + in_group : 8 * (i / 2) + 2 * in_group + i % 2;
}

// Which of a tile's steps is number s of a warp.
FASTGEN_HD int step_of(const EdgeWeightPlan& plan, const WeightLane& lane, int s) {
  return s * pixel_warps(plan) + lane.pixel_warp;
}

struct TileRun {
  std::uint32_t first, end;
};

// The tiles of a block: neighbours, as many as the others have or one less.
FASTGEN_HD TileRun run_of(const EdgeWeightPlan& plan, std::uint32_t block) {
  const std::uint32_t more = plan.blocks_with_more;
  const std::uint32_t first = block * plan.share + (block < more ? block : more);
  return {first, first + plan.share + (block < more ? 1 : 0)};
}

// ----------------------------------------------------------------------------------------- staging

struct WeightPlace {
  std::int64_t image;
  int y, x;    // of the first pixel
  int pixels;  // that are there, at most tile_width * tile_height
};

template <typename T>
FASTGEN_HD WeightPlace place_of(const EdgeWeightArguments<T>& a, std::uint32_t tile) {
  const EdgeWeightPlan& plan = a.plan;
  const std::uint32_t rest = plan.by_tiles_x.quotient(tile);
  const std::uint32_t image = plan.by_tiles_y.quotient(rest);
  WeightPlace place;
  place.image = image;
  place.y = static_cast<int>(rest - image * plan.by_tiles_y.divisor) * plan.tile_height;
  place.x = static_cast<int>(tile - rest * plan.by_tiles_x.divisor) * plan.tile_width;
  const int rows = a.map_height - place.y, columns = a.map_width - place.x;
  place.pixels = (rows < plan.tile_height ? rows : plan.tile_height) *
                 (columns < plan.tile_width ? columns : plan.tile_width);
  return place;
}

// Elements that the first window of a tile begins behind the first of the patch, so that pieces
// of a row of the picture stay aligned.
template <typename T>
FASTGEN_HD int patch_shift(const EdgeWeightArguments<T>& a, const WeightPlace& place) {
  // A piece is a power of two.
  return ((place.x * a.stride_w - a.padding_w) * a.channels) & (a.plan.patch_piece - 1);
}

// A tile's part of the map: chunk_filters of each pixel, zeros where there is no pixel or filter.
template <typename T>
FASTGEN_HD void stage_map(const EdgeWeightArguments<T>& a, const WeightPlace& place, int chunk,
                          int thread, unsigned char* stage) {
  constexpr int V = kWideExtent<T>;
  const EdgeWeightPlan& plan = a.plan;
  const int vector = thread & ((1 << plan.log_pixel_vectors) - 1);
  const int first = thread >> plan.log_pixel_vectors;
  const int turn = plan.threads >> plan.log_pixel_vectors;
  const int filter = chunk * plan.chunk_filters + vector * V;
  const std::int64_t pixels = (place.image * a.map_height + place.y) * a.map_width + place.x;
  const T* from = a.map + (pixels + first) * a.filters + filter;
  unsigned char* to = stage + first * plan.map_pitch + vector * 16;
  const int count = filter < a.filters ? place.pixels : 0;
  if (a.wide) {
    // Where nothing is there, `from` points to nowhere.
    FASTGEN_UNROLL_BY(4)
    for (int pixel = first; pixel < plan.tile_pixels; pixel += turn) {
      copy_async<16>(to, from, pixel < count);
      from += turn * a.filters;
      to += turn * plan.map_pitch;
    }
    return;
  }
  FASTGEN_UNROLL_BY(1)
  for (int pixel = first; pixel < plan.tile_pixels; pixel += turn) {
    FASTGEN_UNROLL
    for (int v = 0; v < V; ++v) {
      const bool there = pixel < count && filter + v < a.filters;
      reinterpret_cast<T*>(to)[v] = there ? from[v] : T{};
    }
    from += turn * a.filters;
    to += turn * plan.map_pitch;
  }
}

// The rows of the picture that a tile looks at, channels of a pixel side by side, zeros around it.
template <typename T, int kBytes>
FASTGEN_HD void stage_patch_pieces(const EdgeWeightArguments<T>& a, const WeightPlace& place,
                                   int thread, T* patch) {
  constexpr int kPiece = kBytes / static_cast<int>(sizeof(T));
  const EdgeWeightPlan& plan = a.plan;
  const int pieces = static_cast<int>(plan.by_patch_pieces.divisor);
  const int first_y = place.y * a.stride_h - a.padding_h;
  const int first_x = (place.x * a.stride_w - a.padding_w) * a.channels - patch_shift(a, place);
  const T* image = a.picture + place.image * a.image_stride;
  FASTGEN_UNROLL_BY(1)
  for (int i = thread; i < plan.patch_rows * pieces; i += plan.threads) {
    const int row = static_cast<int>(plan.by_patch_pieces.quotient(i));
    const int y = first_y + row, x = first_x + (i - row * pieces) * kPiece;
    const bool there = y >= 0 && y < a.height && x >= 0 && x < a.width * a.channels;
    copy_async<kBytes>(patch + i * kPiece, image + (y * a.row_stride + x), there);
  }
}

// The same for any strides of the picture: each thread takes single elements.
template <typename T>
FASTGEN_HD void stage_patch_elements(const EdgeWeightArguments<T>& a, const WeightPlace& place,
                                     int thread, T* patch) {
  const EdgeWeightPlan& plan = a.plan;
  const int pitch = plan.patch_pitch;
  const T* image = a.picture + place.image * a.image_stride;
  FASTGEN_UNROLL_BY(2)
  for (int i = thread; i < plan.patch_rows * pitch; i += plan.threads) {
    const int row = static_cast<int>(plan.by_patch_pieces.quotient(i));
    const int in_row = i - row * pitch;
    const int pixel = a.channels == 1 ? in_row : a.channels == 2 ? in_row / 2
                      : a.channels == 3 ? in_row / 3 : in_row / 4;
    const int y = place.y * a.stride_h - a.padding_h + row;
    const int x = place.x * a.stride_w - a.padding_w + pixel;
    const bool there = y >= 0 && y < a.height && x >= 0 && x < a.width;
    patch[i] = there ? image[y * a.row_stride + x * a.column_stride +
                             (in_row - pixel * a.channels) * a.channel_stride]
                     : T{};
  }
}

// Where the first window of a staged tile begins.
template <typename T>
FASTGEN_HD const unsigned char* first_window(const EdgeWeightArguments<T>& a,
                                             const WeightPlace& place,
                                             const unsigned char* stage) {
  return stage + a.plan.map_bytes + patch_shift(a, place) * static_cast<int>(sizeof(T));
}

// Of a patch that a thread's own copies have filled in, what that thread has copied. Rounded here,
// no value is rounded again for each tap and each warp.
template <typename T>
FASTGEN_HD void round_patch(const EdgeWeightPlan& plan, int thread, unsigned char* stage) {
  if constexpr (sizeof(T) == 4) {
    float* patch = reinterpret_cast<float*>(stage + plan.map_bytes);
    const int piece = plan.patch_piece, count = plan.patch_rows * plan.patch_pitch;
    FASTGEN_UNROLL_BY(1)
    for (int i = thread * piece; i < count; i += plan.threads * piece) {
      if (piece == 4) {
        const Quad<float> quad = round_quad(load_quad<float>(patch + i));
        store_shared(reinterpret_cast<std::uint32_t*>(patch + i), quad.words);
        continue;
      }
      for (int v = 0; v < piece; ++v) patch[i + v] = round_to_tf32(patch[i + v]);
    }
  }
}

template <typename T>
FASTGEN_HD void stage_tile(const EdgeWeightArguments<T>& a, std::uint32_t tile, int chunk,
                           int thread, unsigned char* stage) {
  const WeightPlace place = place_of(a, tile);
  stage_map(a, place, chunk, thread, stage);
  T* patch = reinterpret_cast<T*>(stage + a.plan.map_bytes);
  switch (a.plan.patch_piece * static_cast<int>(sizeof(T))) {
    case 16:
      return stage_patch_pieces<T, 16>(a, place, thread, patch);
    case 8:
      return stage_patch_pieces<T, 8>(a, place, thread, patch);
    case 4:
      if (sizeof(T) < 4) return stage_patch_pieces<T, 4>(a, place, thread, patch);
  }
  stage_patch_elements(a, place, thread, patch);
}

// How many bytes the window of each pixel of a tile begins behind the first one's: for each step
// and each lane of a group four entries, in the order of column_pixel(). The pixels that only fill
// up a tile have zeros of the map; so that 0 * infinity spoils no tap, they look at the first
// window.
template <typename T>
FASTGEN_HD void fill_windows(const EdgeWeightArguments<T>& a, int thread, int* windows) {
  const EdgeWeightPlan& plan = a.plan;
  FASTGEN_UNROLL_BY(1)
  for (int i = thread; i < plan.tile_pixels; i += plan.threads) {
    const int pixel = (i & ~15) + column_pixel<T>(i & 3, i >> 2 & 3);
    const int y = static_cast<int>(plan.by_tile_width.quotient(pixel));
    const int x = pixel - y * plan.tile_width;
    windows[i] = y < plan.tile_height
                     ? (y * a.stride_h * plan.patch_pitch + x * a.stride_w * a.channels) *
                           static_cast<int>(sizeof(T))
                     : 0;
  }
}

// How many bytes the taps of a lane's columns lie behind the begin of a window.
template <typename T, int kTiles>
FASTGEN_HD void find_taps(const EdgeWeightArguments<T>& a, const WeightLane& lane, int column_chunk,
                          int (&taps)[kTiles]) {
  FASTGEN_UNROLL
  for (int j = 0; j < kTiles; ++j) {
    const int column = (column_chunk * kTiles + j) * 8 + lane.group;
    const int row = static_cast<int>(a.plan.by_kernel_row.quotient(column));
    const int in_row = column - row * static_cast<int>(a.plan.by_kernel_row.divisor);
    const int tap = column < a.plan.columns ? row * a.plan.patch_pitch + in_row : 0;
    taps[j] = tap * static_cast<int>(sizeof(T));
  }
}

// -------------------------------------------------------------------------------------- arithmetic

// The windows of the lane's four pixels of a step.
template <typename T>
FASTGEN_HD void load_windows(const WeightPlace& place, const WeightLane& lane, const int* table,
                             int step, int full, int (&windows)[4]) {
  const Quad<float> four = load_quad<float>(table + step * kStepPixels + 4 * lane.in_group);
  FASTGEN_UNROLL
  for (int i = 0; i < 4; ++i) windows[i] = static_cast<int>(four.words[i]);
  if (place.pixels == full) return;
  FASTGEN_UNROLL
  for (int i = 0; i < 4; ++i) {
    const int pixel = step * kStepPixels + column_pixel<T>(i, lane.in_group);
    if (pixel >= place.pixels) windows[i] = 0;
  }
}

#if !defined(__CUDA_ARCH__)
// What ldmatrix.x4.trans gives a lane: of four matrices of 8 rows and 8 columns of 16 bits, whose
// rows begin at the addresses that the lanes give, rows 2 t and 2 t + 1 of column g.
template <typename Address>
Rows transposed_words(const Address& address, int group, int in_group) {
  Rows rows;
  for (int m = 0; m < 4; ++m) {
    std::uint16_t halves[2];
    for (int h = 0; h < 2; ++h) {
      std::memcpy(&halves[h], address(8 * m + 2 * in_group + h) + 2 * group, 2);
    }
    rows.words[m] = halves[0] | static_cast<std::uint32_t>(halves[1]) << 16;
  }
  return rows;
}
#endif

// The rows that a lane brings into part `part` of a step: filters of the map.
template <typename T>
FASTGEN_HD void load_rows(const EdgeWeightPlan& plan, const WeightLane& lane,
                          const unsigned char* map, int step, int part, Rows (&rows)[2]) {
  if constexpr (sizeof(T) == 4) {
    const int pixel = step * kStepPixels + 8 * part + lane.in_group;
    const unsigned char* at =
        map + pixel * plan.map_pitch + (lane.filter_warp * kWarpFilters + 2 * lane.group) * 4;
    FASTGEN_UNROLL
    for (int i = 0; i < 2; ++i) {
      FASTGEN_UNROLL
      for (int later = 0; later < 2; ++later) {
        const auto two = load_pack<float, 2>(
            reinterpret_cast<const float*>(at + 4 * later * plan.map_pitch + 16 * i * 4));
        rows[i].words[2 * later] = bits_of(round_to_tf32(two.values[0]));
        rows[i].words[2 * later + 1] = bits_of(round_to_tf32(two.values[1]));
      }
    }
  } else {
    FASTGEN_UNROLL
    for (int i = 0; i < 2; ++i) {
      const auto address = [&](int from) {
        const int pixel = step * kStepPixels + from / 16 * 8 + from % 8;
        const int filter = lane.filter_warp * kWarpFilters + 16 * i + from / 8 % 2 * 8;
        return map + pixel * plan.map_pitch + filter * 2;
      };
#if defined(__CUDA_ARCH__)
      const std::uint32_t from = static_cast<std::uint32_t>(
          __cvta_generic_to_shared(address(4 * lane.group + lane.in_group)));
      asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                   : "=r"(rows[i].words[0]), "=r"(rows[i].words[1]), "=r"(rows[i].words[2]),
                     "=r"(rows[i].words[3])
                   : "r"(from)
                   : "memory");
#else
      rows[i] = transposed_words(address, lane.group, lane.in_group);
#endif
    }
  }
}

// The columns that a lane brings into part `part` of a step: the picture, rounded already, at its
// taps.
template <typename T, int kTiles>
FASTGEN_HD void load_columns(const unsigned char* patch, const int (&windows)[4],
                             const int (&taps)[kTiles], int part, Columns (&columns)[kTiles]) {
  const auto at = [&](int j, int i) {
    return *reinterpret_cast<const T*>(patch + (taps[j] + windows[i]));
  };
  FASTGEN_UNROLL
  for (int j = 0; j < kTiles; ++j) {
    FASTGEN_UNROLL
    for (int w = 0; w < 2; ++w) {
      if constexpr (sizeof(T) == 4) {
        columns[j].words[w] = bits_of(at(j, 2 * part + w));
      } else {
        columns[j].words[w] =
            at(j, 2 * w).bits | static_cast<std::uint32_t>(at(j, 2 * w + 1).bits) << 16;
      }
    }
  }
}

// --------------------------------------------------------------------- adding up what warps have

// Number i of product (tile, j) of a lane is number i of quad ((filter_warp * 2 + tile) * kTiles +
// j) * 32 + lane, of each warp of pixels: what is neighbours for the lanes is so in memory.
template <int kTiles>
FASTGEN_HD void leave_sums(const EdgeWeightPlan& plan, const WeightLane& lane,
                           const float (&sums)[2][kTiles][4], float* shared) {
  const int quads = block_quads(plan);
  FASTGEN_UNROLL
  for (int tile = 0; tile < 2; ++tile) {
    FASTGEN_UNROLL
    for (int j = 0; j < kTiles; ++j) {
      const int quad = ((lane.filter_warp * 2 + tile) * kTiles + j) * 32 + 4 * lane.group +
                       lane.in_group;
      store_shared(shared + 4 * (lane.pixel_warp * quads + quad), sums[tile][j]);
    }
  }
}

// The sum over the warps of pixels, into the block's place in the workspace.
template <typename T>
FASTGEN_HD void write_partial(const EdgeWeightArguments<T>& a, std::uint32_t block, int chunk,
                              int column_chunk, int thread, const float* shared) {
  const EdgeWeightPlan& plan = a.plan;
  const int quads = block_quads(plan), warps = pixel_warps(plan);
  const std::int64_t place =
      (std::int64_t{column_chunk} * plan.filter_chunks + chunk) * plan.blocks + block;
  for (int quad = thread; quad < quads; quad += plan.threads) {
    float sum[4] = {};
    for (int warp = 0; warp < warps; ++warp) {
      const Quad<float> part = load_quad<float>(shared + 4 * (warp * quads + quad));
      FASTGEN_UNROLL
      for (int i = 0; i < 4; ++i) sum[i] += quad_value(part, i);
    }
    store_pack<float, 4>(a.partials + 4 * (place * quads + quad), sum);
  }
}

// ------------------------------------------------------------------------------ the second kernel

// A block of the second kernel adds up 8 quads: each thread one of every 64 partials, so that they
// are all on their way at once.
inline constexpr int kWeightSumThreads = 512;
inline constexpr int kSummedQuads = 8;
inline constexpr int kSummedColumns = 4 * kSummedQuads;
inline constexpr int kSummedRows = kWeightSumThreads / kSummedQuads;
inline constexpr int kSummedAtOnce = 4;
inline constexpr int kFoldedRows = 8;
inline constexpr int kFoldingThreads = kSummedColumns * kSummedRows / kFoldedRows;

// shared: kSummedRows rows of kSummedColumns floats.
template <typename T>
FASTGEN_HD void sum_rows(const EdgeWeightArguments<T>& a, int group, int chunk, int column_chunk,
                         int thread, float* shared) {
  const EdgeWeightPlan& plan = a.plan;
  const int quads = block_quads(plan), quad = group * kSummedQuads + thread % kSummedQuads;
  const int blocks = static_cast<int>(plan.blocks);
  const std::int64_t place =
      (std::int64_t{column_chunk} * plan.filter_chunks + chunk) * plan.blocks;
  const float* first = a.partials + 4 * (place * quads + quad);
  float sum[4] = {};
  FASTGEN_UNROLL_BY(1)
  for (int turn = thread / kSummedQuads; turn < blocks; turn += kSummedAtOnce * kSummedRows) {
    Pack<float, 4> parts[kSummedAtOnce];
    FASTGEN_UNROLL
    for (int p = 0; p < kSummedAtOnce; ++p) {
      // Loads that depend on a condition would wait for each other.
      const int block = turn + p * kSummedRows < blocks ? turn + p * kSummedRows : blocks - 1;
      parts[p] = load_pack<float, 4>(first + std::int64_t{4} * block * quads);
    }
    FASTGEN_UNROLL
    for (int p = 0; p < kSummedAtOnce; ++p) {
      const bool there = turn + p * kSummedRows < blocks;
      FASTGEN_UNROLL
      for (int i = 0; i < 4; ++i) sum[i] += there ? parts[p].values[i] : 0.0f;
    }
  }
  store_shared(shared + 4 * thread, sum);
}

// Behind a barrier, kFoldingThreads threads: the sum of every eight rows into the first of them.
FASTGEN_HD void fold_rows(int thread, float* shared) {
  float* column =
      shared + thread / kSummedColumns * kFoldedRows * kSummedColumns + thread % kSummedColumns;
  float sum = column[0];
  FASTGEN_UNROLL
  for (int row = 1; row < kFoldedRows; ++row) sum += column[row * kSummedColumns];
  column[0] = sum;
}

// Behind another, kSummedColumns threads: an element of the weight each.
template <typename T>
FASTGEN_HD void write_element(const EdgeWeightArguments<T>& a, int group, int chunk,
                              int column_chunk, int thread, const float* shared) {
  const EdgeWeightPlan& plan = a.plan;
  const int number = group * kSummedColumns + thread;
  const int i = number % 4, lane = number / 4 % 32, product = number / 128;
  const int j = product % plan.column_tiles, tile = product / plan.column_tiles;
  const int filter = chunk * plan.chunk_filters + tile / 2 * kWarpFilters +
                     row_filter<T>(tile % 2, i / 2, lane / 4);
  const int column = (column_chunk * plan.column_tiles + j) * 8 + lane % 4 * 2 + i % 2;
  float sum = 0.0f;
  FASTGEN_UNROLL
  for (int row = 0; row < kSummedRows; row += kFoldedRows) {
    sum += shared[row * kSummedColumns + thread];
  }
  if (filter >= a.filters || column >= plan.columns) return;
  const int r = static_cast<int>(plan.by_kernel_row.quotient(column));
  const int in_row = column - r * static_cast<int>(plan.by_kernel_row.divisor);
  const int s = in_row / a.channels, c = in_row - s * a.channels;
  a.result[filter * a.result_strides[0] + c * a.result_strides[1] + r * a.result_strides[2] +
           s * a.result_strides[3]] = from_float<T>(sum);
}

}  // namespace fastgen::cuda
