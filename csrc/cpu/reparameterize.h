// The reparameterization z = mu + exp(logvar / 2) eps, with and without the divergence, its
// backward, and its tangent: one pass each, with eps made on the way and never stored.
#pragma once

#include "cpu/capability.h"
#include "dtype.h"
#include "noise.h"

namespace fastgen::cpu {

// How the work is cut, by the shape alone: results have the same bits for every number of threads.
// A piece is `samples` whole samples, or one of the `chunks` of a sample. Where no sums are taken,
// the tensor counts as one sample.
struct NoisePlan {
  std::int64_t pieces;
  std::int64_t piece_elements;
  std::int64_t row;  // elements of a sample
  std::int64_t samples;
  std::int64_t chunk;
  std::int64_t chunks;
};

// One call; tensors of shape (samples, channels, positions), one dtype, any alignment. eps of an
// element is that of its row-major index in this shape, wherever it stands in memory.
//
// Arithmetic is in float32, for float64 in float64 (its eps is the float32 number all the same).
// A sample's divergence adds up in that type over at most 8 terms, behind that in float64.
struct ReparameterizeCall {
  Reparameterization kind;
  const void* mean;  // mu, or the scale of scaled_noise
  const void* logvar;
  const void* grad_z;   // backward only; nullptr counts as zeros
  const void* grad_kl;  // (samples), backward only; nullptr counts as zeros
  std::int64_t grad_kl_stride;
  std::int64_t seed;
  void* result;
  void* grad_logvar;  // backward only
  void* kl;           // (samples), sample_kl only
  double* partials;   // workspace of plan.pieces numbers, where a sample has several pieces
  Strides mean_strides, logvar_strides, grad_z_strides, result_strides, grad_logvar_strides;
  std::int64_t samples;
  std::int64_t channels;
  std::int64_t positions;
  Dtype dtype;  // that of kl and grad_kl is float32, or float64 for float64
  NoisePlan plan;
};

using Reparameterize = void(const ReparameterizeCall& call, std::int64_t begin, std::int64_t end);

FASTGEN_KERNEL(Reparameterize, reparameterize)  // pieces begin ... end - 1

// Then, where a sample has several pieces, the divergences of samples begin ... end - 1.
FASTGEN_KERNEL(Reparameterize, reparameterize_sum)

constexpr std::int64_t kNoisePiece = 4096;  // elements: about 8 us of work

inline NoisePlan noise_plan(const ReparameterizeCall& call) {
  const auto ceil_div = [](std::int64_t a, std::int64_t b) { return (a + b - 1) / b; };
  NoisePlan plan{};
  const bool by_sample = call.kind == Reparameterization::sample_kl;
  const std::int64_t row = call.channels * call.positions;
  const std::int64_t samples = by_sample ? call.samples : 1;
  plan.row = by_sample ? row : call.samples * row;
  plan.samples = plan.chunks = 1;
  plan.chunk = plan.row;
  if (plan.row <= kNoisePiece) {
    plan.samples = kNoisePiece / (plan.row > 0 ? plan.row : 1);
    plan.pieces = ceil_div(samples, plan.samples);
  } else {
    plan.chunks = ceil_div(plan.row, kNoisePiece);
    plan.chunk = kNoisePiece;
    plan.pieces = samples * plan.chunks;
  }
  plan.piece_elements = plan.samples * plan.chunk;
  return plan;
}

}  // namespace fastgen::cpu
