// The warp-wide matrix products on the host.
#pragma once

#include <array>

#include "cuda/tensor_core.h"
#include "host.h"
#include "mma_layout.h"

namespace host {

using fastgen::cuda::Columns;
using fastgen::cuda::Rows;

template <typename T>
float number_of(std::uint32_t word, int half) {
  if constexpr (sizeof(T) == 4) {
    // What is below TF32's 10 bits of fraction must be gone already.
    require((word & 0x1fffu) == 0, "an operand is not rounded to TF32");
    return fastgen::float_of(word);
  } else {
    return fastgen::to_float(T{static_cast<std::uint16_t>(word >> (16 * half))});
  }
}

// d[lane] is {d0, d1, d2, d3}.
template <typename T>
void multiply(std::array<float*, 4> (&d)[32], const Rows (&a)[32], const Columns (&b)[32]) {
  constexpr int kTerms = mma::kTerms<T>;
  float rows[16][kTerms], columns[kTerms][8];
  for (int k = 0; k < kTerms; ++k) {
    for (int row = 0; row < 16; ++row) {
      const mma::Register from = mma::row_register<T>(row, k);
      rows[row][k] = number_of<T>(a[from.lane].words[from.word], from.half);
    }
    for (int column = 0; column < 8; ++column) {
      const mma::Register from = mma::column_register<T>(k, column);
      columns[k][column] = number_of<T>(b[from.lane].words[from.word], from.half);
    }
  }
  for (int lane = 0; lane < 32; ++lane) {
    for (int i = 0; i < 4; ++i) {
      const auto [row, column] = mma::result_element(lane, i);
      float sum = 0;
      for (int k = 0; k < kTerms; ++k) sum += rows[row][k] * columns[k][column];
      *d[lane][i] += sum;
    }
  }
}

}  // namespace host
