#include "cuda/conv2d_bias_leaky_relu_sm90_kernel.h"

namespace fastgen::cuda {

const char* hopper_conv2d_128x128_bfloat16(const HopperConv2dCall& call, void* stream) {
  return launch_hopper_conv2d<cutlass::bfloat16_t, Tile128x128>(call, stream);
}

const char* hopper_conv2d_128x64_bfloat16(const HopperConv2dCall& call, void* stream) {
  return launch_hopper_conv2d<cutlass::bfloat16_t, Tile128x64>(call, stream);
}

const char* hopper_conv2d_64x64_bfloat16(const HopperConv2dCall& call, void* stream) {
  return launch_hopper_conv2d<cutlass::bfloat16_t, Tile64x64>(call, stream);
}

}  // namespace fastgen::cuda
