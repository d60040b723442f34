// Which image-edge convolutions the kernel of conv2d_bias_leaky_relu_rows.cu takes, and how it cuts
// them into blocks.
#pragma once

#include "cuda/conv2d_bias_leaky_relu_plan.h"

namespace fastgen::cuda {

inline constexpr int kRowsThreads = 256;
inline constexpr int kRowsWarps = kRowsThreads / 32;

// A unit is what a warp computes at a time: 8 pixels of a row, neighbours or every other one, by
// kGroup channels, of which a lane holds two pixels by a run of 16 bytes. Up to kMostUnits are a
// warp's share of a tile.
inline constexpr int kUnit = 8;
inline constexpr int kMostUnits = 4;
template <typename T>
inline constexpr int kGroup = 8 * kWideExtent<T>;
// Products of 16 channels that make up a group.
template <typename T>
inline constexpr int kMatrices = kGroup<T> / 16;
template <typename T>
inline constexpr int kPerWord = 4 / static_cast<int>(sizeof(T));

// The most pairs of a product's words that a lane has room for in its registers.
template <typename T>
inline constexpr int kMostSteps = sizeof(T) == 4 ? 6 : 4;

// Blocks on a multiprocessor: the weights of four steps of 64 channels leave registers for one.
template <typename T>
constexpr int rows_resident(int steps) {
  return steps * kMatrices<T> > 12 ? 1 : 2;
}

inline constexpr int kMostRowsStride = 16;  // more leaves nothing of a patch to share

// How the picture comes into shared memory. The first two read pieces of rows that lie there whole
// and aligned.
enum class RowsInput : int {
  dense,   // 16 bytes of a row; 16-bit values one place further where windows begin at odd ones
  padded,  // 4 pixels of 1 or 3 channels, to 2 or 4
  any,     // pixel by pixel, from any strides
};

struct RowsConvPlan {
  bool takes;  // whether the kernel takes the call at all
  RowsInput mode;
  int kernel_h;   // beside what the arguments of both kernels hold
  int shift;      // bits that dense pieces move up by: 0 or 16
  int steps;      // products of 4 kPerWord terms, twice
  int kept;       // values of a pixel in the patch: its channels, or one more
  int row_words;  // of one row of a window
  int words;      // of a whole window
  int log_tile_width, tile_height;
  int units;        // of a warp in a tile
  int log_spread;   // a unit's pixels are 2^log_spread columns apart
  int pitch;        // words from row to row of the patch
  int lead;         // words before the window of a row's first pixel
  int first_piece;  // where the patch's rows begin, counted from that of the tile's first pixel
  int row_pieces, pieces;
  FastDivide by_row_pieces, by_tiles_x, by_tiles_y;
  std::uint32_t tiles;
  int log_channel_warps;  // so many of a block's warps lie side by side in channels
  int chunks;
  bool raw_weights;     // a chunk's weights are one run of 16-byte pieces
  FastDivide by_run;    // pieces of the kWideExtent filters that a lane deals out
  int raw_pitch;        // pieces from one such run to the next in shared memory
  int raw_bytes, weight_bytes, bias_bytes, patch_bytes, shared_bytes;
  std::uint32_t blocks;  // per chunk
};

inline std::int64_t floor_div(std::int64_t a, std::int64_t b) {
  return a >= 0 ? a / b : -ceil_div(-a, b);
}

// Whether each piece of so many values lies at a multiple of its size, and wholly inside the
// picture or wholly outside.
template <typename T>
bool has_pieces(const ImageEdgeConvCall& call, std::int64_t values, std::int64_t row_values) {
  const std::int64_t(&strides)[4] = call.input_strides;
  return (call.channels == 1 || strides[1] == 1) &&
         (call.width == 1 || strides[3] == call.channels) &&
         (call.height == 1 || strides[2] % values == 0) &&
         (call.batch == 1 || strides[0] % values == 0) && row_values % values == 0 &&
         is_aligned(call.input, values * sizeof(T));
}

// Whether the weights are a run of values, filter by filter, and each chunk's part is aligned.
template <typename T>
bool has_raw_weights(const ImageEdgeConvCall& call) {
  const std::int64_t(&strides)[4] = call.weight_strides;
  const std::int64_t c = call.channels, r = call.kernel_h, s = call.kernel_w;
  const std::int64_t filter = c * r * s;
  const auto is = [](std::int64_t extent, std::int64_t stride, std::int64_t wanted) {
    return extent == 1 || stride == wanted;
  };
  const bool contiguous =
      is(c, strides[1], r * s) && is(r, strides[2], s) && is(s, strides[3], 1);
  const bool channels_last =
      is(c, strides[1], 1) && is(r, strides[2], s * c) && is(s, strides[3], c);
  return (contiguous || channels_last) && is(call.filters, strides[0], filter) &&
         call.filters * filter % kWideExtent<T> == 0 && is_aligned(call.weight, 16);
}

// Where pieces of the patch's rows begin and end, for a tile of so many columns.
template <typename T>
void choose_pieces(const ImageEdgeConvCall& call, std::int64_t width, RowsConvPlan& plan) {
  const std::int64_t patch_w = (width - 1) * call.stride_w + call.kernel_w;
  const std::int64_t begin = -call.padding_w, end = begin + patch_w;
  std::int64_t first = 0, behind = 0, lead = 0, row_values = 0;
  if (plan.mode == RowsInput::dense) {
    constexpr std::int64_t kPiece = kWideExtent<T>;
    const int shift = plan.shift / 16;
    first = floor_div(begin * call.channels, kPiece);
    behind = ceil_div(end * call.channels + shift, kPiece);
    lead = begin * call.channels - first * kPiece + shift;
    row_values = (behind - first) * kPiece;
  } else {
    const std::int64_t piece = plan.mode == RowsInput::padded ? 4 : 1;
    first = floor_div(begin, piece);
    behind = ceil_div(end, piece);
    lead = (begin - first * piece) * plan.kept;
    row_values = (behind - first) * piece * plan.kept;
  }
  plan.first_piece = static_cast<int>(first);
  plan.row_pieces = static_cast<int>(behind - first);
  plan.lead = static_cast<int>(lead / kPerWord<T>);
  // Rows are 20 banks apart, so that windows' words of neighbouring rows seldom meet.
  const std::int64_t words = ceil_div(row_values, kPerWord<T>);
  plan.pitch = static_cast<int>((words + 31 - 20) / 32 * 32 + 20);
}

// The shape of a tile: little waste at the result's borders and a small patch.
template <typename T>
void choose_rows_tile(const ImageEdgeConvCall& call, int shared_limit, RowsConvPlan& plan) {
  const int across = (kRowsWarps >> plan.log_channel_warps) * kUnit, pixels = across * plan.units;
  double best = 0;
  // A warp's units stand one below the other, so a row is no longer than one of each warp.
  for (int log_width = 3 + plan.log_spread; across >> log_width >= 1; ++log_width) {
    const std::int64_t width = std::int64_t{1} << log_width, height = pixels >> log_width;
    const std::int64_t tiles_x = ceil_div(call.out_width, width);
    const std::int64_t tiles_y = ceil_div(call.out_height, height);
    const std::int64_t patch_h = (height - 1) * call.stride_h + call.kernel_h;
    RowsConvPlan with = plan;
    choose_pieces<T>(call, width, with);
    const std::int64_t patch = patch_h * with.pitch * 4;
    const std::int64_t shared = patch + std::max<std::int64_t>(patch, with.raw_bytes) +
                                with.weight_bytes + with.bias_bytes;
    const std::int64_t tiles = tiles_x * tiles_y * call.batch;
    if (shared > shared_limit || tiles >= std::int64_t{1} << 31) continue;
    // A pixel costs some ten instructions of a warp, a piece of the patch one.
    const double cost = static_cast<double>(tiles_x * tiles_y) *
                        static_cast<double>(10 * pixels + patch_h * with.row_pieces);
    if (plan.takes && cost > best) continue;
    best = cost;
    with.takes = true;
    with.log_tile_width = log_width;
    with.tile_height = static_cast<int>(height);
    with.pieces = static_cast<int>(patch_h) * with.row_pieces;
    with.by_row_pieces = FastDivide(static_cast<std::uint32_t>(with.row_pieces));
    with.by_tiles_x = FastDivide(static_cast<std::uint32_t>(tiles_x));
    with.by_tiles_y = FastDivide(static_cast<std::uint32_t>(tiles_y));
    with.tiles = static_cast<std::uint32_t>(tiles);
    with.patch_bytes = static_cast<int>(patch);
    with.shared_bytes = static_cast<int>(shared);
    plan = with;
  }
}

// How often a bank of shared memory is asked for different words when the lanes read one word each
// of windows that begin so many words apart: four neighbours of each of a unit's windows.
inline int asked_at_once(int words_apart) {
  int of_bank[32] = {}, most = 0;
  for (int word = 0; word < 7 * words_apart + 4; ++word) {
    if (word % words_apart < 4) most = std::max(most, ++of_bank[word % 32]);
  }
  return most;
}

// takes is false for what the general kernel has to do.
template <typename T>
RowsConvPlan rows_conv_plan(const ImageEdgeConvCall& call, int multiprocessors, int shared_limit) {
  RowsConvPlan plan{};
  if (call.channels < 1 || call.channels > 4 || !edge_conv_fits(call) || !call.channels_last ||
      call.filters % kWideExtent<T> != 0 || !is_aligned(call.result, 16) ||
      !is_aligned(call.output, 16) || std::max(call.stride_h, call.stride_w) > kMostRowsStride) {
    return plan;
  }
  // Pairs of 16-bit values are read as words, so every window must begin and end with one.
  const bool odd = sizeof(T) == 2 && call.channels % 2 != 0;
  const bool pad = odd && (call.stride_w % 2 != 0 || call.kernel_w % 2 != 0);
  const std::int64_t kept = call.channels + (pad ? 1 : 0);
  const std::int64_t row_words = call.kernel_w * kept / kPerWord<T>;
  const std::int64_t words = call.kernel_h * row_words;
  const std::int64_t steps = ceil_div(words, 8);
  if (steps > kMostSteps<T>) return plan;
  plan.kernel_h = static_cast<int>(call.kernel_h);
  plan.kept = static_cast<int>(kept);
  plan.row_words = static_cast<int>(row_words);
  plan.words = static_cast<int>(words);
  plan.steps = static_cast<int>(sizeof(T) == 4 ? (steps + 1) / 2 * 2 : steps);

  plan.mode = RowsInput::any;
  if (pad && has_pieces<T>(call, 4, call.width)) plan.mode = RowsInput::padded;
  if (!pad && has_pieces<T>(call, kWideExtent<T>, call.width * call.channels)) {
    plan.mode = RowsInput::dense;
    plan.shift = odd && call.padding_w % 2 != 0 ? 16 : 0;
  }

  const std::int64_t groups = ceil_div(call.filters, kGroup<T>);
  while ((1 << plan.log_channel_warps) < std::min<std::int64_t>(groups, kRowsWarps)) {
    ++plan.log_channel_warps;
  }
  const int together = 1 << plan.log_channel_warps;
  // Every other pixel where neighbours' windows lie on the same banks.
  const int apart = static_cast<int>(call.stride_w * kept / kPerWord<T>);
  const bool room = kRowsWarps / together >= 2 && call.out_width > kUnit;
  plan.log_spread = room && asked_at_once(2 * apart) < asked_at_once(apart) ? 1 : 0;
  plan.chunks = static_cast<int>(ceil_div(groups, together));
  plan.weight_bytes = together * kMatrices<T> * plan.steps * 32 * 16;
  plan.bias_bytes = together * kMatrices<T> * 8 * 16;
  plan.raw_weights = has_raw_weights<T>(call);
  if (plan.raw_weights) {
    // Eight runs lie an odd number of pieces apart, so that lanes find them on different banks.
    const std::int64_t run = call.channels * call.kernel_h * call.kernel_w;
    plan.by_run = FastDivide(static_cast<std::uint32_t>(run));
    plan.raw_pitch = static_cast<int>(run | 1);
    plan.raw_bytes = together * 8 * plan.raw_pitch * 16;
  }
  // Fewer units where a large stride makes their patch too large.
  for (plan.units = kMostUnits; plan.units > 0; plan.units /= 2) {
    choose_rows_tile<T>(call, shared_limit, plan);
    if (plan.takes) break;
  }
  if (!plan.takes) return plan;

  const int resident =
      std::max(1, std::min(rows_resident<T>(plan.steps), 200 * 1024 / plan.shared_bytes));
  const std::uint32_t at_once = static_cast<std::uint32_t>(
      std::max<std::int64_t>(1, ceil_div(multiprocessors * resident, plan.chunks)));
  plan.blocks = std::min(plan.tiles, at_once);
  return plan;
}

template <typename T>
using RowsConvArguments = EdgeConvArguments<T, RowsConvPlan>;

// The parts of a block's shared memory.
struct RowsConvShared {
  std::uint32_t* patches;  // two, one behind the other; raw weights use the second one's at first
  std::uint32_t* weights;  // of each group, product and step, four words a lane
  float* bias;             // of each group and product, four a row: what its sums begin with
};

FASTGEN_HD RowsConvShared rows_conv_shared(void* memory, const RowsConvPlan& plan) {
  std::uint32_t* const patches = static_cast<std::uint32_t*>(memory);
  std::uint32_t* const bias = patches + (plan.shared_bytes - plan.bias_bytes) / 4;
  return {patches, bias - plan.weight_bytes / 4, reinterpret_cast<float*>(bias)};
}

}  // namespace fastgen::cuda
