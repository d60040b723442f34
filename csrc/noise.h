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

// grad_kl is that of the sample; where it is absent (through_kl false) its terms are left out, as 0
// times an infinite growth would be NaN. grad_z is 0 where it is absent.
template <Reparameterization kKind, typename F>
FASTGEN_FORMULA NoiseElement<F> noise_element(F mean, F logvar, F grad_z, F grad_kl,
                                              bool through_kl, F eps) {
  const F noise = standard_deviation(logvar) * eps;
  if (kKind == Reparameterization::scaled_noise) return {mean * noise, F(0), F(0)};
  if (kKind == Reparameterization::backward) {
    const F through_z = grad_z * noise;
    if (!through_kl) return {grad_z, F(0.5) * through_z, F(0)};
    return {multiply_add(grad_kl, mean, grad_z),
            F(0.5) * multiply_add(grad_kl, expm1_of_logvar(logvar), through_z), F(0)};
  }
  const F kl = kKind == Reparameterization::sample_kl ? kl_term(mean, logvar) : F(0);
  return {mean + noise, F(0), kl};
}

FASTGEN_END
