// Bias + leaky ReLU, its mask, and the mask with the gradient of the bias: one pass each.
#pragma once

#include "cuda/launch.h"

namespace fastgen::cuda {

// One call. Every tensor holds outer * channels * inner elements of one dtype, element
// (o * channels + c) * inner + i, dense, with any alignment. result may be input.
//
//   output == nullptr:  result = leaky_relu(input + shift_c)
//   output given:       result = (input + shift_c) * (output > 0 ? 1 : slope)
//   sum given too:      and sum_c = the sum of result over o and i (float32 until the end)
struct BiasLeakyReluCall {
  const void* input;   // the input, or the incoming gradient
  const void* shift;   // (channels), or nullptr
  const void* output;  // what the mask is taken from, or nullptr
  void* result;
  void* sum;        // (channels), or nullptr
  float* partials;  // workspace of partial_sums_size() floats; needs no initial value
  std::int64_t outer;
  std::int64_t channels;
  std::int64_t inner;
  float slope;
  Dtype dtype;
};

// How many floats of workspace the call needs; 0 without a sum. Depends on the pointers' alignment.
std::int64_t partial_sums_size(const BiasLeakyReluCall& call);

// Launches on the stream (a cudaStream_t) of the current device. Returns nullptr or an error text.
const char* bias_leaky_relu(const BiasLeakyReluCall& call, void* stream);

}  // namespace fastgen::cuda
