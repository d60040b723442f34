// Warp-wide matrix products and the registers they take, for kernels that fill those registers
// themselves.
//
// A product of 16 rows, 8 columns and 16 terms: lane = 4 g + t holds, of row g, row g + 8 and
// column g, the four terms of its t; which four of the sixteen they are is free as long as rows and
// columns agree, so they are four neighbours in memory: a quad. The result's registers are rows g
// and g + 8 at columns 2 t and 2 t + 1.
#pragma once

#include "cuda/launch.h"

namespace fastgen::cuda {

// Four neighbouring values: 8 bytes of a 16-bit type, 16 bytes of float32.
template <typename T>
struct alignas(4 * sizeof(T)) Quad {
  std::uint32_t words[sizeof(T)];
};

template <typename T>
FASTGEN_HD Quad<T> quad_of(const T (&values)[4]) {
  Quad<T> quad;
  if constexpr (sizeof(T) == 4) {
    FASTGEN_UNROLL
    for (int v = 0; v < 4; ++v) quad.words[v] = bits_of(values[v]);
  } else {
    FASTGEN_UNROLL
    for (int w = 0; w < 2; ++w) {
      quad.words[w] = values[2 * w].bits | static_cast<std::uint32_t>(values[2 * w + 1].bits) << 16;
    }
  }
  return quad;
}

FASTGEN_HD float quad_value(const Quad<float>& quad, int v) { return float_of(quad.words[v]); }

// One access of the quad's whole width, of global or shared memory, aligned to it.
template <typename T>
FASTGEN_HD Quad<T> load_quad(const void* address) {
#if defined(__CUDA_ARCH__)
  Quad<T> quad;
  if constexpr (sizeof(T) == 4) {
    const uint4 word = *static_cast<const uint4*>(address);
    quad.words[0] = word.x, quad.words[1] = word.y, quad.words[2] = word.z, quad.words[3] = word.w;
  } else {
    const uint2 word = *static_cast<const uint2*>(address);
    quad.words[0] = word.x, quad.words[1] = word.y;
  }
  return quad;
#else
  return load_whole<Quad<T>>(address);
#endif
}

// The rounding of tensor cores to 10 bits of fraction, to nearest and away from zero on a tie. They
// would cut the rest off, which is twice as wrong and always towards zero.
FASTGEN_HD float round_to_tf32(float value) {
#if defined(__CUDA_ARCH__)
  std::uint32_t bits;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(value));
  return float_of(bits);
#else
  const std::uint32_t bits = bits_of(value);
  if ((bits & 0x7f800000u) == 0x7f800000u) return value;
  return float_of((bits + 0x1000u) & ~0x1fffu);
#endif
}

template <typename T>
FASTGEN_HD Quad<T> round_quad(Quad<T> quad) {
  if constexpr (sizeof(T) == 4) {
    FASTGEN_UNROLL
    for (std::uint32_t& word : quad.words) word = bits_of(round_to_tf32(float_of(word)));
  }
  return quad;
}

struct Rows {
  std::uint32_t words[4];
};
struct Columns {
  std::uint32_t words[2];
};

// Instructions per product of 16 terms: TF32 takes 8 at a time.
template <typename T>
inline constexpr int kParts = static_cast<int>(sizeof(T)) / 2;

template <typename T>
FASTGEN_HD Rows rows_of(const Quad<T>& row, const Quad<T>& row_plus_8, int part) {
  return {{row.words[2 * part], row_plus_8.words[2 * part], row.words[2 * part + 1],
           row_plus_8.words[2 * part + 1]}};
}

template <typename T>
FASTGEN_HD Columns columns_of(const Quad<T>& column, int part) {
  return {{column.words[2 * part], column.words[2 * part + 1]}};
}

// Four matrices of 8 rows of 16 bytes from shared memory: lane 4 g + t gets the t-th 4 bytes of
// row g of each. Row r of matrix m stands place(m, r) bytes behind `memory`, at a multiple of 16.
// All lanes of the warp take part, once what they read was written.
template <typename Place>
FASTGEN_HD Rows load_matrices(const unsigned char* memory, int lane, const Place& place) {
  Rows rows;
#if defined(__CUDA_ARCH__)
  const auto address = static_cast<std::uint32_t>(
      __cvta_generic_to_shared(memory + place(lane / 8, lane % 8)));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(rows.words[0]), "=r"(rows.words[1]), "=r"(rows.words[2]),
                 "=r"(rows.words[3])
               : "r"(address)
               : "memory");
#else
  for (int m = 0; m < 4; ++m) {
    std::memcpy(&rows.words[m], memory + place(m, lane / 4) + lane % 4 * 4, 4);
  }
#endif
  return rows;
}

#if defined(__CUDACC__)

// (d0, d1) of row g and (d2, d3) of row g + 8 += rows * columns. All lanes of the warp take part.
#define FASTGEN_MATRIX_PRODUCT(shape_and_types)                                                \
  asm("mma.sync.aligned." shape_and_types " {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "    \
      "{%0, %1, %2, %3};"                                                                      \
      : "+f"(d0), "+f"(d1), "+f"(d2), "+f"(d3)                                                 \
      : "r"(a.words[0]), "r"(a.words[1]), "r"(a.words[2]), "r"(a.words[3]), "r"(b.words[0]),   \
        "r"(b.words[1]))

template <typename T>
__device__ __forceinline__ void multiply(float& d0, float& d1, float& d2, float& d3, const Rows& a,
                                         const Columns& b);
template <>
__device__ __forceinline__ void multiply<BFloat16>(float& d0, float& d1, float& d2, float& d3,
                                                   const Rows& a, const Columns& b) {
  FASTGEN_MATRIX_PRODUCT("m16n8k16.row.col.f32.bf16.bf16.f32");
}
template <>
__device__ __forceinline__ void multiply<Float16>(float& d0, float& d1, float& d2, float& d3,
                                                  const Rows& a, const Columns& b) {
  FASTGEN_MATRIX_PRODUCT("m16n8k16.row.col.f32.f16.f16.f32");
}
template <>
__device__ __forceinline__ void multiply<float>(float& d0, float& d1, float& d2, float& d3,
                                                const Rows& a, const Columns& b) {
  FASTGEN_MATRIX_PRODUCT("m16n8k8.row.col.f32.tf32.tf32.f32");
}

#undef FASTGEN_MATRIX_PRODUCT
#endif

}  // namespace fastgen::cuda
