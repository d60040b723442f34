// Operator: the transposed convolution to an image (1 to 4 channels) + bias + activation.

#include "cpu/conv_transpose2d_bias_leaky_relu.h"
#include "cuda/conv_transpose2d_bias_leaky_relu.h"

#include "ops/image_edge.h"

STABLE_TORCH_LIBRARY_FRAGMENT(fastgen, m) {
  m.def(
      "image_edge_conv_transpose2d(Tensor input, Tensor weight, Tensor? bias, "
      "float negative_slope, bool tanh, int stride_h, int stride_w, int padding_h, int padding_w, "
      "int output_h, int output_w, bool channels_last, bool allow_tf32) -> Tensor");
}

namespace fastgen::operators {
namespace {

using cpu::ImageEdgeShape;

// Every output size whose convolution has the input's size belongs to the input; those are stride
// many.
void check_output_size(const char* side, std::int64_t output, std::int64_t input,
                       std::int64_t kernel, std::int64_t stride, std::int64_t padding) {
  const std::int64_t least = (input - 1) * stride - 2 * padding + kernel;
  STD_TORCH_CHECK(output >= 1 && output >= least && output < least + stride, "the output's ", side,
                  " must lie in [", least, ", ", least + stride, ") and be at least 1 (got ",
                  output, ")");
}

ImageEdgeShape checked_shape(const Tensor& input, const Tensor& weight,
                             const std::optional<Tensor>& bias, double negative_slope,
                             std::int64_t stride_h, std::int64_t stride_w, std::int64_t padding_h,
                             std::int64_t padding_w, std::int64_t output_h,
                             std::int64_t output_w) {
  check_four_dimensions(input, "input");
  check_four_dimensions(weight, "weight");
  check_same_device(weight, "weight", input, "input");
  check_same_dtype(weight, "weight", input, "input");
  check_negative_slope(negative_slope);
  check_step(stride_h, stride_w, padding_h, padding_w);
  STD_TORCH_CHECK(is_dense(input),
                  "input must be contiguous or channels_last; call .contiguous() first");
  ImageEdgeShape shape{};
  shape.batch = input.size(0), shape.filters = input.size(1);
  shape.map_height = input.size(2), shape.map_width = input.size(3);
  shape.channels = weight.size(1);
  shape.kernel_h = weight.size(2), shape.kernel_w = weight.size(3);
  STD_TORCH_CHECK(weight.size(0) == shape.filters, "weight must have ", shape.filters,
                  " input channels, as input (got ", weight.size(0), ")");
  STD_TORCH_CHECK(shape.channels >= 1 && shape.channels <= 4,
                  "image_edge_conv_transpose2d takes 1 to 4 output channels (got ", shape.channels,
                  ")");
  STD_TORCH_CHECK(shape.filters >= 1 && shape.map_height >= 1 && shape.map_width >= 1,
                  "input and weight must not be empty, but for the batch");
  check_kernel(shape.kernel_h, shape.kernel_w);
  check_bias(bias, shape.channels, input);
  check_output_size("height", output_h, shape.map_height, shape.kernel_h, stride_h, padding_h);
  check_output_size("width", output_w, shape.map_width, shape.kernel_w, stride_w, padding_w);
  shape.height = output_h, shape.width = output_w;
  shape.stride_h = stride_h, shape.stride_w = stride_w;
  shape.padding_h = padding_h, shape.padding_w = padding_w;
  return shape;
}

Tensor image_edge_conv_transpose2d_cpu(Tensor input, Tensor weight, std::optional<Tensor> bias,
                                       double negative_slope, bool tanh, std::int64_t stride_h,
                                       std::int64_t stride_w, std::int64_t padding_h,
                                       std::int64_t padding_w, std::int64_t output_h,
                                       std::int64_t output_w, bool channels_last, bool) {
  cpu::ImageEdgeTransposeCall call{};
  call.shape = checked_shape(input, weight, bias, negative_slope, stride_h, stride_w, padding_h,
                             padding_w, output_h, output_w);
  call.shape.dtype = cpu_dtype_of(input, "input");
  Tensor result = new_image(input, call.shape.batch, call.shape.channels, output_h, output_w,
                            channels_last);
  if (result.numel() == 0) return result;
  result = in_kept_memory(result);

  call.plan = image_edge_conv_transpose2d_plan(call.shape);
  call.map = input.const_data_ptr();
  call.map_channels_last = is_channels_last(input);  // where it is both, nothing is to be gathered
  call.weight = weight.const_data_ptr();
  copy_strides(weight, call.weight_strides);
  call.bias = data_or_null(bias);
  call.result = result.mutable_data_ptr();
  call.channels_last = channels_last;
  call.tanh = tanh;
  call.slope = negative_slope;
  const Workspace packed(call.plan.packed_bytes);
  call.packed = packed.data();
  cpu::image_edge_conv_transpose2d_pack_kernel()(call);
  run_plan(cpu::image_edge_conv_transpose2d_kernel(), call);
  return result;
}

#ifdef FASTGEN_WITH_CUDA

Tensor image_edge_conv_transpose2d(Tensor input, Tensor weight, std::optional<Tensor> bias,
                                   double negative_slope, bool tanh, std::int64_t stride_h,
                                   std::int64_t stride_w, std::int64_t padding_h,
                                   std::int64_t padding_w, std::int64_t output_h,
                                   std::int64_t output_w, bool channels_last, bool allow_tf32) {
  const ImageEdgeShape shape = checked_shape(input, weight, bias, negative_slope, stride_h,
                                             stride_w, padding_h, padding_w, output_h, output_w);
  cuda::ImageEdgeTransposeCall call{};
  call.dtype = dtype_of(input, "input");
  call.batch = shape.batch, call.channels = shape.filters;
  call.height = shape.map_height, call.width = shape.map_width;
  call.out_channels = shape.channels;
  call.kernel_h = shape.kernel_h, call.kernel_w = shape.kernel_w;
  call.out_height = output_h, call.out_width = output_w;
  call.stride_h = stride_h, call.stride_w = stride_w;
  call.padding_h = padding_h, call.padding_w = padding_w;

  const OnDeviceOf guard(input);
  Tensor result =
      new_image(input, call.batch, call.out_channels, output_h, output_w, channels_last);
  call.input = input.const_data_ptr();
  call.weight = weight.const_data_ptr();
  call.bias = data_or_null(bias);
  call.result = result.mutable_data_ptr();
  copy_strides(weight, call.weight_strides);
  call.slope = static_cast<float>(negative_slope);
  call.tanh = tanh;
  // Where both are true, a pixel or a channel at most, the lanes share channels better.
  call.input_channels_last = is_channels_last(input);
  call.channels_last = channels_last;
  call.allow_tf32 = allow_tf32;
  check_launch(cuda::image_edge_conv_transpose2d(call, current_cuda_stream(input)));
  return result;
}

#endif

}  // namespace
}  // namespace fastgen::operators

STABLE_TORCH_LIBRARY_IMPL(fastgen, CPU, m) {
  m.impl("image_edge_conv_transpose2d",
         TORCH_BOX(&fastgen::operators::image_edge_conv_transpose2d_cpu));
}

#ifdef FASTGEN_WITH_CUDA
STABLE_TORCH_LIBRARY_IMPL(fastgen, CUDA, m) {
  m.impl("image_edge_conv_transpose2d",
         TORCH_BOX(&fastgen::operators::image_edge_conv_transpose2d));
}

#endif
