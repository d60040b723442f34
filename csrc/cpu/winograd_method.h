// The transforms between tiles and the points at which Winograd's convolution multiplies.
//
// m neighbouring outputs of a one-dimensional convolution with r taps are coefficients of a product
// of polynomials; they follow from its values at r + m - 1 points (Winograd 1980; Lavin and Gray,
// arXiv:1509.09308):
//
//   y = A^T ((G g) * (B^T d)),   y: m outputs, g: r taps, d: r + m - 1 inputs, *: number by number
//
// In two dimensions each transform is applied to rows and columns: a tile of 2x2 outputs takes
// (r + 1)^2 products instead of 4 r^2, one of 3x3 (r + 2)^2 instead of 9 r^2. A convolution of stride
// s with s * r taps is the sum of s phases, each with every s-th input and tap; the phases are added
// up before A^T.
//
// 1, -1, infinity and, where a fourth is needed, 0 are the points: among all small ones these have the
// least rounding errors, and a fifth would multiply them. Relative to PyTorch's own, root mean squares
// over normal numbers, 128 channels: 0.7 to 1.4 in float32, 1.8 to 2.7 in bfloat16.
#pragma once

#include "cpu/product.h"
#include "cpu/winograd_plan.h"

#define FASTGEN_INLINE inline __attribute__((always_inline))

FASTGEN_BEGIN

template <int kTaps, int kOutputs>
struct InputMatrix;  // B^T
template <int kTaps, int kOutputs>
struct OutputMatrix;  // A^T
template <int kTaps, int kPoints>
struct WeightMatrix;  // G

// The points of two outputs are the first three of those of three: one transformed weight serves
// both.
template <>
struct InputMatrix<2, 2> {
  static constexpr int kRows = 3, kColumns = 3;
  static constexpr float at(int i, int j) {
    constexpr float m[3][3] = {{1, 1, 0}, {1, -1, 0}, {-1, 0, 1}};
    return m[i][j];
  }
};
template <>
struct OutputMatrix<2, 2> {
  static constexpr int kRows = 2, kColumns = 3;
  static constexpr float at(int i, int j) {
    constexpr float m[2][3] = {{1, 1, 0}, {1, -1, 1}};
    return m[i][j];
  }
};
template <>
struct InputMatrix<2, 3> {
  static constexpr int kRows = 4, kColumns = 4;
  static constexpr float at(int i, int j) {
    constexpr float m[4][4] = {{0, 1, 1, 0}, {0, -1, 1, 0}, {0, -1, 0, 1}, {1, 0, -1, 0}};
    return m[i][j];
  }
};
template <>
struct OutputMatrix<2, 3> {
  static constexpr int kRows = 3, kColumns = 4;
  static constexpr float at(int i, int j) {
    constexpr float m[3][4] = {{1, 1, 0, 1}, {1, -1, 0, 0}, {1, 1, 1, 0}};
    return m[i][j];
  }
};
template <int kPoints>
struct WeightMatrix<2, kPoints> {
  static constexpr int kRows = kPoints, kColumns = 2;
  static constexpr float at(int i, int j) {
    constexpr float m[4][2] = {{.5f, .5f}, {.5f, -.5f}, {0, 1}, {1, 0}};
    return m[i][j];
  }
};

template <>
struct InputMatrix<3, 2> : InputMatrix<2, 3> {};  // it depends on the points alone
template <>
struct OutputMatrix<3, 2> {
  static constexpr int kRows = 2, kColumns = 4;
  static constexpr float at(int i, int j) {
    constexpr float m[2][4] = {{1, 1, 0, 1}, {1, -1, 1, 0}};
    return m[i][j];
  }
};
template <>
struct WeightMatrix<3, 4> {
  static constexpr int kRows = 4, kColumns = 3;
  static constexpr float at(int i, int j) {
    constexpr float m[4][3] = {{.5f, .5f, .5f}, {.5f, -.5f, .5f}, {0, 0, 1}, {1, 0, 0}};
    return m[i][j];
  }
};

template <typename M>
struct Transposed {
  static constexpr int kRows = M::kColumns, kColumns = M::kRows;
  static constexpr float at(int i, int j) { return M::at(j, i); }
};

// Row kRow of M times the column whose numbers lie `step` apart; what is 0 in M is not looked at.
template <typename M, int kRow, int kColumn = 0, bool kStarted = false, typename V>
FASTGEN_INLINE V row_times(const V* column, int step, V sum) {
  if constexpr (kColumn == M::kColumns) {
    return sum;
  } else {
    constexpr float factor = M::at(kRow, kColumn);
    if constexpr (factor == 0) {
      return row_times<M, kRow, kColumn + 1, kStarted>(column, step, sum);
    } else {
      const V number = column[kColumn * step];
      if constexpr (!kStarted) {
        sum = factor == 1 ? number : factor == -1 ? -number : number * factor;
      } else {
        sum = factor == 1 ? sum + number : factor == -1 ? sum - number : sum + number * factor;
      }
      return row_times<M, kRow, kColumn + 1, true>(column, step, sum);
    }
  }
}

template <typename M, typename V, int... kRow>
FASTGEN_INLINE void column_transform(const V* in, int in_step, V* out, int out_step,
                                     std::integer_sequence<int, kRow...>) {
  ((out[kRow * out_step] = row_times<M, kRow>(in, in_step, V{})), ...);
}

// A matrix for the rows of a tile and one for its columns.
template <typename OfRows, typename OfColumns>
struct Sides {
  using Rows = OfRows;
  using Columns = OfColumns;
};

// out = R in C^T, row by row; rows of `in` and `out` begin kInStep and kOutStep apart.
template <typename S, int kInStep, int kOutStep, typename V>
FASTGEN_INLINE void transform(const V* in, V* out) {
  using R = typename S::Rows;
  using C = typename S::Columns;
  constexpr std::make_integer_sequence<int, R::kRows> kEveryRow{};
  constexpr std::make_integer_sequence<int, C::kRows> kEveryColumn{};
  V half[R::kRows * C::kColumns];
  FASTGEN_UNROLLED
  for (int j = 0; j < C::kColumns; ++j) {
    column_transform<R>(in + j, kInStep, half + j, C::kColumns, kEveryRow);
  }
  FASTGEN_UNROLLED
  for (int i = 0; i < R::kRows; ++i) {
    column_transform<C>(half + i * C::kColumns, 1, out + i * kOutStep, 1, kEveryColumn);
  }
}

// A convolution of kTaps * kStride taps a side and its tiles, of 2 or kMost outputs a side. Point
// (i, j) is number i * kSide + j, whatever the tile.
template <int kTaps_, int kStride_, int kMost_>
struct Method {
  static constexpr int kTaps = kTaps_, kStride = kStride_, kMost = kMost_;
  static constexpr int kPhases = kStride * kStride, kKernel = kTaps * kStride;
  static constexpr int kSide = kTaps + kMost - 1, kPoints = kSide * kSide;
  using Weight = Sides<WeightMatrix<kTaps, kSide>, WeightMatrix<kTaps, kSide>>;
  using Taps = Sides<Transposed<WeightMatrix<kTaps, kSide>>, Transposed<WeightMatrix<kTaps, kSide>>>;

  // Of tiles of H x W outputs.
  template <int H, int W>
  struct Tile {
    static constexpr int kHeight = H, kWidth = W;
    static constexpr int kRows = kTaps + H - 1, kColumns = kTaps + W - 1;  // of inputs and of points
    using Input = Sides<InputMatrix<kTaps, H>, InputMatrix<kTaps, W>>;
    using Output = Sides<OutputMatrix<kTaps, H>, OutputMatrix<kTaps, W>>;
    // Their adjoints, from the map and to the input.
    using Map = Sides<Transposed<OutputMatrix<kTaps, H>>, Transposed<OutputMatrix<kTaps, W>>>;
    using Back = Sides<Transposed<InputMatrix<kTaps, H>>, Transposed<InputMatrix<kTaps, W>>>;
  };
};

using Winograd3x3 = Method<3, 1, 2>;
using Winograd4x4 = Method<2, 2, 2>;
using Winograd4x4Mixed = Method<2, 2, 3>;

// run(tile) for the tile of a method that has this size.
template <typename W, typename Run>
FASTGEN_INLINE void by_tile(int height, int width, const Run& run) {
  if constexpr (W::kMost == 2) {
    run(typename W::template Tile<2, 2>{});
  } else if (height == 3) {
    width == 3 ? run(typename W::template Tile<3, 3>{}) : run(typename W::template Tile<3, 2>{});
  } else {
    width == 3 ? run(typename W::template Tile<2, 3>{}) : run(typename W::template Tile<2, 2>{});
  }
}

// run(method, number) for the method of a call and the type of its numbers; both are only types.
template <typename Run>
inline void by_method(const cpu::WinogradShape& shape, const Run& run) {
  const auto by_type = [&](auto method) {
    switch (shape.dtype) {
      case Dtype::float32: return run(method, float{});
      case Dtype::float64: return run(method, double{});
      default: return run(method, BFloat16{});
    }
  };
  if (shape.stride == 1) return by_type(Winograd3x3{});
  return shape.mixed ? by_type(Winograd4x4Mixed{}) : by_type(Winograd4x4{});
}

// Which numbers a vector takes: neighbours, or every second of twice as many, from the first or the
// second on. The latter is one operation for a vector of BFloat16, where widening neighbours is two.
struct Neighbours {
  template <typename T>
  static FASTGEN_INLINE Vector<Wide<T>> load_from(const T* from) {
    return load(from);
  }
};
template <int kFirst>
struct EverySecond;
#if defined(__AVX512BF16__)
template <int kFirst>
struct EverySecond {
  template <typename T>
  static FASTGEN_INLINE Vector<float> load_from(const T* from) {
    const __m512i both = _mm512_loadu_si512(from);
    return reinterpret_cast<Vector<float>>(
        kFirst == 0 ? _mm512_slli_epi32(both, 16)
                    : _mm512_and_si512(both, _mm512_set1_epi32(static_cast<int>(0xffff0000u))));
  }
};
#endif

// Numbers of the kElements rows of a right side, or columns of a left one, that one step of a
// product takes: each vector is those of one row.
inline void store_step(float* to, const Vector<float> (&rows)[1]) { store(to, rows[0]); }
inline void store_step(double* to, const Vector<double> (&rows)[1]) { store(to, rows[0]); }
#if defined(__AVX512BF16__)
inline void store_step(BFloat16* to, const Vector<float> (&rows)[2]) {
  // The numbers of both, one behind the other, in turns.
  alignas(64) static constexpr std::uint16_t kInTurns[32] = {
      0, 16, 1, 17, 2,  18, 3,  19, 4,  20, 5,  21, 6,  22, 7,  23,
      8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
  const __m512i both = reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(rows[1], rows[0]));
  _mm512_storeu_si512(to, _mm512_permutexvar_epi16(_mm512_load_si512(kInTurns), both));
}
#endif

FASTGEN_END
