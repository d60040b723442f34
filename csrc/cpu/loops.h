// What loops of CPU kernels share: the type that arithmetic is done in, and hints for the compiler.
#pragma once

#include "elements.h"

// Before a loop whose steps do not depend on each other, though one may write where it reads
// (in-place forms): vectorized without a check for overlap.
#if defined(__clang__)
#define FASTGEN_INDEPENDENT _Pragma("clang loop vectorize(assume_safety)")
#elif defined(__GNUC__)
#define FASTGEN_INDEPENDENT _Pragma("GCC ivdep")
#else
#define FASTGEN_INDEPENDENT
#endif

// Before loops over registers: only unrolled early do arrays of vectors stay out of memory.
#if defined(__clang__)
#define FASTGEN_UNROLLED _Pragma("unroll")
#else
#define FASTGEN_UNROLLED _Pragma("GCC unroll 16")
#endif

FASTGEN_BEGIN

template <typename T>
struct WideOf {
  using type = float;
};
template <>
struct WideOf<double> {
  using type = double;
};
template <typename T>
using Wide = typename WideOf<T>::type;

template <typename T>
FASTGEN_FORMULA Wide<T> widen(T value) {
  return to_float(value);
}
template <>
FASTGEN_FORMULA double widen(double value) {
  return value;
}

template <typename T>
FASTGEN_FORMULA T narrow(Wide<T> value) {
  return from_float<T>(value);
}
template <>
FASTGEN_FORMULA double narrow<double>(double value) {
  return value;
}

FASTGEN_END
