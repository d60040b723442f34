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

// Both words of a product. W is a word, or many of them side by side (cpu/lanes.h).
template <typename W>
FASTGEN_FORMULA void whole_product(W a, std::uint32_t b, W* high, W* low) {
  *high = high_word(a, b);
  *low = low_word(a, b);
}

#if defined(__CUDA_ARCH__)
// Spelled out: nvcc makes two multiplications of it.
FASTGEN_FORMULA void whole_product(std::uint32_t a, std::uint32_t b, std::uint32_t* high,
                                   std::uint32_t* low) {
  asm("{\n\t.reg .b64 product;\n\tmul.wide.u32 product, %2, %3;\n\tmov.b64 {%0, %1}, product;\n\t}"
      : "=r"(*low), "=r"(*high)
      : "r"(a), "r"(b));
}
#endif

constexpr std::uint32_t kPhiloxFactor0 = 0xD2511F53u, kPhiloxFactor1 = 0xCD9E8D57u;
constexpr std::uint32_t kPhiloxStep0 = 0x9E3779B9u, kPhiloxStep1 = 0xBB67AE85u;

template <typename W>
FASTGEN_FORMULA void philox_round(W (&c)[4], std::uint32_t key0, std::uint32_t key1) {
  W high0, low0, high1, low1;
  whole_product(c[0], kPhiloxFactor0, &high0, &low0);
  whole_product(c[2], kPhiloxFactor1, &high1, &low1);
  c[0] = high1 ^ c[1] ^ key0;
  c[1] = low1;
  c[2] = high0 ^ c[3] ^ key1;
  c[3] = low0;
}

// Ten rounds: four random words per counter [Salmon, Moraes, Dror, Shaw, "Parallel Random Numbers:
// As Easy as 1, 2, 3", SC 2011]. Least significant words first.
template <typename W>
FASTGEN_FORMULA void philox_rounds(W (&c)[4], std::uint32_t key0, std::uint32_t key1) {
#if defined(__CUDACC__)
#pragma unroll
#elif defined(__GNUC__) && !defined(__clang__)
#pragma GCC unroll 10
#endif
  for (int round = 0; round < 10; ++round) {
    philox_round(c, key0, key1);
    key0 += kPhiloxStep0;
    key1 += kPhiloxStep1;
  }
}

FASTGEN_FORMULA Words philox4x32(Words counter, std::uint32_t key0, std::uint32_t key1) {
  philox_rounds(counter.word, key0, key1);
  return counter;
}

// The keys of all rounds under a 64-bit seed.
struct PhiloxKeys {
  std::uint32_t key[10][2];
};

FASTGEN_FORMULA PhiloxKeys philox_keys(std::int64_t seed) {
  PhiloxKeys keys;
  std::uint32_t key0 = static_cast<std::uint32_t>(seed);
  std::uint32_t key1 = static_cast<std::uint32_t>(static_cast<std::uint64_t>(seed) >> 32);
#if defined(__CUDACC__)
#pragma unroll
#endif
  for (int round = 0; round < 10; ++round) {
#if defined(__CUDA_ARCH__)
    asm volatile("" : "+r"(key0), "+r"(key1));  // or nvcc adds them up again for every counter
#endif
    keys.key[round][0] = key0;
    keys.key[round][1] = key1;
    key0 += kPhiloxStep0;
    key1 += kPhiloxStep1;
  }
  return keys;
}

// The words of elements 4 * group ... 4 * group + 3: those of the counter (group, 0), whose first
// round is mostly multiplications of 0.
FASTGEN_FORMULA Words random_words(const PhiloxKeys& keys, std::int64_t group) {
  const std::uint64_t count = static_cast<std::uint64_t>(group);
  std::uint32_t high, low;
  whole_product(static_cast<std::uint32_t>(count), kPhiloxFactor0, &high, &low);
  std::uint32_t c[4] = {static_cast<std::uint32_t>(count >> 32) ^ keys.key[0][0], 0u,
                        high ^ keys.key[0][1], low};
#if defined(__CUDACC__)
#pragma unroll
#endif
  for (int round = 1; round < 10; ++round) {
    philox_round(c, keys.key[round][0], keys.key[round][1]);
  }
  return {{c[0], c[1], c[2], c[3]}};
}

FASTGEN_FORMULA Words random_words(std::int64_t seed, std::int64_t group) {
  return random_words(philox_keys(seed), group);
}

// -------------------------------------------------------------------------- special function unit

// What a GPU computes in one instruction, a fourth as fast as a multiplication. Numbers below
// 2^-126 count as 0.

// Off by 2^-22 of the result, or by 2^-22 where x lies in (1/2, 2).
FASTGEN_FORMULA float unit_log2(float x) {
#if defined(__CUDA_ARCH__)
  float result;
  asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
#else
  return log2f(x);
#endif
}

// Off by 2^-22 of the result.
FASTGEN_FORMULA float unit_exp2(float x) {
#if defined(__CUDA_ARCH__)
  float result;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
#else
  return exp2f(x);
#endif
}

// Off by 2^-20.9 for x in [-pi, pi], as the cosine.
FASTGEN_FORMULA float unit_sine(float x) {
#if defined(__CUDA_ARCH__)
  float result;
  asm("sin.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
#else
  return sinf(x);
#endif
}

FASTGEN_FORMULA float unit_cosine(float x) {
#if defined(__CUDA_ARCH__)
  float result;
  asm("cos.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
#else
  return cosf(x);
#endif
}

// Of a number that is 0 or not below 2^-126; off by 2^-23 of the result.
FASTGEN_FORMULA float unit_root(float x) {
#if defined(__CUDA_ARCH__)
  float result;
  asm("sqrt.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
#else
  return sqrtf(x);
#endif
}

// ----------------------------------------------------------------------------------------- normals

// In 16 bits a reparameterization's arithmetic costs as much as its memory. So the functions below
// know their arguments' range and need no special cases, tables or branches: the float32 backward
// is 600 SASS instructions instead of 792 with the library's functions (sm_90a, nvcc 13.0).
// Coefficients are minimax fits (least squares, reweighted until the error is even), rounded to
// float32. Host and device give the same bits, but for the root.

// In (0, 1]: a word is rounded to float32 first, so the largest ones give 1.
FASTGEN_FORMULA float uniform(std::uint32_t word) {
#if defined(__CUDA_ARCH__)
  return fmaf(static_cast<float>(word), 0x1p-32f, 0x1p-33f);  // the same bits in one operation
#else
  return (static_cast<float>(word) + 0.5f) * 0x1p-32f;
#endif
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

// Box-Muller: two words give two independent standard normal numbers.
FASTGEN_FORMULA void normal_pair(std::uint32_t word0, std::uint32_t word1, float* first,
                                 float* second) {
  const float radius = unit_root(-2.0f * log_of_uniform(uniform(word0)));
  float sine, cosine;
  sin_cos_of_turn(uniform(word1), &sine, &cosine);
  *first = radius * cosine;
  *second = radius * sine;
}

// The same from the special function unit, for GPU kernels whose results have 16 bits: off by 1e-6
// of the radius, or by 2.5e-6 where that is small, while float16 keeps 5e-4 of a number.
//
// The unit's log2 near 1 has an absolute error only, 2^-22, while the square of the radius vanishes
// there. But each partial sum of t + t^2/2 + t^3/3 + ... with t = 1 - u is below -log u. So is the
// unit's value where its error is taken off; then the larger of both is right everywhere. The angle
// is taken from the word as a signed number: that is less by one turn, or the same, and finer.
FASTGEN_FORMULA void coarse_normal_pair(std::uint32_t word0, std::uint32_t word1, float* first,
                                        float* second) {
  const float u = uniform(word0);
  const float t = 1.0f - u;
  const float elsewhere = multiply_add(unit_log2(u), -0x1.62e43p+0f, -0x1.62e43p-22f);
  const float radius = unit_root(fmaxf(t * (t + 2.0f), elsewhere));
  const float angle =
      static_cast<float>(static_cast<std::int32_t>(word1)) * (0x1.921fb6p+2f * 0x1p-32f);
  *first = radius * unit_cosine(angle);
  *second = radius * unit_sine(angle);
}

// The noise of elements 4 * group ... 4 * group + 3, under a seed or its keys.
template <bool kCoarse = false, typename Key>
FASTGEN_FORMULA void normals(const Key& key, std::int64_t group, float (&values)[4]) {
  const Words words = random_words(key, group);
  for (int k = 0; k < 4; k += 2) {
    if (kCoarse) {
      coarse_normal_pair(words.word[k], words.word[k + 1], &values[k], &values[k + 1]);
    } else {
      normal_pair(words.word[k], words.word[k + 1], &values[k], &values[k + 1]);
    }
  }
}

// ---------------------------------------------------------------------- reparameterization and KL

// Everything exponential about a logvar l, from one expansion of h = l / 2 = n log 2 + r:
//   deviation      e^h
//   growth         e^h - 1
//   excess         e^h - 1 - h, without cancellation where l is small
// e^r - 1 = r + r^2 E(r), with an error of 2^-26 of it. NaN goes through. In e^h, h is held within
// [-87, 88.3], where 2^n is a float32; there e^l has left float32 on both sides.
struct Exponentials {
  float deviation;
  float growth;
  float excess;
};

// min(x, high) and max(x, low), but NaN where x is.
FASTGEN_FORMULA float at_most(float x, float high) {
#if defined(__CUDA_ARCH__)
  float result;
  asm("min.NaN.f32 %0, %1, %2;" : "=f"(result) : "f"(x), "f"(high));
  return result;
#else
  return high < x ? high : x;  // in this order CPUs have it as one instruction
#endif
}

FASTGEN_FORMULA float at_least(float x, float low) {
#if defined(__CUDA_ARCH__)
  float result;
  asm("max.NaN.f32 %0, %1, %2;" : "=f"(result) : "f"(x), "f"(low));
  return result;
#else
  return low > x ? low : x;
#endif
}

FASTGEN_FORMULA Exponentials exponentials(float logvar) {
  constexpr float kRound = 0x1.8p23f;
  const float half = at_most(0.5f * logvar, 88.3f);
  const float h = at_least(half, -87.0f);
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
          multiply_add(rest, power, multiply_add(r, power, below) - half)};
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

// The same from the special function unit, for GPU kernels whose results have 16 bits.
FASTGEN_FORMULA float coarse_deviation(float logvar) {
  return unit_exp2(logvar * 0x1.715476p-1f);
}

// e^l - 1, within 2^-13 of it.
FASTGEN_FORMULA float coarse_expm1_of_logvar(float logvar) {
  const float deviation = coarse_deviation(logvar);
  return fabsf(logvar) < 0x1p-7f ? multiply_add(0.5f * logvar, logvar, logvar)
                                 : multiply_add(deviation, deviation, -1.0f);
}

// The sum of V terms mu^2 + (e^l - 1 - l) of a float32 divergence. The differences e^l - 1 - l have
// absolute errors, those of the unit's e^l, and vanish with l^2. But where they are made less by
// that error their sum is too small, and so is that of the series of e^l up to an odd power, here
// the third: the larger of both sums is right everywhere, by 2^-19 (1 + e^l) a term at most, and by
// 2^-10 of the sum where that is less, as much as rounding l to 16 bits makes.
// Terms outside of [begin, end) have to be 0.
template <int V>
FASTGEN_FORMULA float coarse_kl_terms(const float (&mu)[V], const float (&logvar)[V],
                                      int begin = 0, int end = V) {
  const int count = (end < V ? end : V) - (begin > 0 ? begin : 0);
  float squares = 0.0f, series = 0.0f;
  float direct = -static_cast<float>(V) - static_cast<float>(count) * 0x1.8p-21f;
#if defined(__CUDACC__)
#pragma unroll
#endif
  for (int v = 0; v < V; ++v) {
    const float l = logvar[v], deviation = coarse_deviation(l);
    squares = multiply_add(mu[v], mu[v], squares);
    direct = multiply_add(deviation, deviation, direct) - l;
    series = multiply_add(l * l, multiply_add(l, 0x1.555556p-3f, 0.5f), series);
  }
  return squares + fmaxf(direct, series);
}

// The same in float64, for CPUs alone: there the library's functions are good enough.
FASTGEN_FORMULA double multiply_add(double a, double b, double c) { return a * b + c; }

FASTGEN_FORMULA double standard_deviation(double logvar) { return exp(0.5 * logvar); }

FASTGEN_FORMULA double expm1_of_logvar(double logvar) { return expm1(logvar); }

FASTGEN_FORMULA double kl_term(double mu, double logvar) {
  return mu * mu + (expm1(logvar) - logvar);
}

FASTGEN_END
