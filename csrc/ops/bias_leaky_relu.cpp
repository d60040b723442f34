// Operators: bias + leaky ReLU, and its mask with and without the gradient of the bias.

#include "cpu/bias_leaky_relu.h"
#include "cuda/bias_leaky_relu.h"

#include "ops/reorder.h"

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

// A result, of which every element gets written.
Tensor result_like(const Tensor& tensor) {
  return in_kept_memory(torch::stable::empty_like(tensor));
}

// Whether element i of the one memory belongs to element i of the other.
bool has_order_of(const Tensor& grad, const Tensor& output) {
  for (std::int64_t d = 0; d < grad.dim(); ++d) {
    if (grad.size(d) != 1 && grad.stride(d) != output.stride(d)) return false;
  }
  return true;
}

// A gradient may arrive in another order of memory than the output has (behind a flatten, say):
// then it is copied into the output's, which is the one that what comes next expects.
Tensor in_order_of(const Tensor& grad, const Tensor& output) {
  check_same_device(output, "output", grad, "grad");
  check_same_dtype(output, "output", grad, "grad");
  check_same_shape(output, "output", grad, "grad");
  if (has_order_of(grad, output)) return grad;
  Tensor copy = result_like(output);
  if (!grad.is_cuda() && grad.dim() == 4 && is_dense(grad) && is_dense(output)) {
    reorder(grad, copy, !output.is_contiguous());
    return copy;
  }
  return torch::stable::copy_(copy, grad);
}

struct OnCpu {
  using Call = cpu::BiasLeakyReluCall;
  explicit OnCpu(const Tensor&) {}

  void run(Call& call, const Tensor& like) const {
    call.plan = cpu::bias_plan(call.outer, call.channels, call.inner);
    Tensor workspace;
    if (call.sum != nullptr) {
      workspace =
          in_kept_memory(torch::stable::new_empty(like, {call.plan.partials}, wide_type(like)));
      call.partials = workspace.mutable_data_ptr();
    }
    run_pieces(cpu::bias_leaky_relu_kernel(), call, call.plan.pieces, call.plan.piece_elements);
    if (call.sum == nullptr) return;
    run_pieces(cpu::bias_leaky_relu_sum_kernel(), call, call.channels,
               call.plan.partials / (call.channels + 1));
  }
};

#ifdef FASTGEN_WITH_CUDA
struct OnCuda {
  using Call = cuda::BiasLeakyReluCall;
  explicit OnCuda(const Tensor& tensor) : guard(tensor) {}

  void run(Call& call, const Tensor& like) const {
    Tensor workspace;
    if (call.sum != nullptr) {
      workspace =
          torch::stable::new_empty(like, {cuda::partial_sums_size(call)}, ScalarType::Float);
      call.partials = static_cast<float*>(workspace.mutable_data_ptr());
    }
    check_launch(cuda::bias_leaky_relu(call, current_cuda_stream(like)));
  }

  OnDeviceOf guard;
};
#endif

template <typename Call>
Call call_of(const Tensor& input, const char* name, const std::optional<Tensor>& shift,
             const char* shift_name, const Tensor& result, double negative_slope,
             bool per_channel) {
  check_negative_slope(negative_slope);
  Call call{};
  call.dtype = dtype_of(input, name);
  const ChannelView view = view_of(input, name, per_channel || shift.has_value());
  if (shift.has_value()) check_per_channel(*shift, shift_name, view.channels, input, name);
  call.input = input.const_data_ptr();
  call.shift = data_or_null(shift);
  call.result = result.mutable_data_ptr();
  call.outer = view.outer;
  call.channels = view.channels;
  call.inner = view.inner;
  call.slope = static_cast<decltype(call.slope)>(negative_slope);
  return call;
}

template <typename On>
Tensor bias_leaky_relu(Tensor input, std::optional<Tensor> bias, double negative_slope) {
  using Call = typename On::Call;
  const On device(input);
  Tensor result = result_like(input);
  auto call = call_of<Call>(input, "input", bias, "bias", result, negative_slope, false);
  device.run(call, input);
  return result;
}

template <typename On>
void bias_leaky_relu_(Tensor input, std::optional<Tensor> bias, double negative_slope) {
  using Call = typename On::Call;
  const On device(input);
  auto call = call_of<Call>(input, "input", bias, "bias", input, negative_slope, false);
  device.run(call, input);
}

template <typename On>
Tensor leaky_relu_mask(Tensor grad, std::optional<Tensor> shift, Tensor output,
                       double negative_slope) {
  using Call = typename On::Call;
  const On device(grad);
  const Tensor input = in_order_of(grad, output);
  Tensor result = has_order_of(grad, output) ? result_like(output) : input;  // nobody else's copy
  auto call = call_of<Call>(input, "grad", shift, "shift", result, negative_slope, false);
  call.output = output.const_data_ptr();
  device.run(call, grad);
  return result;
}

template <typename On>
void leaky_relu_mask_(Tensor grad, std::optional<Tensor> shift, Tensor output,
                      double negative_slope) {
  using Call = typename On::Call;
  const On device(grad);
  check_twin(output, "output", grad, "grad");
  auto call = call_of<Call>(grad, "grad", shift, "shift", grad, negative_slope, false);
  call.output = output.const_data_ptr();
  device.run(call, grad);
}

template <typename On>
std::tuple<Tensor, Tensor> leaky_relu_mask_sum(Tensor grad, std::optional<Tensor> shift,
                                               Tensor output, double negative_slope) {
  using Call = typename On::Call;
  const On device(grad);
  const Tensor input = in_order_of(grad, output);
  Tensor result = result_like(output);
  auto call = call_of<Call>(input, "grad", shift, "shift", result, negative_slope, true);
  call.output = output.const_data_ptr();
  Tensor sum = torch::stable::new_empty(grad, {call.channels});
  call.sum = sum.mutable_data_ptr();
  device.run(call, grad);
  return {result, sum};
}

}  // namespace
}  // namespace fastgen::operators

#define FASTGEN_IMPLEMENT(m, On)                                                          \
  m.impl("bias_leaky_relu", TORCH_BOX(&fastgen::operators::bias_leaky_relu<On>));         \
  m.impl("bias_leaky_relu_", TORCH_BOX(&fastgen::operators::bias_leaky_relu_<On>));       \
  m.impl("leaky_relu_mask", TORCH_BOX(&fastgen::operators::leaky_relu_mask<On>));         \
  m.impl("leaky_relu_mask_", TORCH_BOX(&fastgen::operators::leaky_relu_mask_<On>));       \
  m.impl("leaky_relu_mask_sum", TORCH_BOX(&fastgen::operators::leaky_relu_mask_sum<On>))

STABLE_TORCH_LIBRARY_IMPL(fastgen, CPU, m) { FASTGEN_IMPLEMENT(m, fastgen::operators::OnCpu); }

#ifdef FASTGEN_WITH_CUDA
STABLE_TORCH_LIBRARY_IMPL(fastgen, CUDA, m) { FASTGEN_IMPLEMENT(m, fastgen::operators::OnCuda); }
#endif
