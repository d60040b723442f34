// Sums without atomics, so that the same input gives the same bits: a tree inside a block, one
// partial sum per block in a workspace, and a second small kernel that adds those.
#pragma once

#include "cuda/launch.h"

namespace fastgen::cuda {

// One level of a tree over `copies` rows of `columns` numbers; (copies + 1) / 2 rows are left. What
// is written lies before what is read, so the threads need a barrier between levels only.
FASTGEN_HD void tree_level(float* values, int copies, int columns, int thread, int threads) {
  const int half = (copies + 1) / 2;
  const int end = (copies - half) * columns;
  for (int i = thread; i < end; i += threads) values[i] += values[half * columns + i];
}

// The same, but eight rows become one: a third of the barriers.
constexpr int kTreeFan = 8;

FASTGEN_HD constexpr int rows_left(int copies) { return (copies + kTreeFan - 1) / kTreeFan; }

FASTGEN_HD void wide_tree_level(float* values, int copies, int columns, int thread, int threads) {
  const int left = rows_left(copies) * columns;
  const int end = copies * columns;
  for (int i = thread; i < left; i += threads) {
    float parts[kTreeFan];
    FASTGEN_UNROLL
    for (int k = 0; k < kTreeFan; ++k) {
      const int place = i + k * left;
      parts[k] = place < end ? values[place] : 0.0f;
    }
    FASTGEN_UNROLL
    for (int half = kTreeFan / 2; half > 0; half /= 2) {
      FASTGEN_UNROLL
      for (int k = 0; k < half; ++k) parts[k] += parts[k + half];
    }
    values[i] = parts[0];
  }
}

// Partial sums, element (r * channels + c) * inner + i, to be added over r and i.
struct PartialSums {
  const float* partials;
  std::int64_t rows;
  std::int64_t channels;
  std::int64_t inner;
  FastDivide by_inner;
  float factor;  // of the result
};

// The whole pass is the latency of one access or two, if enough threads share a channel.
constexpr int kSumThreads = 1024;
constexpr int kSumUnroll = 8;

// A block takes some channels where they are neighbours in memory, and one where they are not: few
// enough that one round of its threads covers all rows, but a whole 32-byte sector of them. Given
// as a power of two.
FASTGEN_HD int sum_columns_log2(const PartialSums& sums) {
  if (sums.inner != 1) return 0;
  if (sums.rows <= kSumUnroll) return 10;
  if (sums.rows <= 8 * kSumUnroll) return 7;
  return sums.rows <= 32 * kSumUnroll ? 5 : 3;
}

// The threads of one channel stand this far apart.
FASTGEN_HD int sum_columns(const PartialSums& sums) { return 1 << sum_columns_log2(sums); }

// The numbers k, k + step, ... below count, at offset(k): many at a time in flight.
template <typename Offset>
FASTGEN_HD float sum_of_every(const float* values, std::uint32_t k, std::uint32_t step,
                              std::uint32_t count, Offset offset) {
  float sum = 0.0f;
  for (; k < count; k += kSumUnroll * step) {
    float parts[kSumUnroll];
    FASTGEN_UNROLL
    for (int u = 0; u < kSumUnroll; ++u) {
      const std::uint32_t place = k + u * step;
      parts[u] = place < count ? values[offset(place)] : 0.0f;
    }
    FASTGEN_UNROLL
    for (int u = 0; u < kSumUnroll; ++u) sum += parts[u];
  }
  return sum;
}

FASTGEN_HD float partial_sum(const PartialSums& sums, std::int64_t block, int thread) {
  const int log2 = sum_columns_log2(sums);
  const std::int64_t c = (block << log2) + (thread & ((1 << log2) - 1));
  if (c >= sums.channels) return 0.0f;
  const std::uint32_t count = static_cast<std::uint32_t>(sums.rows * sums.inner);
  const std::uint32_t first = thread >> log2;
  const std::uint32_t step = kSumThreads >> log2;
  if (sums.inner == 1) {  // without a division a number costs few instructions
    return sum_of_every(sums.partials + c, first, step, count,
                        [&](std::uint32_t r) { return r * sums.channels; });
  }
  return sum_of_every(sums.partials + c * sums.inner, first, step, count, [&](std::uint32_t k) {
    const std::uint32_t r = sums.by_inner.quotient(k);
    return r * sums.channels * sums.inner + (k - r * sums.by_inner.divisor);
  });
}

template <typename T>
FASTGEN_HD void write_sum(const PartialSums& sums, T* result, const float* tree,
                          std::int64_t block, int thread) {
  const int columns = sum_columns(sums);
  const std::int64_t c = block * columns + thread;
  if (thread < columns && c < sums.channels) {
    result[c] = from_float<T>(sums.factor * tree[thread]);
  }
}

}  // namespace fastgen::cuda
