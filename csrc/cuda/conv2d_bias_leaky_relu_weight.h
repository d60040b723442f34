// The gradient of the weight of a convolution of an image (1 to 4 channels): a critic's first layer
// and, with the roles of its tensors exchanged, a generator's last one.
#pragma once

#include "cuda/launch.h"

namespace fastgen::cuda {

// One call. The map is dense in channels_last; picture and result may have any strides, counted in
// elements.
//
//   result[k, c, r, s] = sum over n, y, x of
//       map[n, k, y, x] *
//       picture[n, c, y * stride_h + r - padding_h, x * stride_w + s - padding_w]
//
// float32 goes through the tensor cores, its factors rounded to 10 bits of fraction.
struct ImageEdgeWeightCall {
  const void* picture;  // (batch, channels, height, width)
  const void* map;      // (batch, filters, map_height, map_width)
  void* result;         // (filters, channels, kernel_h, kernel_w)
  float* partials;      // workspace of edge_weight_partials() floats; needs no initial value
  std::int64_t batch, channels, height, width, filters, kernel_h, kernel_w, map_height, map_width;
  std::int64_t picture_strides[4];
  std::int64_t result_strides[4];
  std::int64_t stride_h, stride_w, padding_h, padding_w;
  Dtype dtype;
};

// How many floats of workspace the call needs on the current device.
std::int64_t edge_weight_partials(const ImageEdgeWeightCall& call);

// Launches on the stream (a cudaStream_t) of the current device. Returns nullptr or an error text.
const char* image_edge_conv2d_weight(const ImageEdgeWeightCall& call, void* stream);

}  // namespace fastgen::cuda
