// How the image-edge transposed convolution is cut into blocks, what of it does not fit, and what
// its kernel is told.
#pragma once

#include <algorithm>

#include "cuda/conv_transpose2d_bias_leaky_relu.h"
#include "cuda/tensor_core.h"

namespace fastgen::cuda {

inline constexpr int kStripThreads = 128;
inline constexpr int kBatchPixels = kStripThreads;  // 32 for each warp
inline constexpr int kMostTiles = 5;                // of 16 products
inline constexpr int kFewTiles = 3;

// Products a pixel: one for each tap and output channel, number (r * kernel_w + s) * group + c.
// Output row oy = u stride - padding + rho, 0 <= rho < stride, belongs to the row group u; it is
// the sum of products of the input rows u, u - 1, ..., as far back as the kernel is high. Columns
// alike.
struct StripPlan {
  int group;     // output channels of this launch
  int products;  // kernel_h * kernel_w * group
  int tiles;     // of 16 products
  int steps;     // of 16 input channels; an even number

  int columns;        // input columns of a block, a multiple of 4
  int batch_rows;     // input rows at a time: batch_rows * columns <= kBatchPixels
  int kept_rows;      // before those, the rows whose products are still needed
  int ring_rows;      // batch_rows + kept_rows
  int pitch;          // floats from product to product in shared memory
  int span;           // output columns of a block, a multiple of 8
  int column_tiles;   // so many blocks side by side
  int column_groups;  // at most so many in one block
  int first_group, end_group;  // row groups of the output
  int strip_groups, strips;    // row groups of a block, blocks one below the other
  FastDivide by_columns, by_column_groups, by_stride_w, by_stride_h;

  int weight_bytes, product_bytes, result_bytes, shared_bytes;
  std::int64_t blocks;
  const char* problem;  // or nullptr
};

// Output channels that one launch takes; large kernels read the input once for each few of them.
inline std::int64_t strip_channels(const ImageEdgeTransposeCall& call) {
  return std::min(call.out_channels, 16 * kMostTiles / (call.kernel_h * call.kernel_w));
}

inline const char* strip_problem(const ImageEdgeTransposeCall& call) {
  constexpr std::int64_t kLimit = std::int64_t{1} << 31;
  if (call.out_channels > 4 || call.out_channels < 1) {
    return "image_edge_conv_transpose2d takes 1 to 4 output channels";
  }
  if (strip_channels(call) < 1) return "a kernel too large for image_edge_conv_transpose2d";
  std::int64_t weight = 0;
  const std::int64_t extents[] = {call.channels, call.out_channels, call.kernel_h, call.kernel_w};
  for (int d = 0; d < 4; ++d) {
    if (call.weight_strides[d] < 0) return "a negative stride of memory";
    weight += (extents[d] - 1) * call.weight_strides[d];
  }
  if (weight >= kLimit || (call.channels + 32) * (call.height + 32) * (call.width + 32) >= kLimit ||
      (call.out_height + 2 * call.padding_h + call.stride_h) *
              (call.out_width + 2 * call.padding_w + call.stride_w) * 4 >=
          kLimit) {
    return "an image of 2^31 or more elements";
  }
  return nullptr;
}

// The input columns that output columns [first, end) need: [from, to), in quads of columns.
struct ColumnRange {
  std::int64_t from, to;
};

inline ColumnRange columns_of_outputs(const ImageEdgeTransposeCall& call, std::int64_t first,
                                      std::int64_t end) {
  const std::int64_t kept = ceil_div(call.kernel_w, call.stride_w) - 1;
  const std::int64_t from = (first + call.padding_w) / call.stride_w - kept;
  const std::int64_t to = (end - 1 + call.padding_w) / call.stride_w + 1;
  const std::int64_t whole = std::max<std::int64_t>(from, 0) / 4 * 4;
  return {whole, std::max(whole + 4, ceil_div(std::min(to, call.width), 4) * 4)};
}

template <typename T, bool kTensorCore, bool kChannelsLast>
StripPlan strip_plan(const ImageEdgeTransposeCall& call, std::int64_t group, int multiprocessors,
                     int shared_limit) {
  StripPlan plan{};
  plan.problem = strip_problem(call);
  if (plan.problem != nullptr) return plan;
  plan.group = static_cast<int>(group);
  plan.products = static_cast<int>(call.kernel_h * call.kernel_w * group);
  plan.tiles = (plan.products + 15) / 16;
  plan.steps = static_cast<int>(2 * ceil_div(call.channels, 32));
  // Tensor cores take whole tiles; multiply-adds give each quarter of a group of lanes as many
  // products as the kernel has registers for.
  const int held_tiles = plan.tiles <= kFewTiles ? kFewTiles : kMostTiles;
  const std::int64_t weight_bytes = static_cast<std::int64_t>(plan.steps) * 16 * 16 * sizeof(T) *
                                    (kTensorCore ? plan.tiles : held_tiles);
  plan.kept_rows = static_cast<int>(ceil_div(call.kernel_h, call.stride_h) - 1);
  plan.first_group = static_cast<int>(call.padding_h / call.stride_h);
  plan.end_group =
      static_cast<int>((call.out_height - 1 + call.padding_h) / call.stride_h) + 1;
  const int groups = plan.end_group - plan.first_group;
  plan.by_stride_h = FastDivide(static_cast<std::uint32_t>(call.stride_h));
  plan.by_stride_w = FastDivide(static_cast<std::uint32_t>(call.stride_w));

  // The width of a block: a narrow one computes many products at its borders twice, a wide one
  // takes shared memory from its neighbours on the multiprocessor.
  plan.problem = "too many channels, or a kernel too large, for image_edge_conv_transpose2d";
  double best = 0;
  std::int64_t last_span = 0;
  for (std::int64_t count = 1; count <= ceil_div(call.out_width, 8); ++count) {
    const std::int64_t span = ceil_div(ceil_div(call.out_width, count), 8) * 8;
    if (span == last_span) continue;
    last_span = span;
    const std::int64_t column_tiles = ceil_div(call.out_width, span);
    std::int64_t columns = 4;
    for (std::int64_t tile = 0; tile < column_tiles; ++tile) {
      const ColumnRange range = columns_of_outputs(
          call, tile * span, std::min(call.out_width, (tile + 1) * span));
      columns = std::max(columns, range.to - range.from);
    }
    if (columns > kBatchPixels) continue;
    const int batch_rows = std::min(kBatchPixels / static_cast<int>(columns), groups);
    const int ring_rows = batch_rows + plan.kept_rows;
    const std::int64_t positions = ring_rows * columns;
    // So that a warp's stores of products fall on different banks: see store_products().
    const std::int64_t pitch =
        (positions + 31) / 32 * 32 + (kChannelsLast ? 8 : 4);
    const std::int64_t product_bytes = plan.products * pitch * 4;
    const std::int64_t result_bytes =
        batch_rows * call.stride_h * span * group * static_cast<std::int64_t>(sizeof(T));
    const std::int64_t shared = weight_bytes + product_bytes + result_bytes;
    if (shared > shared_limit) continue;
    const std::int64_t resident = shared_limit / shared;
    // What it reads and, weighed against that, what it multiplies: whole batches.
    const double cost = static_cast<double>(column_tiles) *
                        (static_cast<double>(columns) +
                         (kTensorCore ? 0.5 : 1.5) * kBatchPixels / batch_rows) *
                        (resident >= 3 ? 1.0 : (resident == 2 ? 1.15 : 1.6));
    if (plan.problem == nullptr && cost >= best) continue;
    best = cost;
    plan.problem = nullptr;
    plan.columns = static_cast<int>(columns);
    plan.batch_rows = batch_rows;
    plan.ring_rows = ring_rows;
    plan.pitch = static_cast<int>(pitch);
    plan.span = static_cast<int>(span);
    plan.column_tiles = static_cast<int>(column_tiles);
    plan.weight_bytes = static_cast<int>(weight_bytes);
    plan.product_bytes = static_cast<int>(product_bytes);
    plan.result_bytes = static_cast<int>(result_bytes);
    plan.shared_bytes = static_cast<int>(shared);
  }
  if (plan.problem != nullptr) return plan;
  plan.column_groups = static_cast<int>((plan.span - 1) / call.stride_w + 2);
  plan.by_columns = FastDivide(static_cast<std::uint32_t>(plan.columns));
  plan.by_column_groups = FastDivide(static_cast<std::uint32_t>(plan.column_groups));

  // The height of a strip: it begins kept_rows above its first row group and ends with a whole
  // batch. Few strips read little twice; many share the multiprocessors evenly, each of which needs
  // three at a time to hide what they wait for.
  best = 0;
  const int most_batches = (groups + plan.kept_rows + plan.batch_rows - 1) / plan.batch_rows;
  for (int batches = 1; batches <= most_batches; ++batches) {
    const int height = batches * plan.batch_rows - plan.kept_rows;
    if (height < 1) continue;
    const std::int64_t strips = ceil_div(groups, height);
    const std::int64_t share = ceil_div(strips * plan.column_tiles * call.batch, multiprocessors);
    const double cost = static_cast<double>(share) * batches *
                        (share >= 3 ? 1.0 : (share == 2 ? 1.15 : 1.6));
    if (plan.strips != 0 && cost > best) continue;
    best = cost;
    plan.strip_groups = height;
    plan.strips = static_cast<int>(strips);
  }
  plan.blocks = call.batch * plan.column_tiles * plan.strips;
  if (plan.blocks >= std::int64_t{1} << 31) plan.problem = "2^31 or more blocks";
  return plan;
}

// What a kernel is told.
template <typename T>
struct StripArguments {
  const T* input;
  const T* weight;
  const T* bias;
  T* result;
  int weight_strides[4];
  int channels, height, width, out_channels, first_channel, kernel_h, kernel_w;
  int out_height, out_width, stride_h, stride_w, padding_h, padding_w;
  float slope;
  bool tanh, channels_last;
  bool wide_input;   // what a lane loads at once is whole and aligned
  bool wide_result;  // so are 16 bytes of each row of the result
  StripPlan plan;
};

template <typename T, bool kChannelsLast>
StripArguments<T> strip_arguments(const ImageEdgeTransposeCall& call, std::int64_t first_channel,
                                  const StripPlan& plan) {
  const auto small = [](std::int64_t value) { return static_cast<int>(value); };
  StripArguments<T> a{};
  a.input = static_cast<const T*>(call.input);
  a.weight = static_cast<const T*>(call.weight);
  a.bias = static_cast<const T*>(call.bias);
  a.result = static_cast<T*>(call.result);
  for (int d = 0; d < 4; ++d) a.weight_strides[d] = small(call.weight_strides[d]);
  a.channels = small(call.channels), a.height = small(call.height), a.width = small(call.width);
  a.out_channels = small(call.out_channels), a.first_channel = small(first_channel);
  a.kernel_h = small(call.kernel_h), a.kernel_w = small(call.kernel_w);
  a.out_height = small(call.out_height), a.out_width = small(call.out_width);
  a.stride_h = small(call.stride_h), a.stride_w = small(call.stride_w);
  a.padding_h = small(call.padding_h), a.padding_w = small(call.padding_w);
  a.slope = call.slope, a.tanh = call.tanh, a.channels_last = call.channels_last;
  if (kChannelsLast) {
    a.wide_input = call.channels % kWideExtent<T> == 0 && is_aligned(call.input, 16);
  } else {
    a.wide_input = call.width % 4 == 0 && is_aligned(call.input, 4 * sizeof(T));
  }
  const std::int64_t row =
      call.channels_last ? call.out_width * call.out_channels : call.out_width;
  a.wide_result = row % kWideExtent<T> == 0 && is_aligned(call.result, 16) &&
                  (!call.channels_last || plan.group == call.out_channels);
  a.plan = plan;
  return a;
}

// The parts of a block's shared memory.
template <typename T>
struct StripShared {
  Rows* weights;    // [step][tile][part][lane]; without tensor cores float [channel][product]
  float* products;  // [product][position]
  T* result;        // rows of the result, each in the order of its memory
};

template <typename T>
FASTGEN_HD StripShared<T> strip_shared(unsigned char* memory, const StripPlan& plan) {
  unsigned char* products = memory + plan.weight_bytes;
  return {reinterpret_cast<Rows*>(memory), reinterpret_cast<float*>(products),
          reinterpret_cast<T*>(products + plan.product_bytes)};
}

// What a block works on.
struct Strip {
  std::int64_t image;
  int first_out, end_out;      // output columns
  int first_column;            // input column, a multiple of 4
  int first_group, end_group;  // row groups
};

template <typename T>
FASTGEN_HD Strip strip_of(const StripArguments<T>& a, std::uint32_t block) {
  const StripPlan& plan = a.plan;
  const std::uint32_t strip = block % static_cast<std::uint32_t>(plan.strips);
  const std::uint32_t rest = block / static_cast<std::uint32_t>(plan.strips);
  const int tile = static_cast<int>(rest % static_cast<std::uint32_t>(plan.column_tiles));
  Strip s;
  s.image = rest / static_cast<std::uint32_t>(plan.column_tiles);
  s.first_out = tile * plan.span;
  s.end_out = s.first_out + plan.span < a.out_width ? s.first_out + plan.span : a.out_width;
  const int kept = (a.kernel_w + a.stride_w - 1) / a.stride_w - 1;
  const int first = (s.first_out + a.padding_w) / a.stride_w - kept;
  s.first_column = first > 0 ? first / 4 * 4 : 0;
  s.first_group = plan.first_group + static_cast<int>(strip) * plan.strip_groups;
  s.end_group = s.first_group + plan.strip_groups < plan.end_group
                    ? s.first_group + plan.strip_groups
                    : plan.end_group;
  return s;
}

}  // namespace fastgen::cuda
