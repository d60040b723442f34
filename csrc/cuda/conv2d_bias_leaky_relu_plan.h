// How the image-edge convolution is cut into blocks, what of it does not fit, and what its kernel
// is told.
#pragma once

#include <algorithm>

#include "cuda/conv2d_bias_leaky_relu.h"
#include "cuda/tensor_core.h"

namespace fastgen::cuda {

inline constexpr int kEdgeThreads = 256;
inline constexpr int kEdgeWarps = kEdgeThreads / 32;
inline constexpr int kEdgeResident = 2;  // blocks on a multiprocessor

// What a warp computes: 32 by 32 results of the tensor cores. Multiply-adds read two operands from
// shared memory for each of theirs, so they take twice the rows to read each twice as rarely.
template <bool kTensorCore, bool kChannelsLast>
struct EdgeTileShape {
  static constexpr bool kIsChannelsLast = kChannelsLast;
  static constexpr int kRows = kTensorCore ? 4 : 8;  // of one thread, by 8 columns
  static constexpr int kPixels = kChannelsLast ? 8 * kRows : 32;
  static constexpr int kChannels = kChannelsLast ? 32 : 8 * kRows;
};

// A block computes tiles of tile_height x 2^log_tile_width pixels, one after the other, of
// chunk_channels channels. It reads a tile's patch of the input into shared memory.
struct EdgeConvPlan {
  int tile_pixels;  // fewer than the warps could take where a patch would not fit
  int log_tile_width, tile_height;
  int pitch;         // pixels from row to row of the patch in shared memory
  int patch_pixels;  // rows * width of the patch
  FastDivide by_patch_width, by_tiles_x, by_tiles_y;
  std::uint32_t tiles;
  int log_channel_warps;  // so many of a block's warps lie side by side in channels
  int chunk_channels, chunks;
  int taps, steps;   // four taps a step
  int weight_pitch;  // quads of one channel's weights
  int weight_bytes, patch_bytes, tap_bytes, shared_bytes;
  std::uint32_t blocks;  // per chunk
  const char* problem;   // or nullptr
};

struct EdgePlace {
  std::int64_t image;
  int y, x;  // of the first output pixel
};

template <typename Plan>
FASTGEN_HD EdgePlace place_of(const Plan& plan, std::uint32_t tile) {
  const std::uint32_t rest = plan.by_tiles_x.quotient(tile);
  const std::uint32_t image = plan.by_tiles_y.quotient(rest);
  return {image,
          static_cast<int>(rest - image * plan.by_tiles_y.divisor) * plan.tile_height,
          static_cast<int>(tile - rest * plan.by_tiles_x.divisor) << plan.log_tile_width};
}

// Whether every index within one image fits 32 bits.
inline bool edge_conv_fits(const ImageEdgeConvCall& call) {
  constexpr std::int64_t kLimit = std::int64_t{1} << 31;
  std::int64_t input = 0, weight = 0;
  const std::int64_t input_extents[] = {1, call.channels, call.height, call.width};
  const std::int64_t weight_extents[] = {call.filters, call.channels, call.kernel_h,
                                         call.kernel_w};
  for (int d = 0; d < 4; ++d) {
    if (call.input_strides[d] < 0 || call.weight_strides[d] < 0) return false;
    if (d > 0) input += (input_extents[d] - 1) * call.input_strides[d];
    weight += (weight_extents[d] - 1) * call.weight_strides[d];
  }
  const std::int64_t padded = (call.height + 2 * call.padding_h + call.stride_h) *
                              (call.width + 2 * call.padding_w + call.stride_w);
  return input < kLimit && weight < kLimit && padded < kLimit &&
         (call.out_height + 512) * (call.out_width + 512) * call.filters < kLimit;
}

// The shape of a tile of so many pixels: little waste at the borders of the result and a small
// patch. Leaves the problem in the plan where none fits.
template <typename T, bool kChannelsLast>
void choose_tile(const ImageEdgeConvCall& call, int pixels, std::int64_t fixed_bytes,
                 int shared_limit, EdgeConvPlan& plan) {
  constexpr int kQuad = 4 * sizeof(T);
  double best = 0;
  for (int log_width = 3; log_width <= 7 && (pixels >> log_width) >= 1; ++log_width) {
    const std::int64_t width = std::int64_t{1} << log_width, height = pixels >> log_width;
    const std::int64_t tiles_x = ceil_div(call.out_width, width);
    const std::int64_t tiles_y = ceil_div(call.out_height, height);
    const std::int64_t patch_h = (height - 1) * call.stride_h + call.kernel_h;
    const std::int64_t patch_w = (width - 1) * call.stride_w + call.kernel_w;
    // Half a line of banks further from row to row, so that taps of neighbouring rows do not meet.
    constexpr int kLine = 128 / kQuad;
    const std::int64_t pitch = (patch_w + kLine / 2 - 1) / kLine * kLine + kLine / 2;
    const std::int64_t shared = fixed_bytes + 2 * patch_h * pitch * kQuad;
    const std::int64_t tiles = tiles_x * tiles_y * call.batch;
    if (shared > shared_limit || tiles >= std::int64_t{1} << 31) continue;
    // In contiguous memory, the four runs that a warp stores of a row should lie side by side.
    const bool scattered = !kChannelsLast && width < 4 * kWideExtent<T> && width < call.out_width;
    // An output pixel costs some eight times what a pixel of the patch does.
    const double cost = static_cast<double>(tiles_x * tiles_y) * (scattered ? 1.25 : 1.0) *
                        static_cast<double>(8 * pixels + patch_h * patch_w);
    if (plan.problem == nullptr && cost > best) continue;
    best = cost;
    plan.problem = nullptr;
    plan.tile_pixels = pixels;
    plan.log_tile_width = log_width;
    plan.tile_height = static_cast<int>(height);
    plan.pitch = static_cast<int>(pitch);
    plan.patch_pixels = static_cast<int>(patch_h * patch_w);
    plan.by_patch_width = FastDivide(static_cast<std::uint32_t>(patch_w));
    plan.by_tiles_x = FastDivide(static_cast<std::uint32_t>(tiles_x));
    plan.by_tiles_y = FastDivide(static_cast<std::uint32_t>(tiles_y));
    plan.tiles = static_cast<std::uint32_t>(tiles);
    plan.patch_bytes = static_cast<int>(patch_h * pitch * kQuad);
    plan.shared_bytes = static_cast<int>(shared);
  }
}

template <typename T, bool kTensorCore, bool kChannelsLast>
EdgeConvPlan edge_conv_plan(const ImageEdgeConvCall& call, int multiprocessors,
                            int shared_limit) {
  using Shape = EdgeTileShape<kTensorCore, kChannelsLast>;
  constexpr int kQuad = 4 * sizeof(T);
  const auto aligned = [](int bytes) { return (bytes + 15) / 16 * 16; };
  EdgeConvPlan plan{};
  if (call.channels > 4 || call.channels < 1) {
    plan.problem = "image_edge_conv2d takes 1 to 4 input channels";
    return plan;
  }
  if (!edge_conv_fits(call)) {
    plan.problem = "an image of 2^31 or more elements, or a negative stride of memory";
    return plan;
  }

  // A second warp side by side halves the patches that are read; 64 channels a block are enough to
  // make them negligible.
  plan.log_channel_warps = call.filters > 32 && Shape::kChannels == 32 ? 1 : 0;
  plan.chunk_channels = Shape::kChannels << plan.log_channel_warps;
  plan.chunks = static_cast<int>(ceil_div(call.filters, plan.chunk_channels));
  plan.taps = static_cast<int>(call.kernel_h * call.kernel_w);
  plan.steps = (plan.taps + 3) / 4;
  // An odd number of steps lets the rows of eight lanes fall on different banks.
  plan.weight_pitch = 4 * (plan.steps | 1);
  const std::int64_t weight_quads =
      kTensorCore ? static_cast<std::int64_t>(plan.chunk_channels) * plan.weight_pitch
                  : static_cast<std::int64_t>(plan.taps) * call.channels * plan.chunk_channels / 4;
  plan.tap_bytes = aligned(4 * plan.steps * 4);
  const std::int64_t fixed_bytes =
      weight_quads * kQuad + plan.tap_bytes + plan.chunk_channels * 4;
  plan.problem = "a kernel or a stride too large for image_edge_conv2d";
  if (fixed_bytes > shared_limit) return plan;
  plan.weight_bytes = static_cast<int>(weight_quads * kQuad);

  // As many pixels as the warps can take, unless a large stride makes their patch too large.
  int pixels = (kEdgeWarps >> plan.log_channel_warps) * Shape::kPixels;
  for (; plan.problem != nullptr && pixels >= Shape::kPixels; pixels /= 2) {
    choose_tile<T, kChannelsLast>(call, pixels, fixed_bytes, shared_limit, plan);
  }
  if (plan.problem != nullptr) return plan;

  // As many blocks as run at once, so that each stages its weights once.
  const int resident = std::max(1, std::min(kEdgeResident, 200 * 1024 / plan.shared_bytes));
  const std::uint32_t at_once = static_cast<std::uint32_t>(
      std::max<std::int64_t>(1, ceil_div(multiprocessors * resident, plan.chunks)));
  plan.blocks = std::min(plan.tiles, at_once);
  return plan;
}

// What a kernel is told.
template <typename T, typename Plan = EdgeConvPlan>
struct EdgeConvArguments {
  const T* input;
  const T* weight;
  const T* bias;
  const T* output;
  T* result;
  std::int64_t image_stride;                     // from image to image of the input
  int channel_stride, row_stride, column_stride;  // within one
  int weight_strides[4];
  int channels, height, width, filters, kernel_w, out_height, out_width;
  int stride_h, stride_w, padding_h, padding_w;
  float slope;
  bool wide;  // every run of the result, and of output, is aligned to 16 bytes and whole
  Plan plan;
};

template <typename T, typename Plan>
EdgeConvArguments<T, Plan> edge_conv_arguments(const ImageEdgeConvCall& call, const Plan& plan) {
  const auto small = [](std::int64_t value) { return static_cast<int>(value); };
  EdgeConvArguments<T, Plan> a{};
  a.input = static_cast<const T*>(call.input);
  a.weight = static_cast<const T*>(call.weight);
  a.bias = static_cast<const T*>(call.bias);
  a.output = static_cast<const T*>(call.output);
  a.result = static_cast<T*>(call.result);
  a.image_stride = call.input_strides[0];
  a.channel_stride = small(call.input_strides[1]);
  a.row_stride = small(call.input_strides[2]);
  a.column_stride = small(call.input_strides[3]);
  for (int d = 0; d < 4; ++d) a.weight_strides[d] = small(call.weight_strides[d]);
  a.channels = small(call.channels), a.filters = small(call.filters);
  a.height = small(call.height), a.width = small(call.width);
  a.kernel_w = small(call.kernel_w);
  a.out_height = small(call.out_height), a.out_width = small(call.out_width);
  a.stride_h = small(call.stride_h), a.stride_w = small(call.stride_w);
  a.padding_h = small(call.padding_h), a.padding_w = small(call.padding_w);
  a.slope = call.slope;
  const std::int64_t contiguous = call.channels_last ? call.filters : call.out_width;
  a.wide = contiguous % kWideExtent<T> == 0 && is_aligned(call.result, 16) &&
           is_aligned(call.output, 16);
  a.plan = plan;
  return a;
}

// The parts of a block's shared memory.
template <typename T>
struct EdgeConvShared {
  Quad<T>* weights;
  Quad<T>* patches;  // two, one behind the other
  int* taps;
  float* bias;
};

template <typename T>
FASTGEN_HD EdgeConvShared<T> edge_conv_shared(unsigned char* memory, const EdgeConvPlan& plan) {
  unsigned char* patches = memory + plan.weight_bytes;
  unsigned char* taps = patches + 2 * plan.patch_bytes;
  return {reinterpret_cast<Quad<T>*>(memory),
          reinterpret_cast<Quad<T>*>(patches),
          reinterpret_cast<int*>(taps),
          reinterpret_cast<float*>(taps + plan.tap_bytes)};
}

}  // namespace fastgen::cuda
