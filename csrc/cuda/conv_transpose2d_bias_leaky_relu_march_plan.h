// Which image-edge transposed convolutions the march takes, how it is cut into blocks and what its
// kernel is told.
#pragma once

#include <algorithm>

#include "cuda/conv_transpose2d_bias_leaky_relu.h"
#include "cuda/tensor_core.h"

namespace fastgen::cuda {

inline constexpr int kMarchColumns = 32;  // input columns of a warp
inline constexpr int kMarchWarps = 4;     // of a block, at most
inline constexpr int kMarchHalo = 8;      // columns that two tiles side by side share on each side

// What the march of a stride is made of. With stride 2 each of the four lanes that share a pixel
// has one of the four phases of the output, for kHeld channels; with stride 1 each has one channel.
template <int kStride, int kHeld>
struct March {
  static constexpr int kTaps = kStride == 2 ? 2 : 3;       // input rows of an output row
  static constexpr int kTiles = kStride == 2 ? kHeld : 2;  // of 8 columns of the product
  static constexpr int kMoves = kStride == 2 ? kHeld : 2;  // sums a lane gives to its neighbour
  static constexpr int kWeightRows = kTaps * kTiles * 8;
};

// Of 64 bytes of each pixel, 16 for each of its four lanes.
inline constexpr int kPieceBytes = 64;

// Rows in flight or in use. A lane reads from shared memory what it copied there itself.
template <int kPieces>
inline constexpr int kMarchStages = kPieces <= 2 ? 4 : 3;

// Blocks on a multiprocessor: as many as the registers allow, which hold the weights.
template <int kPieces>
inline constexpr int kMarchResident = kPieces <= 2 ? 3 : 2;

// The bytes of a row of weights in shared memory; eight rows lie on different banks.
template <int kPieces>
inline constexpr int kWeightPitch = kPieces * kPieceBytes + 16;

struct MarchPlan {
  int warps;         // side by side in a tile of columns
  int tiles_held;    // by a block, each of an image, strip and place of its own
  int column_tiles;  // side by side
  int columns;       // of the output, in strides
  int first_group, end_group;  // row groups of the output, as in StripPlan
  int strip_groups, strips;    // row groups of a tile, tiles one below the other
  int staged_pitch;            // bytes of a row of the result in shared memory
  int ring_bytes, scratch_bytes, shared_bytes;
  std::int64_t tiles, blocks;
};

// Input column v + d, d = 0 or at most one to the side that the phase allows, must be all that
// output columns v stride, ..., v stride + stride - 1 need.
inline bool march_covers_columns(const ImageEdgeTransposeCall& call) {
  for (std::int64_t phase = 0; phase < call.stride_w; ++phase) {
    for (std::int64_t s = 0; s < call.kernel_w; ++s) {
      const std::int64_t distance = phase + call.padding_w - s;
      if (distance % call.stride_w != 0) continue;
      const std::int64_t d = distance / call.stride_w;
      const bool taken = call.stride_w == 1 ? d >= -1 && d <= 1 : d == 0 || d == (phase ? 1 : -1);
      if (!taken) return false;
    }
  }
  return true;
}

// Pieces of 64 bytes that a pixel is held in; 0: too many.
template <typename T>
int march_pieces(const ImageEdgeTransposeCall& call) {
  const std::int64_t bytes = call.channels * static_cast<std::int64_t>(sizeof(T));
  return bytes <= 2 * kPieceBytes ? 2 : (bytes <= 4 * kPieceBytes ? 4 : 0);
}

// Memory in channels_last whose pixels, and rows of the result, are whole packs of 16 bytes.
template <typename T>
bool march_takes(const ImageEdgeTransposeCall& call) {
  const std::int64_t stride = call.stride_h;
  return call.input_channels_last && call.channels_last && call.stride_w == stride &&
         (stride == 1 || (stride == 2 && call.out_channels <= 3)) &&
         call.kernel_h <= (stride == 2 ? 4 : 3) && march_covers_columns(call) &&
         march_pieces<T>(call) != 0 && call.channels % kWideExtent<T> == 0 &&
         call.out_width * call.out_channels % kWideExtent<T> == 0 && is_aligned(call.input, 16) &&
         is_aligned(call.result, 16);
}

// blocks == 0: it does not fit into shared memory.
template <typename T, int kPieces, int kStride, int kHeld>
MarchPlan march_plan(const ImageEdgeTransposeCall& call, int multiprocessors, int shared_limit) {
  using M = March<kStride, kHeld>;
  MarchPlan plan{};
  plan.columns = static_cast<int>(ceil_div(call.out_width, kStride));
  plan.first_group = static_cast<int>(call.padding_h / kStride);
  plan.end_group = static_cast<int>((call.out_height - 1 + call.padding_h) / kStride) + 1;
  // One pack apart, so that the two rows of a warp lie on different banks.
  plan.staged_pitch = static_cast<int>(kMarchColumns * kStride * call.out_channels *
                                       static_cast<std::int64_t>(sizeof(T))) + 16;

  // The width of a tile: as few idle warps as possible.
  const auto shared_bytes = [&](int warps) {
    plan.ring_bytes =
        warps * kMarchStages<kPieces> * kMarchColumns * kPieces * kPieceBytes;
    const int edges = 2 * kMarchWarps * 16 * 4;
    plan.scratch_bytes = std::max(M::kWeightRows * kWeightPitch<kPieces>,
                                  edges + kMarchWarps * kStride * plan.staged_pitch);
    return plan.shared_bytes = plan.ring_bytes + plan.scratch_bytes;
  };
  std::int64_t best = 0;
  for (int warps = 1; warps <= kMarchWarps; ++warps) {
    if (shared_bytes(warps) > shared_limit) break;
    const int span = warps * kMarchColumns, step = span - 2 * kMarchHalo;
    const std::int64_t tiles =
        plan.columns <= span ? 1 : ceil_div(plan.columns - span, step) + 1;
    if (best != 0 && tiles * warps > best) continue;
    best = tiles * warps;
    plan.warps = warps;
    plan.column_tiles = static_cast<int>(tiles);
  }
  if (best == 0) return plan;
  plan.tiles_held = kMarchWarps / plan.warps;
  while (shared_bytes(plan.tiles_held * plan.warps) > shared_limit) --plan.tiles_held;

  // The height of a strip: a tall one reads few rows twice; many share the multiprocessors evenly.
  // A block that is alone on one waits for memory. Each begins with its weights, which take the
  // time of two rows.
  const int groups = plan.end_group - plan.first_group;
  const std::int64_t resident = std::min<std::int64_t>(kMarchResident<kPieces>,
                                                       shared_limit / plan.shared_bytes);
  const auto time = [](std::int64_t blocks) {
    return static_cast<double>(blocks) * (blocks >= 3 ? 1.0 : (blocks == 2 ? 1.15 : 1.6));
  };
  double best_cost = 0;
  for (int strips = 1; strips <= groups; ++strips) {
    const int height = static_cast<int>(ceil_div(groups, strips));
    if (height == plan.strip_groups) continue;
    const std::int64_t tiles = call.batch * plan.column_tiles * ceil_div(groups, height);
    const std::int64_t share = ceil_div(ceil_div(tiles, plan.tiles_held), multiprocessors);
    const double cost =
        (static_cast<double>(share / resident) * time(resident) + time(share % resident)) *
        (height + M::kTaps + 1);
    if (best_cost != 0 && cost >= best_cost) continue;
    best_cost = cost;
    plan.strip_groups = height;
    plan.strips = static_cast<int>(ceil_div(groups, height));
  }
  plan.tiles = call.batch * plan.column_tiles * plan.strips;
  plan.blocks = ceil_div(plan.tiles, plan.tiles_held);
  if (plan.blocks >= std::int64_t{1} << 31) plan.blocks = 0;
  return plan;
}

// What a kernel is told.
template <typename T>
struct MarchArguments {
  const T* input;
  const T* weight;
  const T* bias;
  T* result;
  int weight_strides[4];
  int channels, height, width, out_channels, kernel_h, kernel_w;
  int out_height, out_width, padding_h, padding_w;
  float slope;
  bool tanh;
  MarchPlan plan;
};

template <typename T>
MarchArguments<T> march_arguments(const ImageEdgeTransposeCall& call, const MarchPlan& plan) {
  const auto small = [](std::int64_t value) { return static_cast<int>(value); };
  MarchArguments<T> a{};
  a.input = static_cast<const T*>(call.input);
  a.weight = static_cast<const T*>(call.weight);
  a.bias = static_cast<const T*>(call.bias);
  a.result = static_cast<T*>(call.result);
  for (int d = 0; d < 4; ++d) a.weight_strides[d] = small(call.weight_strides[d]);
  a.channels = small(call.channels), a.height = small(call.height), a.width = small(call.width);
  a.out_channels = small(call.out_channels);
  a.kernel_h = small(call.kernel_h), a.kernel_w = small(call.kernel_w);
  a.out_height = small(call.out_height), a.out_width = small(call.out_width);
  a.padding_h = small(call.padding_h), a.padding_w = small(call.padding_w);
  a.slope = call.slope, a.tanh = call.tanh;
  a.plan = plan;
  return a;
}

}  // namespace fastgen::cuda
