// Operators: the convolution of an image (1 to 4 channels) + bias + leaky ReLU, or its tangent; the
// gradient of its weight.

#include "cpu/conv2d_bias_leaky_relu.h"
#include "cpu/conv2d_bias_leaky_relu_weight.h"
#include "cuda/conv2d_bias_leaky_relu.h"
#include "cuda/conv2d_bias_leaky_relu_weight.h"

#include "ops/image_edge.h"

STABLE_TORCH_LIBRARY_FRAGMENT(fastgen, m) {
  m.def(
      "image_edge_conv2d(Tensor input, Tensor weight, Tensor? bias, Tensor? output, "
      "float negative_slope, int stride_h, int stride_w, int padding_h, int padding_w, "
      "bool channels_last, bool allow_tf32) -> Tensor");
  m.def(
      "image_edge_conv2d_weight_gradient(Tensor input, Tensor grad, int kernel_h, int kernel_w, "
      "int stride_h, int stride_w, int padding_h, int padding_w, bool channels_last, "
      "bool allow_tf32=False) -> Tensor");
}

namespace fastgen::operators {
namespace {

using cpu::ImageEdgeShape;

std::int64_t size_of_output(const char* side, std::int64_t size, std::int64_t kernel,
                            std::int64_t stride, std::int64_t padding) {
  const std::int64_t room = size + 2 * padding - kernel;
  STD_TORCH_CHECK(room >= 0, "the kernel's ", side, ", ", kernel,
                  ", is larger than that of the padded input, ", size + 2 * padding);
  return room / stride + 1;
}

// The picture, the kernel and the step of a call, but for the dtype and the number of filters.
ImageEdgeShape shape_of(const char* name, const Tensor& input, std::int64_t kernel_h,
                        std::int64_t kernel_w, std::int64_t stride_h, std::int64_t stride_w,
                        std::int64_t padding_h, std::int64_t padding_w) {
  check_four_dimensions(input, "input");
  check_step(stride_h, stride_w, padding_h, padding_w);
  ImageEdgeShape shape{};
  shape.batch = input.size(0), shape.channels = input.size(1);
  shape.height = input.size(2), shape.width = input.size(3);
  STD_TORCH_CHECK(shape.channels >= 1 && shape.channels <= 4, name,
                  " takes 1 to 4 input channels (got ", shape.channels, ")");
  check_kernel(kernel_h, kernel_w);
  shape.kernel_h = kernel_h, shape.kernel_w = kernel_w;
  shape.stride_h = stride_h, shape.stride_w = stride_w;
  shape.padding_h = padding_h, shape.padding_w = padding_w;
  shape.map_height = size_of_output("height", shape.height, kernel_h, stride_h, padding_h);
  shape.map_width = size_of_output("width", shape.width, kernel_w, stride_w, padding_w);
  return shape;
}

ImageEdgeShape checked_shape(const Tensor& input, const Tensor& weight,
                             const std::optional<Tensor>& bias, double negative_slope,
                             std::int64_t stride_h, std::int64_t stride_w, std::int64_t padding_h,
                             std::int64_t padding_w) {
  check_four_dimensions(weight, "weight");
  check_same_device(weight, "weight", input, "input");
  check_same_dtype(weight, "weight", input, "input");
  check_negative_slope(negative_slope);
  ImageEdgeShape shape = shape_of("image_edge_conv2d", input, weight.size(2), weight.size(3),
                                  stride_h, stride_w, padding_h, padding_w);
  STD_TORCH_CHECK(weight.size(1) == shape.channels, "weight must have ", shape.channels,
                  " input channels, as input (got ", weight.size(1), ")");
  shape.filters = weight.size(0);
  check_bias(bias, shape.filters, input);
  return shape;
}

Tensor new_result(const Tensor& input, const ImageEdgeShape& shape,
                  const std::optional<Tensor>& output, bool channels_last) {
  Tensor result = new_image(input, shape.batch, shape.filters, shape.map_height, shape.map_width,
                            channels_last);
  if (output.has_value()) {
    check_same_device(*output, "output", input, "input");
    check_same_dtype(*output, "output", input, "input");
    check_same_shape(*output, "output", result, "the result");
    STD_TORCH_CHECK(has_layout(*output, channels_last), "output must be ",
                    channels_last ? "channels_last" : "contiguous", ", as the result");
  }
  return result;
}

Tensor image_edge_conv2d_cpu(Tensor input, Tensor weight, std::optional<Tensor> bias,
                             std::optional<Tensor> output, double negative_slope,
                             std::int64_t stride_h, std::int64_t stride_w, std::int64_t padding_h,
                             std::int64_t padding_w, bool channels_last, bool) {
  cpu::ImageEdgeConvCall call{};
  call.shape = checked_shape(input, weight, bias, negative_slope, stride_h, stride_w, padding_h,
                             padding_w);
  call.shape.dtype = cpu_dtype_of(input, "input");
  Tensor result = new_result(input, call.shape, output, channels_last);
  if (result.numel() == 0) return result;
  result = in_kept_memory(result);

  call.plan = image_edge_conv2d_plan(call.shape);
  call.picture = input.const_data_ptr();
  call.weight = weight.const_data_ptr();
  call.bias = data_or_null(bias);
  call.output = data_or_null(output);
  call.result = result.mutable_data_ptr();
  copy_strides(input, call.picture_strides);
  copy_strides(weight, call.weight_strides);
  call.channels_last = channels_last;
  call.stream = image_edge_conv2d_streams(call.shape);
  call.slope = negative_slope;
  const Workspace packed(call.plan.packed_bytes);
  call.packed = packed.data();
  cpu::image_edge_conv2d_pack_kernel()(call);
  run_plan(cpu::image_edge_conv2d_kernel(), call);
  return result;
}

ImageEdgeShape checked_weight_shape(const Tensor& input, const Tensor& grad, std::int64_t kernel_h,
                                    std::int64_t kernel_w, std::int64_t stride_h,
                                    std::int64_t stride_w, std::int64_t padding_h,
                                    std::int64_t padding_w) {
  check_four_dimensions(grad, "grad");
  check_same_device(grad, "grad", input, "input");
  check_same_dtype(grad, "grad", input, "input");
  ImageEdgeShape shape = shape_of("image_edge_conv2d_weight_gradient", input, kernel_h, kernel_w,
                                  stride_h, stride_w, padding_h, padding_w);
  shape.filters = grad.size(1);
  STD_TORCH_CHECK(grad.size(0) == shape.batch && grad.size(2) == shape.map_height &&
                      grad.size(3) == shape.map_width,
                  "grad must have shape (", shape.batch, ", filters, ", shape.map_height, ", ",
                  shape.map_width, "), as the convolution of input has (got (", grad.size(0), ", ",
                  grad.size(1), ", ", grad.size(2), ", ", grad.size(3), "))");
  return shape;
}

Tensor image_edge_conv2d_weight_gradient_cpu(Tensor input, Tensor grad, std::int64_t kernel_h,
                                             std::int64_t kernel_w, std::int64_t stride_h,
                                             std::int64_t stride_w, std::int64_t padding_h,
                                             std::int64_t padding_w, bool channels_last, bool) {
  cpu::ImageEdgeWeightCall call{};
  call.shape = checked_weight_shape(input, grad, kernel_h, kernel_w, stride_h, stride_w, padding_h,
                                    padding_w);
  call.shape.dtype = cpu_dtype_of(input, "input");
  STD_TORCH_CHECK(is_dense(grad),
                  "grad must be contiguous or channels_last; call .contiguous() first");
  Tensor result = new_image(input, call.shape.filters, call.shape.channels, kernel_h, kernel_w,
                            channels_last);
  if (result.numel() == 0) return result;

  call.plan = image_edge_conv2d_weight_plan(call.shape);
  call.picture = input.const_data_ptr();
  call.map = grad.const_data_ptr();
  call.result = result.mutable_data_ptr();
  copy_strides(input, call.picture_strides);
  copy_strides(result, call.result_strides);
  call.map_channels_last = !grad.is_contiguous();
  const Workspace sums(call.plan.packed_bytes);
  call.packed = sums.data();
  run_plan(cpu::image_edge_conv2d_weight_kernel(), call);
  cpu::image_edge_conv2d_weight_sum_kernel()(call);
  return result;
}

#ifdef FASTGEN_WITH_CUDA

Tensor image_edge_conv2d(Tensor input, Tensor weight, std::optional<Tensor> bias,
                         std::optional<Tensor> output, double negative_slope, std::int64_t stride_h,
                         std::int64_t stride_w, std::int64_t padding_h, std::int64_t padding_w,
                         bool channels_last, bool allow_tf32) {
  const ImageEdgeShape shape = checked_shape(input, weight, bias, negative_slope, stride_h,
                                             stride_w, padding_h, padding_w);
  cuda::ImageEdgeConvCall call{};
  call.dtype = dtype_of(input, "input");
  call.batch = shape.batch, call.channels = shape.channels;
  call.height = shape.height, call.width = shape.width;
  call.filters = shape.filters, call.kernel_h = shape.kernel_h, call.kernel_w = shape.kernel_w;
  call.out_height = shape.map_height, call.out_width = shape.map_width;
  call.stride_h = stride_h, call.stride_w = stride_w;
  call.padding_h = padding_h, call.padding_w = padding_w;

  const OnDeviceOf guard(input);
  Tensor result = new_result(input, shape, output, channels_last);
  call.input = input.const_data_ptr();
  call.weight = weight.const_data_ptr();
  call.bias = data_or_null(bias);
  call.output = data_or_null(output);
  call.result = result.mutable_data_ptr();
  copy_strides(input, call.input_strides);
  copy_strides(weight, call.weight_strides);
  call.slope = static_cast<float>(negative_slope);
  call.channels_last = channels_last;
  call.allow_tf32 = allow_tf32;
  check_launch(cuda::image_edge_conv2d(call, current_cuda_stream(input)));
  return result;
}

Tensor image_edge_conv2d_weight_gradient(Tensor input, Tensor grad, std::int64_t kernel_h,
                                         std::int64_t kernel_w, std::int64_t stride_h,
                                         std::int64_t stride_w, std::int64_t padding_h,
                                         std::int64_t padding_w, bool channels_last,
                                         bool allow_tf32) {
  const ImageEdgeShape shape = checked_weight_shape(input, grad, kernel_h, kernel_w, stride_h,
                                                    stride_w, padding_h, padding_w);
  cuda::ImageEdgeWeightCall call{};
  call.dtype = dtype_of(input, "input");
  STD_TORCH_CHECK(call.dtype != Dtype::float32 || allow_tf32,
                  "image_edge_conv2d_weight_gradient computes float32 on a GPU in TF32 only, which "
                  "allow_tf32 forbids");
  STD_TORCH_CHECK(is_channels_last(grad),
                  "grad must be channels_last on a GPU; call "
                  ".contiguous(memory_format=torch.channels_last) first");
  call.batch = shape.batch, call.channels = shape.channels;
  call.height = shape.height, call.width = shape.width;
  call.filters = shape.filters, call.kernel_h = kernel_h, call.kernel_w = kernel_w;
  call.map_height = shape.map_height, call.map_width = shape.map_width;
  call.stride_h = stride_h, call.stride_w = stride_w;
  call.padding_h = padding_h, call.padding_w = padding_w;

  const OnDeviceOf guard(input);
  Tensor result = new_image(input, call.filters, call.channels, kernel_h, kernel_w, channels_last);
  if (result.numel() == 0) return result;
  call.picture = input.const_data_ptr();
  call.map = grad.const_data_ptr();
  call.result = result.mutable_data_ptr();
  copy_strides(input, call.picture_strides);
  copy_strides(result, call.result_strides);
  Tensor workspace =
      torch::stable::new_empty(input, {cuda::edge_weight_partials(call)}, ScalarType::Float);
  call.partials = static_cast<float*>(workspace.mutable_data_ptr());
  check_launch(cuda::image_edge_conv2d_weight(call, current_cuda_stream(input)));
  return result;
}

#endif

}  // namespace
}  // namespace fastgen::operators

STABLE_TORCH_LIBRARY_IMPL(fastgen, CPU, m) {
  m.impl("image_edge_conv2d", TORCH_BOX(&fastgen::operators::image_edge_conv2d_cpu));
  m.impl("image_edge_conv2d_weight_gradient",
         TORCH_BOX(&fastgen::operators::image_edge_conv2d_weight_gradient_cpu));
}

#ifdef FASTGEN_WITH_CUDA
STABLE_TORCH_LIBRARY_IMPL(fastgen, CUDA, m) {
  m.impl("image_edge_conv2d", TORCH_BOX(&fastgen::operators::image_edge_conv2d));
  m.impl("image_edge_conv2d_weight_gradient",
         TORCH_BOX(&fastgen::operators::image_edge_conv2d_weight_gradient));
}
#endif
