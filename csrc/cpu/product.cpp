// Register tiles of the product in product.h.

#include "cpu/product.h"

namespace fastgen::cpu::FASTGEN_CPU {
namespace {

// Rows per tile for so many vectors of columns: sums, the vectors and one broadcast fit the
// registers, and enough sums run beside each other to hide a multiply-add's latency.
constexpr int most_rows(int vectors) {
  if (kRegisters == 32) return vectors == 3 ? 8 : 12;
  return vectors == 1 ? 8 : vectors == 2 ? 6 : 4;
}
// Nine: the taps of a row of a 3x3 kernel over three channels.
constexpr int fewer_rows(int rows) {
  return rows > 9 ? 9 : rows > 8 ? 8 : rows > 4 ? 4 : rows / 2;
}

// Where a tile's sums come from and go to: memory, or a map that is finished with them.
template <typename F>
struct ToMemory {
  using S = typename F::Sum;
  S* out;
  std::int64_t step;
  bool add;

  Vector<S> start(int m, int v) const {
    return add ? load(out + m * step + v * kLanes<S>) : Vector<S>{};
  }
  void end(int m, int v, Vector<S> sum) const { store(out + m * step + v * kLanes<S>, sum); }
  ToMemory at(std::int64_t row, std::int64_t column) const {
    return {out + row * step + column, step, add};
  }
};

template <typename F>
struct ToMap {
  using S = typename F::Sum;
  Finish<F> finish;

  Vector<S> start(int, int v) const { return load(finish.bias + v * kLanes<S>); }
  void end(int m, int v, Vector<S> sum) const {
    const std::int64_t place = m * finish.step + v * kLanes<S>;
    const Vector<S> slope = all(finish.slope);
    const Vector<S> value =
        finish.output == nullptr
            ? leaky_relu_lanes<S>(sum, slope)
            : leaky_relu_mask_lanes<S>(sum, load(finish.output + place), slope);
    if (finish.stream) {
      stream(finish.result + place, value);
    } else {
      store(finish.result + place, value);
    }
  }
  ToMap at(std::int64_t row, std::int64_t column) const {
    ToMap there = *this;
    const std::int64_t place = row * finish.step + column;
    there.finish.bias += column;
    there.finish.result += place;
    if (finish.output != nullptr) there.finish.output += place;
    return there;
  }
};

template <int kRows, int kVectors, typename T, typename To>
inline void tile(const Product<Plain<T>>& p, const T* a, const T* b, const To& to) {
  const std::int64_t step = p.row_step, next = p.step;
  Vector<T> sums[kRows][kVectors];
  FASTGEN_UNROLLED
  for (int m = 0; m < kRows; ++m) {
    FASTGEN_UNROLLED
    for (int v = 0; v < kVectors; ++v) sums[m][v] = to.start(m, v);
  }
  for (std::int64_t s = 0; s < p.segments; ++s) {
    // A pointer every three rows: the rows between are reached by scaled indices.
    constexpr int kPointers = (kRows + 2) / 3;
    const T* at[kPointers];
    FASTGEN_UNROLLED
    for (int i = 0; i < kPointers; ++i) at[i] = a + s * p.segment_step + 3 * i * step;
    for (std::int64_t e = 0; e < p.length; ++e) {
      Vector<T> right[kVectors];
      FASTGEN_UNROLLED
      for (int v = 0; v < kVectors; ++v) right[v] = load(b + v * kLanes<T>);
      FASTGEN_UNROLLED
      for (int m = 0; m < kRows; ++m) {
        const Vector<T> left = all(at[m / 3][m % 3 * step]);
        FASTGEN_UNROLLED
        for (int v = 0; v < kVectors; ++v) {
          sums[m][v] = multiply_add(left, right[v], sums[m][v]);
        }
      }
      b += p.columns;
      FASTGEN_UNROLLED
      for (int i = 0; i < kPointers; ++i) at[i] += next;
    }
  }
  FASTGEN_UNROLLED
  for (int m = 0; m < kRows; ++m) {
    FASTGEN_UNROLLED
    for (int v = 0; v < kVectors; ++v) to.end(m, v, sums[m][v]);
  }
}

#if defined(__AVX512BF16__)
// One step: every row's pair with the pairs of kVectors vectors of columns.
template <int kRows, int kVectors, typename LeftOf>
inline __attribute__((always_inline)) void add_step(__m512 (&sums)[kRows][kVectors],
                                                    const BFloat16* b, const LeftOf& left_of) {
  __m512i right[kVectors];
  FASTGEN_UNROLLED
  for (int v = 0; v < kVectors; ++v) right[v] = _mm512_loadu_si512(b + v * 32);
  FASTGEN_UNROLLED
  for (int m = 0; m < kRows; ++m) {
    const __m512i left = left_of(m);
    FASTGEN_UNROLLED
    for (int v = 0; v < kVectors; ++v) {
      sums[m][v] = _mm512_dpbf16_ps(sums[m][v], reinterpret_cast<__m512bh>(left),
                                    reinterpret_cast<__m512bh>(right[v]));
    }
  }
}

template <int kRows, int kVectors, typename To>
inline void tile(const Product<Pairs>& p, const BFloat16* a, const BFloat16* b, const To& to) {
  const std::int64_t step = p.row_step, next = p.step, whole = p.length / 2;
  __m512 sums[kRows][kVectors];
  FASTGEN_UNROLLED
  for (int m = 0; m < kRows; ++m) {
    FASTGEN_UNROLLED
    for (int v = 0; v < kVectors; ++v) sums[m][v] = to.start(m, v);
  }
  for (std::int64_t s = 0; s < p.segments; ++s) {
    constexpr int kPointers = (kRows + 2) / 3;
    const BFloat16* at[kPointers];
    FASTGEN_UNROLLED
    for (int i = 0; i < kPointers; ++i) at[i] = a + s * p.segment_step + 3 * i * step;
    for (std::int64_t e = 0; e < whole; ++e, b += 2 * p.columns) {
      add_step(sums, b, [&](int m) __attribute__((always_inline)) {
        std::int32_t pair;
        __builtin_memcpy(&pair, at[m / 3] + m % 3 * step, sizeof(pair));
        return _mm512_set1_epi32(pair);
      });
      FASTGEN_UNROLLED
      for (int i = 0; i < kPointers; ++i) at[i] += next;
    }
    // The last of an odd number has no neighbour; what lies behind it may be NaN or no memory.
    if (p.length % 2 != 0) {
      add_step(sums, b, [&](int m) __attribute__((always_inline)) {
        return _mm512_set1_epi32(at[m / 3][m % 3 * step].bits);
      });
      b += 2 * p.columns;
    }
  }
  FASTGEN_UNROLLED
  for (int m = 0; m < kRows; ++m) {
    FASTGEN_UNROLLED
    for (int v = 0; v < kVectors; ++v) to.end(m, v, sums[m][v]);
  }
}
#endif

template <typename F>
using Operand = const typename F::Element*;

template <int kRows, int kVectors, typename F, typename To>
void run_rows(const Product<F>& p, std::int64_t done, Operand<F> b, const To& to) {
  for (; p.rows - done >= kRows; done += kRows) {
    tile<kRows, kVectors>(p, p.a + done * p.row_step, b, to.at(done, 0));
  }
  if constexpr (kRows > 1) {
    if (done < p.rows) run_rows<fewer_rows(kRows), kVectors>(p, done, b, to);
  }
}

template <typename F, typename To>
void run(const Product<F>& p, const To& to) {
  constexpr int kWidth = kLanes<typename F::Sum>;
  for (std::int64_t v = 0; v < p.vectors;) {
    const std::int64_t left = p.vectors - v;
    const int group = left == 4 || left == 2 ? 2 : left >= 3 ? 3 : 1;
    Operand<F> b = p.b + v * kWidth * F::kElements;
    const To there = to.at(0, v * kWidth);
    if (group == 3) {
      run_rows<most_rows(3), 3>(p, 0, b, there);
    } else if (group == 2) {
      run_rows<most_rows(2), 2>(p, 0, b, there);
    } else {
      run_rows<most_rows(1), 1>(p, 0, b, there);
    }
    v += group;
  }
}

template <typename F>
void run(const Product<F>& p) {
  run(p, ToMemory<F>{p.out, p.out_step, p.add});
}

template <typename F>
void run(const Product<F>& p, const Finish<F>& finish) {
  run(p, ToMap<F>{finish});
}

}  // namespace

void multiply(const Product<Plain<float>>& product) { run(product); }
void multiply(const Product<Plain<double>>& product) { run(product); }
void multiply(const Product<Plain<float>>& product, const Finish<Plain<float>>& finish) {
  run(product, finish);
}
void multiply(const Product<Plain<double>>& product, const Finish<Plain<double>>& finish) {
  run(product, finish);
}
#if defined(__AVX512BF16__)
void multiply(const Product<Pairs>& product) { run(product); }
void multiply(const Product<Pairs>& product, const Finish<Pairs>& finish) { run(product, finish); }
#endif

}  // namespace fastgen::cpu::FASTGEN_CPU
