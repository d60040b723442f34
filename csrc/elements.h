// The 16-bit element types and what turns them into float32 and back, for device, host and CPU
// kernels: the types are ours, so that the same text compiles everywhere.
#pragma once

#include <cstdint>

#include "dtype.h"
#include "formulas.h"

#if defined(__CUDACC__)
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#endif

#define FASTGEN_HD FASTGEN_FORMULA

FASTGEN_BEGIN

struct BFloat16 {
  std::uint16_t bits;
};
struct Float16 {
  std::uint16_t bits;
};

// ------------------------------------------------------------------------------------ conversions

FASTGEN_HD float to_float(float value) { return value; }

FASTGEN_HD float to_float(BFloat16 value) {
  return float_of(static_cast<std::uint32_t>(value.bits) << 16);
}

FASTGEN_HD float to_float(Float16 value) {
#if defined(__CUDA_ARCH__)
  return __half2float(__ushort_as_half(value.bits));
#else
  const std::uint32_t sign = static_cast<std::uint32_t>(value.bits & 0x8000u) << 16;
  const std::uint32_t exponent = (value.bits >> 10) & 0x1fu;
  const std::uint32_t fraction = value.bits & 0x3ffu;
  if (exponent == 0) {  // zero or subnormal: fraction * 2^-24
    const float magnitude = static_cast<float>(fraction) * 0x1p-24f;
    return sign != 0 ? -magnitude : magnitude;
  }
  if (exponent == 31) return float_of(sign | 0x7f800000u | (fraction << 13));
  return float_of(sign | ((exponent + 112) << 23) | (fraction << 13));
#endif
}

// Rounds to nearest, ties to even; NaN stays NaN; what is too large becomes infinite.
template <typename T>
FASTGEN_HD T from_float(float value);

template <>
FASTGEN_HD float from_float<float>(float value) {
  return value;
}

template <>
FASTGEN_HD BFloat16 from_float<BFloat16>(float value) {
#if defined(__CUDA_ARCH__)
  return {__bfloat16_as_ushort(__float2bfloat16_rn(value))};
#else
  const std::uint32_t bits = bits_of(value);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return {0x7fff};
  return {static_cast<std::uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16)};
#endif
}

template <>
FASTGEN_HD Float16 from_float<Float16>(float value) {
#if defined(__CUDA_ARCH__)
  return {__half_as_ushort(__float2half_rn(value))};
#else
  const std::uint32_t bits = bits_of(value);
  const std::uint32_t sign = (bits >> 16) & 0x8000u;
  const std::uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return {0x7fff};
  if (magnitude >= 0x477ff000u) return {static_cast<std::uint16_t>(sign | 0x7c00u)};
  if (magnitude < 0x38800000u) {
    // Below 2^-14: adding 0.5 leaves the multiple of 2^-24 that is nearest in the low bits.
    const std::uint32_t shifted = bits_of(float_of(magnitude) + 0.5f) - bits_of(0.5f);
    return {static_cast<std::uint16_t>(sign | shifted)};
  }
  const std::uint32_t rounded = magnitude - (112u << 23) + 0xfffu + ((magnitude >> 13) & 1u);
  return {static_cast<std::uint16_t>(sign | (rounded >> 13))};
#endif
}

// ---------------------------------------------------------------------------------------- indices

FASTGEN_HD constexpr std::int64_t ceil_div(std::int64_t a, std::int64_t b) {
  return (a + b - 1) / b;
}

FASTGEN_END
