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

// Partial sums, element (r * channels + c) * inner + i, to be added over r and i.
struct PartialSums {
  const float* partials;
  std::int64_t rows;
  std::int64_t channels;
  std::int64_t inner;
  FastDivide by_inner;
  float factor;  // of the result
};

constexpr int kSumThreads = 256;

// A block takes 32 channels where they are neighbours in memory, and one where they are not. The
// threads of one channel stand `sum_columns` apart.
FASTGEN_HD int sum_columns(const PartialSums& sums) { return sums.inner == 1 ? 32 : 1; }

FASTGEN_HD float partial_sum(const PartialSums& sums, std::int64_t block, int thread) {
  const int columns = sum_columns(sums);
  const std::int64_t c = block * columns + thread % columns;
  if (c >= sums.channels) return 0.0f;
  const std::uint32_t count = static_cast<std::uint32_t>(sums.rows * sums.inner);
  float sum = 0.0f;
  FASTGEN_UNROLL_BY(4)
  for (std::uint32_t k = thread / columns; k < count; k += kSumThreads / columns) {
    const std::uint32_t r = sums.by_inner.quotient(k);
    const std::uint32_t i = k - r * sums.by_inner.divisor;
    sum += sums.partials[(r * sums.channels + c) * sums.inner + i];
  }
  return sum;
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
