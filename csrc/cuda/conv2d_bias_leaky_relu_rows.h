// The image-edge convolution by a kernel that keeps the weights in registers: small kernels, on
// tensor cores, into channels_last.
#pragma once

#include "cuda/conv2d_bias_leaky_relu.h"

namespace fastgen::cuda {

// Whether it takes the call; then it launches as image_edge_conv2d does and leaves nullptr or an
// error text in `problem`.
bool image_edge_conv2d_rows(const ImageEdgeConvCall& call, void* stream, const char** problem);

}  // namespace fastgen::cuda
