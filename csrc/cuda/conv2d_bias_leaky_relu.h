// Convolution of an image (1 to 4 channels) + bias + leaky ReLU in one pass: a critic's first
// layer.
#pragma once

#include "cuda/launch.h"

namespace fastgen::cuda {

// One call. The result is dense, of shape (batch, filters, out_height, out_width), in channels_last
// or contiguous memory; every other tensor may have any strides, in elements.
//
//   output == nullptr:  result = leaky_relu(conv(input, weight) + bias)
//   output given:       result = (conv(input, weight) + bias) * (output > 0 ? 1 : slope),
//                       output being in the memory order of result
struct ImageEdgeConvCall {
  const void* input;   // (batch, channels, height, width)
  const void* weight;  // (filters, channels, kernel_h, kernel_w)
  const void* bias;    // (filters), or nullptr
  const void* output;  // or nullptr
  void* result;
  std::int64_t batch, channels, height, width, filters, kernel_h, kernel_w, out_height, out_width;
  std::int64_t input_strides[4];
  std::int64_t weight_strides[4];
  std::int64_t stride_h, stride_w, padding_h, padding_w;
  float slope;
  bool channels_last;  // the memory of result and output
  bool allow_tf32;     // float32 by tensor cores, its factors rounded to 10 bits of fraction
  Dtype dtype;
};

// Launches on the stream (a cudaStream_t) of the current device. Returns nullptr or an error text.
const char* image_edge_conv2d(const ImageEdgeConvCall& call, void* stream);

}  // namespace fastgen::cuda
