// The reparameterization z = mu + exp(logvar / 2) eps, with and without the divergence, its
// backward, and its tangent: one pass each, with eps made in registers and never stored.
#pragma once

#include "cuda/launch.h"
#include "noise.h"

namespace fastgen::cuda {

// One call; tensors of shape (samples, channels, positions), one dtype, any alignment. eps of an
// element is that of its row-major index in this shape, wherever it stands in memory.
struct ReparameterizeCall {
  Reparameterization kind;
  const void* mean;  // mu, or the scale of scaled_noise
  const void* logvar;
  const void* grad_z;          // backward only; nullptr counts as zeros
  const float* grad_kl;        // (samples), backward only; nullptr counts as zeros
  std::int64_t grad_kl_stride;
  const std::int64_t* seed;  // on the device
  void* result;
  void* grad_logvar;  // backward only
  float* kl;          // (samples), sample_kl only
  float* partials;    // workspace of partial_sums_size() floats; needs no initial value
  Strides mean_strides, logvar_strides, grad_z_strides, result_strides, grad_logvar_strides;
  std::int64_t samples;
  std::int64_t channels;
  std::int64_t positions;
  Dtype dtype;
};

// How many floats of workspace the call needs; 0 unless several blocks share a sample's divergence.
std::int64_t partial_sums_size(const ReparameterizeCall& call);

// Launches on the stream (a cudaStream_t) of the current device. Returns nullptr or an error text.
const char* reparameterize(const ReparameterizeCall& call, void* stream);

}  // namespace fastgen::cuda
