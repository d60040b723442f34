// The scalar formulas of every operation, for host and device: the only place where they stand.
// fastgen/ops/reference.py and fastgen/ops/philox.py say the same in PyTorch; tests hold them
// equal.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#if defined(__CUDACC__)
#define FASTGEN_FORMULA __host__ __device__ __forceinline__
#else
#define FASTGEN_FORMULA inline
#endif

// The sources of csrc/cpu are compiled once per CPU capability, which FASTGEN_CPU names. What
// headers define then lies in a namespace of that name: were the linker to keep one copy of an
// inline function for all objects, it might keep one that other CPUs cannot run.
#if defined(FASTGEN_CPU)
#define FASTGEN_BEGIN  \
  namespace fastgen {  \
  inline namespace FASTGEN_CPU {
#define FASTGEN_END \
  }                 \
  }
#else
#define FASTGEN_BEGIN namespace fastgen {
#define FASTGEN_END }
#endif

FASTGEN_BEGIN

FASTGEN_FORMULA std::uint32_t bits_of(float value) {
#if defined(__CUDA_ARCH__)
  return __float_as_uint(value);
#else
  std::uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  return bits;
#endif
}

FASTGEN_FORMULA float float_of(std::uint32_t bits) {
#if defined(__CUDA_ARCH__)
  return __uint_as_float(bits);
#else
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
#endif
}

// a b + c, rounded once.
FASTGEN_FORMULA float multiply_add(float a, float b, float c) {
#if defined(FASTGEN_CPU) && !defined(__FP_FAST_FMAF)
  // Without the instruction: fmaf is a call per number, while this vectorizes. The product is exact
  // in float64; the two roundings behind it differ from one in about a case of 2^29.
  return static_cast<float>(static_cast<double>(a) * b + c);
#else
  return fmaf(a, b, c);
#endif
}

// ------------------------------------------------------------------------------------- leaky ReLU

// max(a, 0) + slope * min(a, 0); NaN goes through, as it does in PyTorch.
template <typename F>
FASTGEN_FORMULA F leaky_relu(F a, F slope) {
  return a > F(0) ? a : a * slope;
}

// The derivative times g, from the output y: the sign of y is the sign of the pre-activation for
// every slope >= 0. Where y is NaN, or 0, the slope counts.
template <typename F>
FASTGEN_FORMULA F leaky_relu_mask(F g, F y, F slope) {
  return y > F(0) ? g : g * slope;
}

// ------------------------------------------------------------------------------------------ tanh

// 2^x and 1 / x within 2 units in the last place; what is below 2^-126 counts as 0.
FASTGEN_FORMULA float power_of_two(float x) {
#if defined(__CUDA_ARCH__)
  float result;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
#else
  return exp2f(x);
#endif
}

FASTGEN_FORMULA float reciprocal(float x) {
#if defined(__CUDA_ARCH__)
  float result;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
#else
  return 1.0f / x;
#endif
}

// 1 - 2 / (e^(2 |x|) + 1), and near 0, where digits would be lost, x + x^3 P(x^2): within 3 units
// in the last place, without a branch. NaN goes through.
FASTGEN_FORMULA float hyperbolic_tangent(float x) {
  const float size = fabsf(x);
  const float power = power_of_two(size * 0x1.715476p+1f);
  const float large = 1.0f - reciprocal(multiply_add(power, 0.5f, 0.5f));
  const float s = x * x;
  float p = -0x1.826242p-8f;
  p = multiply_add(p, s, 0x1.54baa2p-6f);
  p = multiply_add(p, s, -0x1.b89926p-5f);
  p = multiply_add(p, s, 0x1.1109bp-3f);
  p = multiply_add(p, s, -0x1.55553ep-2f);
  const float small = multiply_add(p * s, x, x);
  return copysignf(size < 0.6f ? small : large, x);
}

// ----------------------------------------------------------------------------------- Philox4x32-10

struct Words {
  std::uint32_t word[4];
};

FASTGEN_FORMULA std::uint32_t high_word(std::uint32_t a, std::uint32_t b) {
  return static_cast<std::uint32_t>((static_cast<std::uint64_t>(a) * b) >> 32);
}

FASTGEN_FORMULA std::uint32_t low_word(std::uint32_t a, std::uint32_t b) { return a * b; }

// Ten rounds: four random words per counter [Salmon, Moraes, Dror, Shaw, "Parallel Random Numbers:
// As Easy as 1, 2, 3", SC 2011]. Least significant words first. W is a word, or many of them side
// by side (cpu/lanes.h).
template <typename W>
FASTGEN_FORMULA void philox_rounds(W (&c)[4], std::uint32_t key0, std::uint32_t key1) {
#if defined(__CUDACC__)
#pragma unroll
#elif defined(__GNUC__) && !defined(__clang__)
#pragma GCC unroll 10
#endif
  for (int round = 0; round < 10; ++round) {
    const W high0 = high_word(c[0], 0xD2511F53u), low0 = low_word(c[0], 0xD2511F53u);
    const W high1 = high_word(c[2], 0xCD9E8D57u), low1 = low_word(c[2], 0xCD9E8D57u);
    c[0] = high1 ^ c[1] ^ key0;
    c[1] = low1;
    c[2] = high0 ^ c[3] ^ key1;
    c[3] = low0;
    key0 += 0x9E3779B9u;
    key1 += 0xBB67AE85u;
  }
}

FASTGEN_FORMULA Words philox4x32(Words counter, std::uint32_t key0, std::uint32_t key1) {
  philox_rounds(counter.word, key0, key1);
  return counter;
}

// The words of elements 4 * group ... 4 * group + 3 under a 64-bit seed.
FASTGEN_FORMULA Words random_words(std::int64_t seed, std::int64_t group) {
  const std::uint64_t key = static_cast<std::uint64_t>(seed);
  const std::uint64_t count = static_cast<std::uint64_t>(group);
  return philox4x32(
      {{static_cast<std::uint32_t>(count), static_cast<std::uint32_t>(count >> 32), 0u, 0u}},
      static_cast<std::uint32_t>(key), static_cast<std::uint32_t>(key >> 32));
}

// ----------------------------------------------------------------------------------------- normals

// In 16 bits a reparameterization's arithmetic costs as much as its memory. So the functions below
// know their arguments' range and need no special cases, tables or branches: the float32 backward
// is 600 SASS instructions instead of 792 with the library's functions (sm_90a, nvcc 13.0).
// Coefficients are minimax fits (least squares, reweighted until the error is even), rounded to
// float32. Host and device give the same bits, but for the root.

// In (0, 1]: a word is rounded to float32 first, so the largest ones give 1.
FASTGEN_FORMULA float uniform(std::uint32_t word) {
  return (static_cast<float>(word) + 0.5f) * 0x1p-32f;
}

// log u for u in [2^-33, 1]: u = 2^k m with m in [2/3, 4/3), and log m = f - f^2/2 + f^3 Q(f) of
// f = m - 1, whose error is 2^-27 of the result. Near u = 1 k is 0, so no digit is lost there.
FASTGEN_FORMULA float log_of_uniform(float u) {
  const std::uint32_t bits = bits_of(u);
  const std::uint32_t power = (bits - 0x3f2aaaabu) & 0xff800000u;  // k * 2^23
  const float k = static_cast<float>(static_cast<std::int32_t>(power));
  const float f = float_of(bits - power) - 1.0f;
  float q = -0x1.08058cp-3f;
  q = multiply_add(q, f, 0x1.1e66bcp-3f);
  q = multiply_add(q, f, -0x1.f3113ep-4f);
  q = multiply_add(q, f, 0x1.1ed716p-3f);
  q = multiply_add(q, f, -0x1.559dccp-3f);
  q = multiply_add(q, f, 0x1.99d028p-3f);
  q = multiply_add(q, f, -0x1.fffefp-3f);
  q = multiply_add(q, f, 0x1.555506p-2f);
  const float log_m = multiply_add(f * f, multiply_add(q, f, -0.5f), f);
  return multiply_add(k, 0x1.62e43p-1f * 0x1p-23f, log_m);
}

// sin and cos of 2 pi v for v in [0, 1]: a quarter turn is subtracted as often as it fits, exactly,
// and what is left, r in [-1/2, 1/2] quarters, goes into polynomials.
FASTGEN_FORMULA void sin_cos_of_turn(float v, float* sine, float* cosine) {
  constexpr float kRound = 0x1.8p23f;  // adding it leaves the nearest integer in the low bits
  const float shifted = multiply_add(v, 4.0f, kRound);
  const std::uint32_t quarter = bits_of(shifted);
  const float r = multiply_add(v, 4.0f, -(shifted - kRound));
  const float s = r * r;
  float odd = -0x1.2d9302p-8f;
  odd = multiply_add(odd, s, 0x1.465e92p-4f);
  odd = multiply_add(odd, s, -0x1.4abbbap-1f);
  odd = multiply_add(odd, s, 0x1.921fb6p+0f) * r;
  float even = 0x1.d9d57ep-11f;
  even = multiply_add(even, s, -0x1.55c5ep-6f);
  even = multiply_add(even, s, 0x1.03c1dep-2f);
  even = multiply_add(even, s, -0x1.3bd3ccp+0f);
  even = multiply_add(even, s, 1.0f);
  const bool swap = (quarter & 1u) != 0;
  *sine = float_of(bits_of(swap ? even : odd) ^ ((quarter & 2u) << 30));
  *cosine = float_of(bits_of(swap ? odd : even) ^ (((quarter + 1u) & 2u) << 30));
}

// Of a number that is 0 or at least 2^-24, which is what -2 log u can be.
FASTGEN_FORMULA float radius_of_square(float square) {
#if defined(__CUDA_ARCH__)
  float root;
  asm("sqrt.approx.ftz.f32 %0, %1;" : "=f"(root) : "f"(square));
  return root;
#else
  return sqrtf(square);
#endif
}

// Box-Muller: two words give two independent standard normal numbers.
FASTGEN_FORMULA void normal_pair(std::uint32_t word0, std::uint32_t word1, float* first,
                                 float* second) {
  const float radius = radius_of_square(-2.0f * log_of_uniform(uniform(word0)));
  float sine, cosine;
  sin_cos_of_turn(uniform(word1), &sine, &cosine);
  *first = radius * cosine;
  *second = radius * sine;
}

// The noise of elements 4 * group ... 4 * group + 3.
FASTGEN_FORMULA void normals(std::int64_t seed, std::int64_t group, float (&values)[4]) {
  const Words words = random_words(seed, group);
  normal_pair(words.word[0], words.word[1], &values[0], &values[1]);
  normal_pair(words.word[2], words.word[3], &values[2], &values[3]);
}

// ---------------------------------------------------------------------- reparameterization and KL

// Everything exponential about a logvar l, from one expansion of h = l / 2 = n log 2 + r:
//   deviation      e^h
//   growth         e^h - 1
//   excess         e^h - 1 - h, without cancellation where l is small
// e^r - 1 = r + r^2 E(r), with an error of 2^-26 of it. NaN goes through. h is held within
// [-87, 88.3], where 2^n is a float32; there e^l has left float32 on both sides.
struct Exponentials {
  float deviation;
  float growth;
  float excess;
};

// max(low, min(x, high)), but NaN where x is.
FASTGEN_FORMULA float clamp_number(float x, float low, float high) {
#if defined(__CUDA_ARCH__)
  float result;
  asm("min.NaN.f32 %0, %1, %2;" : "=f"(result) : "f"(x), "f"(high));
  asm("max.NaN.f32 %0, %1, %2;" : "=f"(result) : "f"(result), "f"(low));
  return result;
#else
  const float below = high < x ? high : x;  // in this order CPUs have it as one instruction
  return low > below ? low : below;
#endif
}

FASTGEN_FORMULA Exponentials exponentials(float logvar) {
  constexpr float kRound = 0x1.8p23f;
  const float h = clamp_number(0.5f * logvar, -87.0f, 88.3f);
  const float shifted = multiply_add(h, 0x1.715476p+0f, kRound);
  const float n = shifted - kRound;
  const float power = float_of((bits_of(shifted) << 23) + 0x3f800000u);  // 2^n
  // log 2 in two pieces, so that r keeps its digits.
  const float r = multiply_add(n, 0x1.05c61p-29f, multiply_add(n, -0x1.62e43p-1f, h));
  float e = 0x1.6bec06p-10f;
  e = multiply_add(e, r, 0x1.122776p-7f);
  e = multiply_add(e, r, 0x1.555674p-5f);
  e = multiply_add(e, r, 0x1.5554bp-3f);
  e = multiply_add(e, r, 0x1.fffffep-2f);
  const float rest = e * (r * r);
  const float p = r + rest;
  const float below = power - 1.0f;
  return {multiply_add(p, power, power), multiply_add(p, power, below),
          multiply_add(rest, power, multiply_add(r, power, below) - h)};
}

FASTGEN_FORMULA float standard_deviation(float logvar) { return exponentials(logvar).deviation; }

// e^l - 1 = (e^h - 1)^2 + 2 (e^h - 1)
FASTGEN_FORMULA float expm1_of_logvar(float logvar) {
  const float growth = exponentials(logvar).growth;
  return multiply_add(growth, growth, 2.0f * growth);
}

// mu^2 + (e^l - 1 - l). Half the sum over a sample is its divergence from N(0, I).
FASTGEN_FORMULA float kl_term(float mu, float logvar) {
  const Exponentials x = exponentials(logvar);
  return multiply_add(mu, mu, multiply_add(x.growth, x.growth, 2.0f * x.excess));
}

// The same in float64, for CPUs alone: there the library's functions are good enough.
FASTGEN_FORMULA double multiply_add(double a, double b, double c) { return a * b + c; }

FASTGEN_FORMULA double standard_deviation(double logvar) { return exp(0.5 * logvar); }

FASTGEN_FORMULA double expm1_of_logvar(double logvar) { return expm1(logvar); }

FASTGEN_FORMULA double kl_term(double mu, double logvar) {
  return mu * mu + (expm1(logvar) - logvar);
}

FASTGEN_END
