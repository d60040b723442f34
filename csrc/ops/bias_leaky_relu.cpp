// Operators: bias + leaky ReLU, and its mask with and without the gradient of the bias.

#include "cuda/bias_leaky_relu.h"

#include "ops/common.h"

STABLE_TORCH_LIBRARY_FRAGMENT(fastgen, m) {
  m.def("bias_leaky_relu(Tensor input, Tensor? bias, float negative_slope) -> Tensor");
  m.def("bias_leaky_relu_(Tensor(a!) input, Tensor? bias, float negative_slope) -> ()");
  m.def(
      "leaky_relu_mask(Tensor grad, Tensor? shift, Tensor output, float negative_slope) -> Tensor");
  m.def(
      "leaky_relu_mask_(Tensor(a!) grad, Tensor? shift, Tensor output, float negative_slope) "
      "-> ()");
  m.def(
      "leaky_relu_mask_sum(Tensor grad, Tensor? shift, Tensor output, float negative_slope) "
      "-> (Tensor, Tensor)");
}

#ifdef FASTGEN_WITH_CUDA

// A namespace of their own: the formulas have some of the same names.
namespace fastgen::operators {
namespace {

// Where nothing goes by channels, a tensor is a row of numbers, whatever its shape.
ChannelView view_of(const Tensor& tensor, const char* name, bool per_channel) {
  if (per_channel) return channel_view(tensor, name);
  STD_TORCH_CHECK(is_dense(tensor), name,
                  " must be contiguous or channels_last; call .contiguous() first");
  return {1, 1, tensor.numel(), false};
}

cuda::BiasLeakyReluCall call_of(const Tensor& input, const char* name,
                                const std::optional<Tensor>& shift, const char* shift_name,
                                const Tensor& result, double negative_slope, bool per_channel) {
  check_negative_slope(negative_slope);
  cuda::BiasLeakyReluCall call{};
  call.dtype = dtype_of(input, name);
  const ChannelView view = view_of(input, name, per_channel || shift.has_value());
  if (shift.has_value()) check_per_channel(*shift, shift_name, view.channels, input, name);
  call.input = input.const_data_ptr();
  call.shift = data_or_null(shift);
  call.result = result.mutable_data_ptr();
  call.outer = view.outer;
  call.channels = view.channels;
  call.inner = view.inner;
  call.slope = static_cast<float>(negative_slope);
  return call;
}

Tensor bias_leaky_relu(Tensor input, std::optional<Tensor> bias, double negative_slope) {
  const OnDeviceOf guard(input);
  Tensor result = torch::stable::empty_like(input);
  const auto call = call_of(input, "input", bias, "bias", result, negative_slope, false);
  check_launch(cuda::bias_leaky_relu(call, current_cuda_stream(input)));
  return result;
}

void bias_leaky_relu_(Tensor input, std::optional<Tensor> bias, double negative_slope) {
  const OnDeviceOf guard(input);
  const auto call = call_of(input, "input", bias, "bias", input, negative_slope, false);
  check_launch(cuda::bias_leaky_relu(call, current_cuda_stream(input)));
}

// A gradient may arrive in another order of memory than the output has (behind a flatten, say):
// then it is copied into the output's, which is the one that what comes next expects.
Tensor in_layout_of(const Tensor& grad, const Tensor& output) {
  check_same_device(output, "output", grad, "grad");
  check_same_dtype(output, "output", grad, "grad");
  check_same_shape(output, "output", grad, "grad");
  for (std::int64_t d = 0; d < grad.dim(); ++d) {
    if (grad.size(d) == 1 || grad.stride(d) == output.stride(d)) continue;
    Tensor copy = torch::stable::empty_like(output);
    return torch::stable::copy_(copy, grad);
  }
  return grad;
}

Tensor leaky_relu_mask(Tensor grad, std::optional<Tensor> shift, Tensor output,
                       double negative_slope) {
  const OnDeviceOf guard(grad);
  const Tensor input = in_layout_of(grad, output);
  Tensor result = torch::stable::empty_like(output);
  auto call = call_of(input, "grad", shift, "shift", result, negative_slope, false);
  call.output = output.const_data_ptr();
  check_launch(cuda::bias_leaky_relu(call, current_cuda_stream(grad)));
  return result;
}

void leaky_relu_mask_(Tensor grad, std::optional<Tensor> shift, Tensor output,
                      double negative_slope) {
  const OnDeviceOf guard(grad);
  check_twin(output, "output", grad, "grad");
  auto call = call_of(grad, "grad", shift, "shift", grad, negative_slope, false);
  call.output = output.const_data_ptr();
  check_launch(cuda::bias_leaky_relu(call, current_cuda_stream(grad)));
}

std::tuple<Tensor, Tensor> leaky_relu_mask_sum(Tensor grad, std::optional<Tensor> shift,
                                               Tensor output, double negative_slope) {
  const OnDeviceOf guard(grad);
  const Tensor input = in_layout_of(grad, output);
  Tensor result = torch::stable::empty_like(output);
  auto call = call_of(input, "grad", shift, "shift", result, negative_slope, true);
  call.output = output.const_data_ptr();
  Tensor sum = torch::stable::new_empty(grad, {call.channels});
  call.sum = sum.mutable_data_ptr();
  Tensor workspace =
      torch::stable::new_empty(grad, {cuda::partial_sums_size(call)}, ScalarType::Float);
  call.partials = static_cast<float*>(workspace.mutable_data_ptr());
  check_launch(cuda::bias_leaky_relu(call, current_cuda_stream(grad)));
  return {result, sum};
}

}  // namespace
}  // namespace fastgen::operators

STABLE_TORCH_LIBRARY_IMPL(fastgen, CUDA, m) {
  m.impl("bias_leaky_relu", TORCH_BOX(&fastgen::operators::bias_leaky_relu));
  m.impl("bias_leaky_relu_", TORCH_BOX(&fastgen::operators::bias_leaky_relu_));
  m.impl("leaky_relu_mask", TORCH_BOX(&fastgen::operators::leaky_relu_mask));
  m.impl("leaky_relu_mask_", TORCH_BOX(&fastgen::operators::leaky_relu_mask_));
  m.impl("leaky_relu_mask_sum", TORCH_BOX(&fastgen::operators::leaky_relu_mask_sum));
}

#endif
