// Operators: convolution + bias + leaky ReLU by the Hopper kernels.
//
// Only the forward has kernels. CUTLASS 4.2 knows no strided input gradient for Hopper; at stride 1
// none is needed, since it is the forward again: of the gradient, with the weight's two channel
// dimensions exchanged and its two others flipped, and padding dilation * (kernel - 1) - padding.

#include "cuda/conv2d_bias_leaky_relu_sm90.h"

#include "cuda/launch.h"
#include "ops/common.h"

STABLE_TORCH_LIBRARY_FRAGMENT(fastgen, m) {
  m.def(
      "hopper_conv2d(Tensor input, Tensor weight, Tensor? bias, float negative_slope, "
      "int stride_h, int stride_w, int padding_h, int padding_w, int dilation_h, int dilation_w, "
      "int tile) -> Tensor");
  // `tile` of hopper_conv2d lies in [0, hopper_conv2d_tiles()): the thread block's output pixels x
  // filters are 128 x 128, 128 x 64 and 64 x 64.
  m.def("hopper_conv2d_tiles() -> int");
  // Whether hopper_conv2d computes a convolution of these shapes, groups 1, dtype and device aside.
  m.def(
      "hopper_conv2d_fits(int batch, int channels, int height, int width, int filters, "
      "int kernel_h, int kernel_w, int stride_h, int stride_w, int padding_h, int padding_w, "
      "int dilation_h, int dilation_w) -> bool");
}

#ifdef FASTGEN_WITH_CUDA

namespace fastgen::operators {
namespace {

using cuda::HopperConv2dCall;
using cuda::HopperGeometry;

std::int64_t hopper_conv2d_tiles() { return cuda::kHopperTileCount; }

bool hopper_conv2d_fits(std::int64_t batch, std::int64_t channels, std::int64_t height,
                        std::int64_t width, std::int64_t filters, std::int64_t kernel_h,
                        std::int64_t kernel_w, std::int64_t stride_h, std::int64_t stride_w,
                        std::int64_t padding_h, std::int64_t padding_w, std::int64_t dilation_h,
                        std::int64_t dilation_w) {
  return cuda::hopper_obstacle({batch, channels, height, width, filters, kernel_h, kernel_w,
                                stride_h, stride_w, padding_h, padding_w, dilation_h,
                                dilation_w}) == nullptr;
}

void check_image(const Tensor& tensor, const char* name) {
  STD_TORCH_CHECK(tensor.dim() == 4 && is_channels_last(tensor), name,
                  " must have 4 dimensions in channels_last order; call "
                  ".contiguous(memory_format=torch.channels_last) first");
  STD_TORCH_CHECK(is_aligned(tensor.const_data_ptr(), 16), name,
                  " must begin on a 16-byte boundary; clone it");
}

Tensor hopper_conv2d(Tensor input, Tensor weight, std::optional<Tensor> bias, double negative_slope,
                     std::int64_t stride_h, std::int64_t stride_w, std::int64_t padding_h,
                     std::int64_t padding_w, std::int64_t dilation_h, std::int64_t dilation_w,
                     std::int64_t tile) {
  const OnDeviceOf guard(input);
  const Dtype dtype = dtype_of(input, "input");
  STD_TORCH_CHECK(dtype != Dtype::float32,
                  "hopper_conv2d takes bfloat16 and float16 (got float32)");
  check_image(input, "input");
  check_image(weight, "weight");
  check_same_device(weight, "weight", input, "input");
  check_same_dtype(weight, "weight", input, "input");
  STD_TORCH_CHECK(weight.size(1) == input.size(1), "weight must have one slice per input channel, ",
                  input.size(1), " (got ", weight.size(1), "): hopper_conv2d has groups 1 only");
  check_negative_slope(negative_slope);
  STD_TORCH_CHECK(tile >= 0 && tile < cuda::kHopperTileCount, "tile must lie in [0, ",
                  cuda::kHopperTileCount, ") (got ", tile, ")");

  HopperGeometry geometry{input.size(0),  input.size(1),  input.size(2),  input.size(3),
                          weight.size(0), weight.size(2), weight.size(3), stride_h,
                          stride_w,       padding_h,      padding_w,      dilation_h,
                          dilation_w};
  const bool empty = geometry.batch == 0;
  if (empty) geometry.batch = 1;  // nothing to compute; the rest is checked all the same
  const char* obstacle = cuda::hopper_obstacle(geometry);
  STD_TORCH_CHECK(obstacle == nullptr, "hopper_conv2d cannot compute this convolution: ", obstacle,
                  " (input channels ", geometry.channels, ", picture ", geometry.height, " x ",
                  geometry.width, ", filters ", geometry.filters, ", kernel ",
                  geometry.kernel_height, " x ", geometry.kernel_width, ", stride ", stride_h, ", ",
                  stride_w, ", padding ", padding_h, ", ", padding_w, ", dilation ", dilation_h,
                  ", ", dilation_w, ")");
  if (bias.has_value()) {
    check_per_channel(*bias, "bias", geometry.filters, input, "input");
  }

  const std::int64_t shape[] = {input.size(0), geometry.filters, cuda::output_height(geometry),
                                cuda::output_width(geometry)};
  Tensor output = torch::stable::empty(shape, input.scalar_type(), std::nullopt, input.device(),
                                       std::nullopt, torch::headeronly::MemoryFormat::ChannelsLast);
  if (empty) return output;

  HopperConv2dCall call{};
  call.geometry = geometry;
  call.input = input.const_data_ptr();
  call.weight = weight.const_data_ptr();
  call.bias = data_or_null(bias);
  call.output = output.mutable_data_ptr();
  call.slope = static_cast<float>(negative_slope);
  const cuda::HopperTile& chosen = cuda::kHopperTiles[tile];
  const auto launch = dtype == Dtype::bfloat16 ? chosen.bfloat16 : chosen.float16;
  check_launch(launch(call, current_cuda_stream(input)));
  return output;
}

}  // namespace
}  // namespace fastgen::operators

STABLE_TORCH_LIBRARY_IMPL(fastgen, CUDA, m) {
  m.impl("hopper_conv2d", TORCH_BOX(&fastgen::operators::hopper_conv2d));
}

// Without a tensor there is no device to go by.
STABLE_TORCH_LIBRARY_IMPL(fastgen, CompositeExplicitAutograd, m) {
  m.impl("hopper_conv2d_tiles", TORCH_BOX(&fastgen::operators::hopper_conv2d_tiles));
  m.impl("hopper_conv2d_fits", TORCH_BOX(&fastgen::operators::hopper_conv2d_fits));
}

#endif
