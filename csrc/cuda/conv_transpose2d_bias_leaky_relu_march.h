// The part of the image-edge transposed convolution that has a kernel of its own: see
// conv_transpose2d_bias_leaky_relu_march_body.h.
#pragma once

#include "cuda/conv_transpose2d_bias_leaky_relu.h"

namespace fastgen::cuda {

// Sets *taken to whether the march takes the call; if so, launches and returns as
// image_edge_conv_transpose2d does.
const char* march_conv_transpose2d(const ImageEdgeTransposeCall& call, void* stream, bool* taken);

}  // namespace fastgen::cuda
