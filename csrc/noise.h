// What the reparameterization's kernels for CPU and GPU share.
#pragma once

#include <cstdint>

#include "formulas.h"

namespace fastgen {

enum class Reparameterization {
  sample,        // result = mean + exp(logvar / 2) eps
  sample_kl,     // and kl_n = 1/2 sum(mean^2 + expm1(logvar) - logvar) over the sample
  scaled_noise,  // result = mean * exp(logvar / 2) eps
  backward,      // result = grad_z + grad_kl_n mean;
                 // grad_logvar = (grad_z exp(logvar / 2) eps + grad_kl_n expm1(logvar)) / 2
};

// Element (n, c, p) of a tensor stands n * sample + c * channel + p * position elements behind its
// first one. 0 repeats an element.
struct Strides {
  std::int64_t sample;
  std::int64_t channel;
  std::int64_t position;
};

}  // namespace fastgen

FASTGEN_BEGIN

template <typename F>
struct NoiseElement {
  F result;
  F grad_logvar;
  F kl;
};

// grad_kl is that of the sample. The terms of a gradient that is absent (through_z, through_kl
// false) are left out, as 0 times an infinite deviation or growth would be NaN. kCoarse takes the
// formulas for results of 16 bits; their terms of the divergence are coarse_kl_terms, of many
// elements at once.
template <Reparameterization kKind, typename F, bool kCoarse = false>
FASTGEN_FORMULA NoiseElement<F> noise_element(F mean, F logvar, F grad_z, F grad_kl,
                                              bool through_kl, F eps, bool through_z = true) {
  F deviation;
  if constexpr (kCoarse) {
    deviation = coarse_deviation(logvar);
  } else {
    deviation = standard_deviation(logvar);
  }
  const F noise = deviation * eps;
  if constexpr (kKind == Reparameterization::scaled_noise) {
    return {mean * noise, F(0), F(0)};
  } else if constexpr (kKind == Reparameterization::backward) {
    const F through_noise = through_z ? grad_z * noise : F(0);
    if (!through_kl) return {grad_z, F(0.5) * through_noise, F(0)};
    F growth;
    if constexpr (kCoarse) {
      growth = coarse_expm1_of_logvar(logvar);
    } else {
      growth = expm1_of_logvar(logvar);
    }
    return {multiply_add(grad_kl, mean, grad_z),
            F(0.5) * multiply_add(grad_kl, growth, through_noise), F(0)};
  } else if constexpr (kKind == Reparameterization::sample_kl) {
    if constexpr (kCoarse) {
      return {mean + noise, F(0), F(0)};
    } else {
      return {mean + noise, F(0), kl_term(mean, logvar)};
    }
  } else {
    return {mean + noise, F(0), F(0)};
  }
}

FASTGEN_END
