// One vector register of the CPU capability being compiled, by the compiler's vector extension.
#pragma once

#include <type_traits>
#include <utility>

#include "cpu/loops.h"

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

FASTGEN_BEGIN

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64, kRegisters = 32;
#elif defined(__AVX__)
constexpr int kVectorBytes = 32, kRegisters = 16;
#elif defined(__aarch64__)
constexpr int kVectorBytes = 16, kRegisters = 32;
#else
constexpr int kVectorBytes = 16, kRegisters = 16;
#endif

template <typename T>
struct VectorOf;
template <>
struct VectorOf<float> {
  typedef float type __attribute__((vector_size(kVectorBytes)));
  typedef std::int32_t indices __attribute__((vector_size(kVectorBytes)));
};
template <>
struct VectorOf<double> {
  typedef double type __attribute__((vector_size(kVectorBytes)));
  typedef std::int64_t indices __attribute__((vector_size(kVectorBytes)));
};
template <typename T>
using Vector = typename VectorOf<T>::type;
template <typename T>
constexpr int kLanes = kVectorBytes / static_cast<int>(sizeof(T));

template <typename T>
inline Vector<T> all(T value) {
  return value - Vector<T>{};  // unlike +, this keeps -0.0 and folds into a broadcast
}

// ---------------------------------------------------------------------------- memory and registers

// Bits of as many BFloat16 and float32 as a vector of float32 holds.
typedef std::uint16_t HalfBits __attribute__((vector_size(kVectorBytes / 2)));
typedef std::uint32_t WordBits __attribute__((vector_size(kVectorBytes)));

template <typename T>
inline Vector<T> load(const T* from) {
  Vector<T> vector;
  __builtin_memcpy(&vector, from, sizeof(vector));
  return vector;
}

inline Vector<float> load(const BFloat16* from) {
#if defined(__AVX512F__)
  __m256i half;
  __builtin_memcpy(&half, from, sizeof(half));
  return reinterpret_cast<Vector<float>>(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
#else
  HalfBits bits;
  __builtin_memcpy(&bits, from, sizeof(bits));
  return reinterpret_cast<Vector<float>>(__builtin_convertvector(bits, WordBits) << 16);
#endif
}

template <typename T>
inline void store(T* to, Vector<T> vector) {
  __builtin_memcpy(to, &vector, sizeof(vector));
}

template <typename T>
inline void store_exactly(T* to, Vector<T> vector) {
  store(to, vector);
}

// With the digits of subnormal numbers, which the CPU's instruction makes 0.
inline void store_exactly(BFloat16* to, Vector<float> vector) {
  const WordBits word = reinterpret_cast<WordBits>(vector);
  const WordBits rounded = (word + 0x7fffu + ((word >> 16) & 1u)) >> 16;
  const WordBits is_nan = reinterpret_cast<WordBits>(vector != vector);
  const HalfBits bits =
      __builtin_convertvector((rounded & ~is_nan) | (is_nan & 0x7fffu), HalfBits);
  __builtin_memcpy(to, &bits, sizeof(bits));
}

inline void store(BFloat16* to, Vector<float> vector) {
#if defined(__AVX512BF16__)
  const __m256bh bits = _mm512_cvtneps_pbh(vector);
  __builtin_memcpy(to, &bits, sizeof(bits));
#else
  store_exactly(to, vector);
#endif
}

#if defined(__AVX512F__)
inline __mmask16 first_lanes(int count) { return static_cast<__mmask16>((1u << count) - 1); }
inline Vector<float> load_lanes(const float* from, int count) {
  return _mm512_maskz_loadu_ps(first_lanes(count), from);
}
inline Vector<double> load_lanes(const double* from, int count) {
  return _mm512_maskz_loadu_pd(static_cast<__mmask8>(first_lanes(count)), from);
}
inline Vector<float> load_lanes(const BFloat16* from, int count) {
  const __m512i words = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(first_lanes(count), from));
  return reinterpret_cast<Vector<float>>(_mm512_slli_epi32(words, 16));
}
// Up to 32 neighbours as they are, two in a lane; 0 behind them.
inline Vector<float> load_bits(const BFloat16* from, int count) {
  const std::uint32_t lanes = count < 32 ? (std::uint32_t{1} << count) - 1 : ~std::uint32_t{0};
  return reinterpret_cast<Vector<float>>(_mm512_maskz_loadu_epi16(lanes, from));
}
// The upper halves of two numbers in a lane: those of `low` below.
inline Vector<float> pair_lanes(Vector<float> low, Vector<float> high) {
  const __m512i below = _mm512_srli_epi32(reinterpret_cast<__m512i>(low), 16);
  const __m512i above = reinterpret_cast<__m512i>(high);
  return reinterpret_cast<Vector<float>>(
      _mm512_or_si512(below, _mm512_and_si512(above, _mm512_set1_epi32(-65536))));
}
inline void store_lanes(float* to, Vector<float> vector, int count) {
  _mm512_mask_storeu_ps(to, first_lanes(count), vector);
}
inline void store_lanes(double* to, Vector<double> vector, int count) {
  _mm512_mask_storeu_pd(to, static_cast<__mmask8>(first_lanes(count)), vector);
}
inline void store_lanes(BFloat16* to, Vector<float> vector, int count) {
  BFloat16 values[16];
  store(values, vector);
  __m256i bits;
  __builtin_memcpy(&bits, values, sizeof(bits));
  _mm256_mask_storeu_epi16(to, first_lanes(count), bits);
}
#else
template <typename T>
inline Vector<Wide<T>> load_lanes(const T* from, int count) {
  T values[kLanes<Wide<T>>] = {};
  for (int i = 0; i < count; ++i) values[i] = from[i];
  return load(values);
}
template <typename T>
inline void store_lanes(T* to, Vector<Wide<T>> vector, int count) {
  T values[kLanes<Wide<T>>];
  store(values, vector);
  for (int i = 0; i < count; ++i) to[i] = values[i];
}
#endif

// The first `count` lanes, at least one; the others are 0.
template <typename T>
inline Vector<Wide<T>> load(const T* from, int count) {
  return count >= kLanes<Wide<T>> ? load(from) : load_lanes(from, count);
}

template <typename T>
inline void store(T* to, Vector<Wide<T>> vector, int count) {
  if (count >= kLanes<Wide<T>>) {
    store(to, vector);
  } else {
    store_lanes(to, vector, count);
  }
}

// Past the caches, where the vector is a whole line of memory: a part of one would be slower.
// finish_streams() before another thread reads it.
template <typename T>
inline void stream(T* to, Vector<Wide<T>> vector) {
#if defined(__AVX512F__)
  if constexpr (sizeof(T) == sizeof(Wide<T>)) {
    if (reinterpret_cast<std::uintptr_t>(to) % 64 == 0) {
      _mm512_stream_si512(reinterpret_cast<__m512i*>(to), reinterpret_cast<__m512i>(vector));
      return;
    }
  }
#endif
  store(to, vector);
}

inline void finish_streams() {
#if defined(__AVX512F__)
  _mm_sfence();
#endif
}

// Two vectors behind each other.
template <typename T>
inline void store_two(T* to, Vector<Wide<T>> first, Vector<Wide<T>> second) {
#if defined(__AVX512BF16__)
  if constexpr (std::is_same_v<T, BFloat16>) {
    _mm512_storeu_si512(to, reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(second, first)));
    return;
  }
#endif
  store(to, first);
  store(to + kLanes<Wide<T>>, second);
}

// ------------------------------------------------------------------------------------- arithmetic

// a * b + c in one rounding where the CPU has that.
inline Vector<float> multiply_add(Vector<float> a, Vector<float> b, Vector<float> c) {
#if defined(__AVX512F__)
  return _mm512_fmadd_ps(a, b, c);
#elif defined(__FMA__)
  return _mm256_fmadd_ps(a, b, c);
#elif defined(__aarch64__)
  return vfmaq_f32(c, a, b);
#else
  return a * b + c;
#endif
}

inline Vector<double> multiply_add(Vector<double> a, Vector<double> b, Vector<double> c) {
#if defined(__AVX512F__)
  return _mm512_fmadd_pd(a, b, c);
#elif defined(__FMA__)
  return _mm256_fmadd_pd(a, b, c);
#elif defined(__aarch64__)
  return vfmaq_f64(c, a, b);
#else
  return a * b + c;
#endif
}

// The formulas of formulas.h, for vectors.
template <typename T>
inline Vector<T> leaky_relu_lanes(Vector<T> a, Vector<T> slope) {
  return a > 0 ? a : a * slope;
}

template <typename T>
inline Vector<T> leaky_relu_mask_lanes(Vector<T> g, Vector<T> y, Vector<T> slope) {
  return y > 0 ? g : g * slope;
}

template <typename T, bool kHigh, int... kLane>
inline Vector<T> zip(Vector<T> a, Vector<T> b, std::integer_sequence<int, kLane...>) {
  constexpr int kWidth = kLanes<T>, kFirst = kHigh ? kWidth / 2 : 0;
#if defined(__clang__)
  return __builtin_shufflevector(a, b, (kFirst + kLane / 2 + kLane % 2 * kWidth)...);
#else
  return __builtin_shuffle(
      a, b, typename VectorOf<T>::indices{(kFirst + kLane / 2 + kLane % 2 * kWidth)...});
#endif
}

// As many rows as lanes become columns. A round rotates the bits of (row, lane) by one place, so
// that after as many rounds as a lane's number has bits, the two have changed places.
template <typename T>
inline void transpose(Vector<T>* rows) {
  constexpr int kWidth = kLanes<T>;
  constexpr std::make_integer_sequence<int, kWidth> kEvery{};
  for (int round = 1; round < kWidth; round *= 2) {
    Vector<T> turned[kWidth];
    for (int i = 0; i < kWidth / 2; ++i) {
      turned[2 * i] = zip<T, false>(rows[i], rows[i + kWidth / 2], kEvery);
      turned[2 * i + 1] = zip<T, true>(rows[i], rows[i + kWidth / 2], kEvery);
    }
    for (int i = 0; i < kWidth; ++i) rows[i] = turned[i];
  }
}

FASTGEN_END
