// The warp-wide matrix products on the host, by the register layout that the PTX manual documents
// (mma.m16n8k16 for 16-bit types, mma.m16n8k8 for TF32).
#pragma once

#include <array>

#include "cuda/tensor_core.h"
#include "host.h"

namespace host {

using fastgen::cuda::Columns;
using fastgen::cuda::Rows;

inline float half_of(std::uint32_t word, int half, fastgen::BFloat16) {
  return fastgen::to_float(fastgen::BFloat16{static_cast<std::uint16_t>(word >> (16 * half))});
}
inline float half_of(std::uint32_t word, int half, fastgen::Float16) {
  return fastgen::to_float(fastgen::Float16{static_cast<std::uint16_t>(word >> (16 * half))});
}

// d[lane] is {d0, d1, d2, d3}.
template <typename T>
void multiply(std::array<float*, 4> (&d)[32], const Rows (&a)[32], const Columns (&b)[32]) {
  constexpr int kTerms = sizeof(T) == 4 ? 8 : 16;
  float rows[16][kTerms], columns[kTerms][8];
  for (int lane = 0; lane < 32; ++lane) {
    const int group = lane / 4, in_group = lane % 4;
    if constexpr (sizeof(T) == 4) {
      for (int i = 0; i < 4; ++i) {
        // What is below TF32's 10 bits of fraction must be gone already.
        require((a[lane].words[i] & 0x1fffu) == 0, "a row is not rounded to TF32");
        rows[group + 8 * (i % 2)][in_group + 4 * (i / 2)] = fastgen::float_of(a[lane].words[i]);
      }
      for (int i = 0; i < 2; ++i) {
        require((b[lane].words[i] & 0x1fffu) == 0, "a column is not rounded to TF32");
        columns[in_group + 4 * i][group] = fastgen::float_of(b[lane].words[i]);
      }
    } else {
      for (int i = 0; i < 8; ++i) {
        const int row = group + ((i / 2) % 2 == 0 ? 0 : 8);
        const int term = in_group * 2 + i % 2 + (i < 4 ? 0 : 8);
        rows[row][term] = half_of(a[lane].words[i / 2], i % 2, T{});
      }
      for (int i = 0; i < 4; ++i) {
        columns[in_group * 2 + i % 2 + (i < 2 ? 0 : 8)][group] =
            half_of(b[lane].words[i / 2], i % 2, T{});
      }
    }
  }
  for (int lane = 0; lane < 32; ++lane) {
    for (int i = 0; i < 4; ++i) {
      const int row = lane / 4 + (i < 2 ? 0 : 8), column = lane % 4 * 2 + i % 2;
      float sum = 0;
      for (int k = 0; k < kTerms; ++k) sum += rows[row][k] * columns[k][column];
      *d[lane][i] += sum;
    }
  }
}

}  // namespace host
