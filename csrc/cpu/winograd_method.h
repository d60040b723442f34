// The transforms between tiles and the points at which Winograd's convolution multiplies.
//
// Two neighbouring outputs of a one-dimensional convolution with r taps are coefficients of a
// product of polynomials; they follow from its values at r + 1 points (Winograd 1980; Lavin and
// Gray, arXiv:1509.09308):
//
//   y = A^T ((G g) * (B^T d)),   y: 2 outputs, g: r taps, d: r + 1 inputs, *: number by number
//
// In two dimensions each transform is applied to rows and columns: (r + 1)^2 products a tile instead
// of 4 r^2. A convolution of stride s with s * r taps is the sum of s phases, each with every s-th
// input and tap; the phases are added up before A^T.
//
// 1, -1 and infinity are the points for r = 2, with 0 for r = 3: among all small ones these have the
// least rounding errors. Relative to PyTorch's own, root mean squares over normal numbers, 128
// channels: 1.1 (r = 2) and 1.0 (r = 3) in float32, 2.4 and 2.5 in bfloat16.
#pragma once

#include "cpu/product.h"
#include "cpu/winograd_plan.h"

#define FASTGEN_INLINE inline __attribute__((always_inline))

FASTGEN_BEGIN

// 4x4, stride 2.
struct Winograd4x4 {
  static constexpr int kStride = 2, kTaps = 2, kPoints = 3;
  struct Input {  // B^T
    static constexpr int kRows = 3, kColumns = 3;
    static constexpr float at(int i, int j) {
      constexpr float m[3][3] = {{1, 1, 0}, {1, -1, 0}, {-1, 0, 1}};
      return m[i][j];
    }
  };
  struct Weight {  // G
    static constexpr int kRows = 3, kColumns = 2;
    static constexpr float at(int i, int j) {
      constexpr float m[3][2] = {{.5f, .5f}, {.5f, -.5f}, {0, 1}};
      return m[i][j];
    }
  };
  struct Output {  // A^T
    static constexpr int kRows = 2, kColumns = 3;
    static constexpr float at(int i, int j) {
      constexpr float m[2][3] = {{1, 1, 0}, {1, -1, 1}};
      return m[i][j];
    }
  };
};

// 3x3, stride 1.
struct Winograd3x3 {
  static constexpr int kStride = 1, kTaps = 3, kPoints = 4;
  struct Input {
    static constexpr int kRows = 4, kColumns = 4;
    static constexpr float at(int i, int j) {
      constexpr float m[4][4] = {{1, 0, -1, 0}, {0, 1, 1, 0}, {0, -1, 1, 0}, {0, -1, 0, 1}};
      return m[i][j];
    }
  };
  struct Weight {
    static constexpr int kRows = 4, kColumns = 3;
    static constexpr float at(int i, int j) {
      constexpr float m[4][3] = {{1, 0, 0}, {.5f, .5f, .5f}, {.5f, -.5f, .5f}, {0, 0, 1}};
      return m[i][j];
    }
  };
  struct Output {
    static constexpr int kRows = 2, kColumns = 4;
    static constexpr float at(int i, int j) {
      constexpr float m[2][4] = {{1, 1, 1, 0}, {0, 1, -1, 1}};
      return m[i][j];
    }
  };
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

// out = M in M^T; both are square, row by row.
template <typename M, typename V>
FASTGEN_INLINE void transform(const V (&in)[M::kColumns * M::kColumns],
                              V (&out)[M::kRows * M::kRows]) {
  constexpr std::make_integer_sequence<int, M::kRows> kEvery{};
  V half[M::kRows * M::kColumns];
  FASTGEN_UNROLLED
  for (int j = 0; j < M::kColumns; ++j) {
    column_transform<M>(in + j, M::kColumns, half + j, M::kColumns, kEvery);
  }
  FASTGEN_UNROLLED
  for (int i = 0; i < M::kRows; ++i) {
    column_transform<M>(half + i * M::kColumns, 1, out + i * M::kRows, 1, kEvery);
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
  return shape.stride == 2 ? by_type(Winograd4x4{}) : by_type(Winograd3x3{});
}

// Numbers of the kElements rows of a right side, or columns of a left one, that one step of a
// product takes: each vector is those of one row.
inline void store_step(float* to, const Vector<float> (&rows)[1]) { store(to, rows[0]); }
inline void store_step(double* to, const Vector<double> (&rows)[1]) { store(to, rows[0]); }
#if defined(__AVX512BF16__)
inline void store_step(BFloat16* to, const Vector<float> (&rows)[2]) {
  const __m512i first = _mm512_cvtepu16_epi32(reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(rows[0])));
  const __m512i second =
      _mm512_cvtepu16_epi32(reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(rows[1])));
  _mm512_storeu_si512(to, _mm512_or_si512(first, _mm512_slli_epi32(second, 16)));
}
#endif

FASTGEN_END
