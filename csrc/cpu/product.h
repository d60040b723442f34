// The matrix product that every image-edge convolution is: windows times a packed matrix.
//
//   out[m][v] (+)= sum over segments s and elements e of a[m * row_step + s * segment_step +
//                  e * step] * b[s * length + e][v]
//
// The left side is read where it lies, one number at a time for all lanes: a row of it is a window
// of a picture (segments: the window's rows), the channels of a pixel or the pixels of a channel.
// The right side is packed, padded to whole vectors and small enough for the first cache.
#pragma once

#include "cpu/vectors.h"

FASTGEN_BEGIN

// Left sides are numbers of the type in which sums are kept.
template <typename T>
struct Plain {
  using Element = T;
  using Sum = T;
  static constexpr int kElements = 1;  // of the left side that one step takes
};

#if defined(__AVX512BF16__)
// Left sides are BFloat16, two neighbours to a step: out += a[0] * b[0] + a[1] * b[1], where every
// operation rounds to float32 and subnormal numbers count as 0 (VDPBF16PS).
struct Pairs {
  using Element = BFloat16;
  using Sum = float;
  static constexpr int kElements = 2;
};
#endif

template <typename T>
struct FormatOf {
  using type = Plain<T>;
};
template <>
struct FormatOf<BFloat16> {
#if defined(__AVX512BF16__)
  using type = Pairs;
#else
  using type = Plain<float>;
#endif
};
// How tensors of T are multiplied.
template <typename T>
using Format = typename FormatOf<T>::type;

// Steps of a segment of `length` elements: rows of the packed matrix.
template <typename F>
inline std::int64_t steps_of(std::int64_t length) {
  return ceil_div(length, F::kElements);
}

// Where element `e` of a segment and column `column` lie in the packed matrix, whose rows hold
// `columns` each.
template <typename F>
inline std::int64_t packed_index(std::int64_t first_row, std::int64_t e, std::int64_t column,
                                 std::int64_t columns) {
  const std::int64_t row = first_row + e / F::kElements;
  return (row * columns + column) * F::kElements + e % F::kElements;
}

template <typename F>
struct Product {
  const typename F::Element* a;
  std::int64_t rows, row_step;
  // `length` elements in each segment; `step` from those that one step takes to those of the next.
  std::int64_t segments, segment_step, length, step;
  const typename F::Element* b;
  std::int64_t columns;  // of the packed matrix
  std::int64_t vectors;  // of its columns to compute, from `b` on
  typename F::Sum* out;
  std::int64_t out_step;
  bool add;
};

// What becomes of sums that go into a map whose filters are neighbours: plus bias, then leaky ReLU
// or the mask of `output`.
template <typename F>
struct Finish {
  const typename F::Sum* bias;  // of the first column
  typename F::Sum slope;
  const typename F::Element* output;  // laid out as `result`, or nullptr
  typename F::Element* result;        // of the first row and column
  std::int64_t step;                  // from row to row
  bool stream;
};

FASTGEN_END

namespace fastgen::cpu::FASTGEN_CPU {

void multiply(const Product<Plain<float>>& product);
void multiply(const Product<Plain<double>>& product);
#if defined(__AVX512BF16__)
void multiply(const Product<Pairs>& product);
#endif

// The same straight from registers into the map; `out` and `add` are not looked at.
void multiply(const Product<Plain<float>>& product, const Finish<Plain<float>>& finish);
void multiply(const Product<Plain<double>>& product, const Finish<Plain<double>>& finish);
#if defined(__AVX512BF16__)
void multiply(const Product<Pairs>& product, const Finish<Pairs>& finish);
#endif

}  // namespace fastgen::cpu::FASTGEN_CPU
