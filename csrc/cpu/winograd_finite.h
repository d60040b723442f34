// What is not finite: found in whole vectors, and put right one lane after the other.
#pragma once

#include "cpu/vectors.h"

FASTGEN_BEGIN

// Stays 0 in every lane as long as all numbers are finite.
template <typename T>
struct Finite {
  Vector<T> difference{};

  inline void see(Vector<T> numbers) { difference += numbers - numbers; }
  inline bool all_were() const {
    const auto wrong = difference != difference;
#if defined(__AVX512F__)
    return _mm512_test_epi32_mask(reinterpret_cast<__m512i>(wrong),
                                  reinterpret_cast<__m512i>(wrong)) == 0;
#else
    bool found = false;
    for (int i = 0; i < kLanes<T>; ++i) found |= wrong[i] != 0;
    return !found;
#endif
  }
};

// The vector with exact(lane) in place of what is not finite.
template <typename T, typename Exact>
inline Vector<T> with_exact(Vector<T> numbers, const Exact& exact) {
  Finite<T> finite;
  finite.see(numbers);
  if (finite.all_were()) return numbers;
  T lanes[kLanes<T>];
  store(lanes, numbers);
  for (int i = 0; i < kLanes<T>; ++i) {
    if (lanes[i] - lanes[i] != 0) lanes[i] = exact(i);
  }
  return load(lanes);
}

FASTGEN_END
