// What the operators of the Winograd convolutions check, allocate and run.
#pragma once

#include "cpu/winograd_plan.h"
#include "ops/image_edge.h"

namespace fastgen::operators {

// The layout of a weight says nothing here. Whatever else there is lies in one of the two; the
// kernels take channels_last.
inline Tensor in_channels_last(const Tensor& tensor, const char* name) {
  check_four_dimensions(tensor, name);
  STD_TORCH_CHECK(is_dense(tensor), name,
                  " must be contiguous or channels_last; call .contiguous() first");
  return in_layout(tensor, true);
}

// The input in channels_last, after what a convolution and a transposed one check alike; `inner` is
// the weight's dimension of the input's channels.
inline Tensor checked_input(const Tensor& input, const Tensor& weight,
                           const std::optional<Tensor>& bias, double negative_slope, int inner) {
  check_four_dimensions(input, "input");
  check_four_dimensions(weight, "weight");
  check_same_device(weight, "weight", input, "input");
  check_same_dtype(weight, "weight", input, "input");
  check_negative_slope(negative_slope);
  STD_TORCH_CHECK(weight.size(inner) == input.size(1), "weight must have ", input.size(1),
                  " input channels, as input (got ", weight.size(inner), ")");
  check_bias(bias, weight.size(1 - inner), input);
  return in_channels_last(input, "input");
}

// Everything but the sizes of input and map.
inline cpu::WinogradShape winograd_shape(const Tensor& tensor, std::int64_t filters,
                                         std::int64_t channels, std::int64_t kernel_h,
                                         std::int64_t kernel_w, std::int64_t stride,
                                         std::int64_t padding_h, std::int64_t padding_w) {
  const std::int64_t most = stride == 1 ? 3 : stride == 2 ? 5 : 0;
  STD_TORCH_CHECK(kernel_h == kernel_w && kernel_h >= 3 && kernel_h <= most,
                  "Winograd's method is here for a kernel of 3x3 with stride 1, and of 3x3, 4x4 and "
                  "5x5 with stride 2 (got ", kernel_h, "x", kernel_w, " with stride ", stride, ")");
  STD_TORCH_CHECK(padding_h >= 0 && padding_w >= 0 && padding_h < kernel_h && padding_w < kernel_w,
                  "padding must lie in [0, ", kernel_h, ") (got ", padding_h, " and ", padding_w,
                  ")");
  STD_TORCH_CHECK(filters >= 1 && channels >= 1 && filters % cpu::kWinogradChannels == 0 &&
                      channels % cpu::kWinogradChannels == 0,
                  "both numbers of channels must be multiples of ", cpu::kWinogradChannels,
                  " (got ", channels, " and ", filters, ")");
  cpu::WinogradShape shape{};
  shape.dtype = cpu_dtype_of(tensor, "input");
  shape.batch = tensor.size(0);
  shape.channels = channels, shape.filters = filters;
  shape.kernel = kernel_h, shape.stride = stride;
  shape.padding_h = padding_h, shape.padding_w = padding_w;
  return shape;
}

inline std::int64_t winograd_map_size(const char* side, std::int64_t size,
                                      const cpu::WinogradShape& shape, std::int64_t padding) {
  const std::int64_t padded = size + 2 * padding;
  STD_TORCH_CHECK(padded >= shape.kernel, "the padded input's ", side, " must be at least ",
                  shape.kernel, " (got ", padded, ")");
  return (padded - shape.kernel) / shape.stride + 1;
}

// Sizes, and from them how the map is cut: see winograd::mixes for the least number of pixels.
inline void set_input_size(cpu::WinogradShape& shape, std::int64_t height, std::int64_t width,
                           std::int64_t mixed_pixels) {
  shape.height = height, shape.width = width;
  shape.map_height = winograd_map_size("height", height, shape, shape.padding_h);
  shape.map_width = winograd_map_size("width", width, shape, shape.padding_w);
  shape.mixed = winograd::mixes(shape, mixed_pixels);
}

// Transforms the weight, if that is to happen once, and runs the pieces.
inline void run_winograd(cpu::WinogradPack* pack, cpu::Winograd* kernel, cpu::WinogradCall& call) {
  std::optional<Workspace> packed;
  if (call.plan.packed_bytes > 0) {
    packed.emplace(call.plan.packed_bytes);
    call.packed = packed->data();
    const std::int64_t numbers = call.shape.filters * call.shape.channels / call.plan.panels;
    run_pieces(pack, call, call.plan.panels, numbers * call.shape.kernel * call.shape.kernel);
  }
  run_plan(kernel, call);
}

}  // namespace fastgen::operators
