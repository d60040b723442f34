// Operator: the convolution of an image (1 to 4 channels) + bias + leaky ReLU, or its tangent.

#include "cuda/conv2d_bias_leaky_relu.h"

#include "ops/image_edge.h"

STABLE_TORCH_LIBRARY_FRAGMENT(fastgen, m) {
  m.def(
      "image_edge_conv2d(Tensor input, Tensor weight, Tensor? bias, Tensor? output, "
      "float negative_slope, int stride_h, int stride_w, int padding_h, int padding_w, "
      "bool channels_last, bool allow_tf32) -> Tensor");
}

#ifdef FASTGEN_WITH_CUDA

namespace fastgen::operators {
namespace {

std::int64_t size_of_output(const char* side, std::int64_t size, std::int64_t kernel,
                            std::int64_t stride, std::int64_t padding) {
  const std::int64_t room = size + 2 * padding - kernel;
  STD_TORCH_CHECK(room >= 0, "the kernel's ", side, ", ", kernel,
                  ", is larger than that of the padded input, ", size + 2 * padding);
  return room / stride + 1;
}

Tensor image_edge_conv2d(Tensor input, Tensor weight, std::optional<Tensor> bias,
                         std::optional<Tensor> output, double negative_slope, std::int64_t stride_h,
                         std::int64_t stride_w, std::int64_t padding_h, std::int64_t padding_w,
                         bool channels_last, bool allow_tf32) {
  cuda::ImageEdgeConvCall call{};
  call.dtype = dtype_of(input, "input");
  check_four_dimensions(input, "input");
  check_four_dimensions(weight, "weight");
  check_same_device(weight, "weight", input, "input");
  check_same_dtype(weight, "weight", input, "input");
  check_negative_slope(negative_slope);
  check_step(stride_h, stride_w, padding_h, padding_w);
  call.batch = input.size(0), call.channels = input.size(1);
  call.height = input.size(2), call.width = input.size(3);
  call.filters = weight.size(0), call.kernel_h = weight.size(2), call.kernel_w = weight.size(3);
  STD_TORCH_CHECK(call.channels >= 1 && call.channels <= 4,
                  "image_edge_conv2d takes 1 to 4 input channels (got ", call.channels, ")");
  STD_TORCH_CHECK(weight.size(1) == call.channels, "weight must have ", call.channels,
                  " input channels, as input (got ", weight.size(1), ")");
  STD_TORCH_CHECK(call.kernel_h >= 1 && call.kernel_w >= 1, "weight must not be empty");
  check_bias(bias, call.filters, input);
  call.out_height =
      size_of_output("height", call.height, call.kernel_h, stride_h, padding_h);
  call.out_width = size_of_output("width", call.width, call.kernel_w, stride_w, padding_w);
  call.stride_h = stride_h, call.stride_w = stride_w;
  call.padding_h = padding_h, call.padding_w = padding_w;

  const OnDeviceOf guard(input);
  Tensor result = new_image(input, call.batch, call.filters, call.out_height, call.out_width,
                            channels_last);
  if (output.has_value()) {
    check_same_device(*output, "output", input, "input");
    check_same_dtype(*output, "output", input, "input");
    check_same_shape(*output, "output", result, "the result");
    STD_TORCH_CHECK(has_layout(*output, channels_last), "output must be ",
                    channels_last ? "channels_last" : "contiguous", ", as the result");
  }
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

}  // namespace
}  // namespace fastgen::operators

STABLE_TORCH_LIBRARY_IMPL(fastgen, CUDA, m) {
  m.impl("image_edge_conv2d", TORCH_BOX(&fastgen::operators::image_edge_conv2d));
}

#endif
