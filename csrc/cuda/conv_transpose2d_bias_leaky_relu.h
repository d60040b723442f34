// Transposed convolution to an image (1 to 4 channels) + bias + activation in one pass: a
// generator's last layer, and the gradient of a critic's first layer in its input.
#pragma once

#include "cuda/launch.h"

namespace fastgen::cuda {

// One call:  result = activation(conv_transpose(input, weight) + bias), the activation being tanh
// or leaky ReLU (slope 1: none). Input and result are dense; the weight may have any strides, in
// elements.
struct ImageEdgeTransposeCall {
  const void* input;   // (batch, channels, height, width)
  const void* weight;  // (channels, out_channels, kernel_h, kernel_w)
  const void* bias;    // (out_channels), or nullptr
  void* result;        // (batch, out_channels, out_height, out_width)
  std::int64_t batch, channels, height, width, out_channels, kernel_h, kernel_w, out_height,
      out_width;
  std::int64_t weight_strides[4];
  std::int64_t stride_h, stride_w, padding_h, padding_w;
  float slope;
  bool tanh;
  bool input_channels_last;
  bool channels_last;  // the memory of result
  bool allow_tf32;     // float32 by tensor cores, its factors rounded to 10 bits of fraction
  Dtype dtype;
};

// Launches on the stream (a cudaStream_t) of the current device. Returns nullptr or an error text.
const char* image_edge_conv_transpose2d(const ImageEdgeTransposeCall& call, void* stream);

}  // namespace fastgen::cuda
