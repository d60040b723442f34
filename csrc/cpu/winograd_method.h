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
// s is the sum of s * s phases, each with every s-th input and tap; the phases are added up before
// A^T. A side that s does not divide has one tap more in some phases than in others, and the former
// are multiplied at one point more, where the others add nothing: 5 taps are 3 and 2, which tiles of
// two outputs multiply at 4 and 3 points, 49 products instead of 100.
//
// 1, -1, infinity and 0 are the points, as many of them as are needed: among all small ones these have
// the least rounding errors, and a fifth would multiply them. Relative to PyTorch's own, root mean squares
// over normal numbers, 128 channels: 0.6 to 1.3 in float32 (weight gradients of 3x3 with stride 1 2.3
// to 3.1), 1.8 to 2.7 in bfloat16.
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

// Fewer points are the first of those of more: one transformed weight serves tiles of two outputs and
// of three, and phases of fewer taps are added to others at the points that they have.
template <>
struct InputMatrix<1, 2> {
  static constexpr int kRows = 2, kColumns = 2;
  static constexpr float at(int i, int j) {
    constexpr float m[2][2] = {{1, 1}, {1, -1}};
    return m[i][j];
  }
};
template <int kPoints>
struct WeightMatrix<1, kPoints> {
  static constexpr int kRows = kPoints, kColumns = 1;
  static constexpr float at(int i, int) {
    constexpr float m[3] = {.5f, .5f, 1};
    return m[i];
  }
};

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

// It depends on the points alone.
template <>
struct InputMatrix<1, 3> : InputMatrix<2, 2> {};
template <>
struct InputMatrix<3, 2> : InputMatrix<2, 3> {};
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

// Every point that transform S leads to, as its number among those of a method.
template <typename S, int kSide, typename Do>
FASTGEN_INLINE void every_point(const Do& run) {
  FASTGEN_UNROLLED
  for (int i = 0; i < S::Rows::kRows; ++i) {
    FASTGEN_UNROLLED
    for (int j = 0; j < S::Columns::kRows; ++j) run(i * kSide + j);
  }
}

// The same for so many rows and columns of points of method W, in a loop: for what takes long anyway.
template <typename W, typename Do>
inline void each_point(int rows, int columns, const Do& run) {
  for (int i = 0; i < rows; ++i) {
    for (int j = 0; j < columns; ++j) run(i * W::kSide + j);
  }
}

// The taps of a phase.
template <int kDown_, int kRight_>
struct Taps {
  static constexpr int kDown = kDown_, kRight = kRight_, kCount = kDown * kRight;
};

// Phases that lie side by side.
struct Phases {
  int first, stop;
};

// A convolution of kKernel taps a side and its tiles, of 2 or kMost outputs a side. Point (i, j) is
// number i * kSide + j, whatever the tile and the phase.
template <int kKernel_, int kStride_, int kMost_>
struct Method {
  static constexpr int kKernel = kKernel_, kStride = kStride_, kMost = kMost_;
  static constexpr int kPhases = kStride * kStride, kTaps = kKernel * kKernel;
  static constexpr int kMostTaps = (kKernel + kStride - 1) / kStride;  // of a phase, a side
  static constexpr int kFewestTaps = kKernel / kStride;
  static constexpr int kSide = kMostTaps + kMost - 1, kPoints = kSide * kSide;

  // A phase begins at such a row and column of the kernel. In this order those that begin at row 0
  // lie side by side, and so do those at column 0: they have the most taps.
  static constexpr int row_of(int phase) { return phase / kStride; }
  static constexpr int column_of(int phase) {
    return row_of(phase) % 2 == 0 ? kStride - 1 - phase % kStride : phase % kStride;
  }
  static constexpr int phase_at(int row, int column) {
    const int right = column % kStride, down = row % kStride;
    return down * kStride + (down % 2 == 0 ? kStride - 1 - right : right);
  }
  // Points along a side of a phase that begins at such a row or column: its taps and kMost - 1.
  static constexpr int points_from(int first) {
    return (kKernel - first + kStride - 1) / kStride + kMost - 1;
  }
  // The number in the kernel of a phase's first tap.
  static constexpr int first_of(int phase) { return row_of(phase) * kKernel + column_of(phase); }
  // How far tap number `tap` of the phase lies behind it.
  template <typename P>
  static constexpr int place_of(int tap) {
    return (tap / P::kRight * kKernel + tap % P::kRight) * kStride;
  }

  template <typename P>
  using Weight = Sides<WeightMatrix<P::kDown, P::kDown + kMost - 1>,
                       WeightMatrix<P::kRight, P::kRight + kMost - 1>>;
  template <typename P>  // its adjoint
  using Gradient = Sides<Transposed<typename Weight<P>::Rows>, Transposed<typename Weight<P>::Columns>>;

  // Of tiles of H x W outputs.
  template <int H, int W>
  struct Tile {
    static constexpr int kHeight = H, kWidth = W;
    // Of points, and of inputs in a phase with the most taps.
    static constexpr int kRows = kMostTaps + H - 1, kColumns = kMostTaps + W - 1;
    using Output = Sides<OutputMatrix<kMostTaps, H>, OutputMatrix<kMostTaps, W>>;
    template <typename P>
    using Input = Sides<InputMatrix<P::kDown, H>, InputMatrix<P::kRight, W>>;
    // Their adjoints, from the map and to the input.
    using Map = Sides<Transposed<typename Output::Rows>, Transposed<typename Output::Columns>>;
    template <typename P>
    using Back = Sides<Transposed<typename Input<P>::Rows>, Transposed<typename Input<P>::Columns>>;

    // The phases that have a point.
    static constexpr Phases phases_at(int point) {
      const bool down = point / kSide >= kFewestTaps + H - 1;
      const bool right = point % kSide >= kFewestTaps + W - 1;
      return {right ? phase_at(0, 0) : 0,
              down ? kStride : right ? phase_at(1, 0) + 1 : kPhases};
    }
  };
};

// run(method) for the method of a call.
template <typename Run>
inline void by_kernel(const cpu::WinogradShape& shape, const Run& run) {
  switch (shape.kernel) {
    case 5: return run(Method<5, 2, 2>{});
    case 4: return shape.mixed ? run(Method<4, 2, 3>{}) : run(Method<4, 2, 2>{});
    default: break;
  }
  if (shape.stride == 1) return run(Method<3, 1, 2>{});
  return shape.mixed ? run(Method<3, 2, 3>{}) : run(Method<3, 2, 2>{});
}

// run(taps) for those of a phase.
template <typename W, typename Run>
inline void by_phase(int phase, const Run& run) {
  constexpr int kMost = W::kMostTaps, kFewest = W::kFewestTaps;
  if constexpr (kMost == kFewest) {
    run(Taps<kMost, kMost>{});
  } else if (W::row_of(phase) == 0) {
    W::column_of(phase) == 0 ? run(Taps<kMost, kMost>{}) : run(Taps<kMost, kFewest>{});
  } else {
    W::column_of(phase) == 0 ? run(Taps<kFewest, kMost>{}) : run(Taps<kFewest, kFewest>{});
  }
}

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
  by_kernel(shape, [&](auto method) {
    switch (shape.dtype) {
      case Dtype::float32: return run(method, float{});
      case Dtype::float64: return run(method, double{});
      default: return run(method, BFloat16{});
    }
  });
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
