// Operators: the convolution by Winograd's method + bias + leaky ReLU, or its tangent; the gradient
// of its weight. On CPUs.

#include "cpu/conv2d_bias_leaky_relu_winograd.h"
#include "cpu/conv2d_bias_leaky_relu_winograd_weight.h"

#include "ops/winograd.h"

STABLE_TORCH_LIBRARY_FRAGMENT(fastgen, m) {
  m.def(
      "winograd_conv2d(Tensor input, Tensor weight, Tensor? bias, Tensor? output, "
      "float negative_slope, int stride, int padding_h, int padding_w, bool channels_last) "
      "-> Tensor");
  m.def(
      "winograd_conv2d_weight_gradient(Tensor input, Tensor grad, int kernel_h, int kernel_w, "
      "int stride, int padding_h, int padding_w, bool channels_last) -> Tensor");
}

namespace fastgen::operators {
namespace {

Tensor winograd_conv2d(Tensor input, Tensor weight, std::optional<Tensor> bias,
                       std::optional<Tensor> output, double negative_slope, std::int64_t stride,
                       std::int64_t padding_h, std::int64_t padding_w, bool channels_last) {
  const Tensor pixels = checked_input(input, weight, bias, negative_slope, 1);
  cpu::WinogradCall call{};
  call.shape = winograd_shape(input, weight.size(0), weight.size(1), weight.size(2),
                              weight.size(3), stride, padding_h, padding_w);
  set_input_size(call.shape, input.size(2), input.size(3), winograd::mixed_conv_pixels(call.shape));
  Tensor result = new_image(input, call.shape.batch, call.shape.filters, call.shape.map_height,
                            call.shape.map_width, true);
  if (output.has_value()) {
    output = in_channels_last(*output, "output");
    check_twin(*output, "output", result, "the result");
  }
  if (result.numel() == 0) return in_layout(result, channels_last);
  result = in_kept_memory(result);

  call.plan = winograd_conv2d_plan(call.shape, torch::stable::get_num_threads());
  call.input = pixels.const_data_ptr();
  call.weight = weight.const_data_ptr();
  copy_strides(weight, call.weight_strides);
  call.bias = data_or_null(bias);
  call.output = data_or_null(output);
  call.result = result.mutable_data_ptr();
  call.slope = negative_slope;
  call.stream = winograd::streams(call.shape, result.numel());
  run_winograd(cpu::winograd_conv2d_pack_kernel(), cpu::winograd_conv2d_kernel(), call);
  return in_layout(result, channels_last);
}

Tensor winograd_conv2d_weight_gradient(Tensor input, Tensor grad, std::int64_t kernel_h,
                                       std::int64_t kernel_w, std::int64_t stride,
                                       std::int64_t padding_h, std::int64_t padding_w,
                                       bool channels_last) {
  const Tensor pixels = in_channels_last(input, "input"), map = in_channels_last(grad, "grad");
  check_same_device(grad, "grad", input, "input");
  check_same_dtype(grad, "grad", input, "input");
  cpu::WinogradCall call{};
  cpu::WinogradShape& shape = call.shape;
  shape = winograd_shape(input, grad.size(1), input.size(1), kernel_h, kernel_w, stride, padding_h,
                         padding_w);
  set_input_size(shape, input.size(2), input.size(3), winograd::kMixedWeightPixels);
  STD_TORCH_CHECK(grad.size(0) == shape.batch && grad.size(2) == shape.map_height &&
                      grad.size(3) == shape.map_width,
                  "grad must have shape (", shape.batch, ", filters, ", shape.map_height, ", ",
                  shape.map_width, "), as the convolution of input has (got (", grad.size(0), ", ",
                  grad.size(1), ", ", grad.size(2), ", ", grad.size(3), "))");
  STD_TORCH_CHECK(shape.batch >= 1, "the batch must not be empty");
  const Tensor result = in_kept_memory(
      new_image(input, shape.filters, shape.channels, kernel_h, kernel_w, channels_last));
  call.plan = winograd_conv2d_weight_plan(shape, torch::stable::get_num_threads());
  call.input = pixels.const_data_ptr();
  call.map = map.const_data_ptr();
  call.result = result.mutable_data_ptr();
  copy_strides(result, call.result_strides);
  if (call.plan.segments == 1) {
    run_plan(cpu::winograd_conv2d_weight_kernel(), call);
    return result;
  }
  const Workspace parts(call.plan.packed_bytes);
  call.packed = parts.data();
  run_plan(cpu::winograd_conv2d_weight_kernel(), call);
  run_pieces(cpu::winograd_conv2d_weight_sum_kernel(), call, shape.filters,
             call.plan.segments * shape.channels * shape.kernel * shape.kernel);
  return result;
}

}  // namespace
}  // namespace fastgen::operators

STABLE_TORCH_LIBRARY_IMPL(fastgen, CPU, m) {
  m.impl("winograd_conv2d", TORCH_BOX(&fastgen::operators::winograd_conv2d));
  m.impl("winograd_conv2d_weight_gradient",
         TORCH_BOX(&fastgen::operators::winograd_conv2d_weight_gradient));
}
