// Operator: the transposed convolution by Winograd's method + bias + leaky ReLU. On CPUs.

#include "cpu/conv_transpose2d_bias_leaky_relu_winograd.h"

#include "ops/winograd.h"

STABLE_TORCH_LIBRARY_FRAGMENT(fastgen, m) {
  m.def(
      "winograd_conv_transpose2d(Tensor input, Tensor weight, Tensor? bias, float negative_slope, "
      "int stride, int padding_h, int padding_w, int output_h, int output_w, bool channels_last) "
      "-> Tensor");
}

namespace fastgen::operators {
namespace {

Tensor winograd_conv_transpose2d(Tensor input, Tensor weight, std::optional<Tensor> bias,
                                 double negative_slope, std::int64_t stride,
                                 std::int64_t padding_h, std::int64_t padding_w,
                                 std::int64_t output_h, std::int64_t output_w,
                                 bool channels_last) {
  const Tensor map = checked_input(input, weight, bias, negative_slope, 0);
  cpu::WinogradCall call{};
  call.shape = winograd_shape(input, weight.size(0), weight.size(1), weight.size(2),
                              weight.size(3), stride, padding_h, padding_w);
  set_input_size(call.shape, output_h, output_w, winograd::kMixedPixels);
  STD_TORCH_CHECK(call.shape.map_height == input.size(2) && call.shape.map_width == input.size(3),
                  "an output of ", output_h, "x", output_w, " belongs to an input of ",
                  call.shape.map_height, "x", call.shape.map_width, " (got ", input.size(2), "x",
                  input.size(3), ")");
  Tensor result =
      new_image(input, call.shape.batch, call.shape.channels, output_h, output_w, true);
  if (result.numel() == 0) return in_layout(result, channels_last);
  result = in_kept_memory(result);

  call.plan = winograd_conv_transpose2d_plan(call.shape, torch::stable::get_num_threads());
  call.map = map.const_data_ptr();
  call.weight = weight.const_data_ptr();
  copy_strides(weight, call.weight_strides);
  call.bias = data_or_null(bias);
  call.result = result.mutable_data_ptr();
  call.slope = negative_slope;
  call.stream = winograd::streams(call.shape, result.numel());
  run_winograd(cpu::winograd_conv_transpose2d_pack_kernel(),
               cpu::winograd_conv_transpose2d_kernel(), call);
  return in_layout(result, channels_last);
}

}  // namespace
}  // namespace fastgen::operators

STABLE_TORCH_LIBRARY_IMPL(fastgen, CPU, m) {
  m.impl("winograd_conv_transpose2d", TORCH_BOX(&fastgen::operators::winograd_conv_transpose2d));
}
