// What kernels and launchers share, free of torch and, on the host, of CUDA headers.
//
// Kernel bodies are written once and compiled twice: by nvcc for the device, and by an ordinary
// C++ compiler for the tests, which run the same body for every thread index.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "elements.h"
#include "formulas.h"

#if defined(__CUDACC__)
#include <cuda_runtime.h>
#endif

#if defined(__CUDACC__)
#define FASTGEN_PRAGMA(text) _Pragma(#text)
#define FASTGEN_UNROLL _Pragma("unroll")
#define FASTGEN_UNROLL_BY(count) FASTGEN_PRAGMA(unroll count)
#else
#define FASTGEN_UNROLL
#define FASTGEN_UNROLL_BY(count)
#endif

namespace fastgen {

// ---------------------------------------------------------------------------------- wide accesses

// V neighbours in one register group: one 16-byte load or store where V * sizeof(T) is 16.
template <typename T, int V>
struct alignas(sizeof(T) * V) Pack {
  T values[V];
};

template <typename T>
inline constexpr int kWideExtent = 16 / static_cast<int>(sizeof(T));

#if defined(__CUDACC__)
// The machine word that holds a pack.
template <int Bytes>
struct Word;
template <>
struct Word<2> {
  using type = unsigned short;
};
template <>
struct Word<4> {
  using type = unsigned int;
};
template <>
struct Word<8> {
  using type = uint2;
};
template <>
struct Word<16> {
  using type = uint4;
};
#endif

#if defined(__CUDA_ARCH__)
template <typename W>
__device__ __forceinline__ void store_word(W* address, W word) {
  *address = word;
}
// Spelled out: nvcc takes most assignments of a uint4 apart into four stores of 4 bytes.
__device__ __forceinline__ void store_word(uint4* address, uint4 word) {
  asm volatile("st.global.v4.b32 [%0], {%1, %2, %3, %4};" ::"l"(address), "r"(word.x),
               "r"(word.y), "r"(word.z), "r"(word.w)
               : "memory");
}
__device__ __forceinline__ void store_word(uint2* address, uint2 word) {
  asm volatile("st.global.v2.b32 [%0], {%1, %2};" ::"l"(address), "r"(word.x), "r"(word.y)
               : "memory");
}
#endif

#if !defined(__CUDA_ARCH__)
// On the host a value is one access, too, at a multiple of its size: a vector, which no compiler
// takes apart.
template <typename Value>
Value load_whole(const void* address) {
  typedef unsigned char Word __attribute__((vector_size(sizeof(Value)), may_alias));
  const Word word = *static_cast<const Word*>(address);
  Value value;
  std::memcpy(&value, &word, sizeof(value));
  return value;
}
template <typename Value>
void store_whole(void* address, const Value& value) {
  typedef unsigned char Word __attribute__((vector_size(sizeof(Value)), may_alias));
  Word word;
  std::memcpy(&word, &value, sizeof(word));
  *static_cast<Word*>(address) = word;
}
#endif

// From global or shared memory, at an address that is a multiple of the pack's size.
template <typename T, int V>
FASTGEN_HD Pack<T, V> load_pack(const T* address) {
#if defined(__CUDA_ARCH__)
  using W = typename Word<sizeof(Pack<T, V>)>::type;
  const W word = *reinterpret_cast<const W*>(address);
  Pack<T, V> pack;
  memcpy(&pack, &word, sizeof(pack));
  return pack;
#else
  return load_whole<Pack<T, V>>(address);
#endif
}

// Two neighbours of 16 bits lie in one register; compilers need more instructions for the upper
// one than a mask when it is taken out by itself.
template <typename T, int V>
FASTGEN_HD void to_floats(const Pack<T, V>& pack, float (&values)[V]) {
  if constexpr (std::is_same_v<T, BFloat16> && V % 2 == 0) {
    std::uint32_t words[V / 2];
    memcpy(words, &pack, sizeof(pack));
    FASTGEN_UNROLL
    for (int v = 0; v < V; v += 2) {
      values[v] = float_of(words[v / 2] << 16);
      values[v + 1] = float_of(words[v / 2] & 0xffff0000u);
    }
  } else {
    FASTGEN_UNROLL
    for (int v = 0; v < V; ++v) values[v] = to_float(pack.values[v]);
  }
}

// From here on the pack takes as few registers as it can, not one for each of its values.
template <typename T, int V>
FASTGEN_HD void hold_packed([[maybe_unused]] Pack<T, V>& pack) {
#if defined(__CUDA_ARCH__)
  if constexpr (sizeof(T) * V % 4 == 0 && sizeof(T) < 4) {
    std::uint32_t words[sizeof(T) * V / 4];
    memcpy(words, &pack, sizeof(pack));
    FASTGEN_UNROLL
    for (std::uint32_t& word : words) asm volatile("" : "+r"(word));
    memcpy(&pack, words, sizeof(pack));
  }
#endif
}

// Into global memory.
template <typename T, int V>
FASTGEN_HD void store_pack(T* address, const Pack<T, V>& pack) {
#if defined(__CUDA_ARCH__)
  using W = typename Word<sizeof(Pack<T, V>)>::type;
  W word;
  memcpy(&word, &pack, sizeof(pack));
  store_word(reinterpret_cast<W*>(address), word);
#else
  store_whole(address, pack);
#endif
}

template <typename T, int V>
FASTGEN_HD void store_pack(T* address, const float (&values)[V]) {
  Pack<T, V> pack;
  FASTGEN_UNROLL
  for (int v = 0; v < V; ++v) pack.values[v] = from_float<T>(values[v]);
  store_pack<T, V>(address, pack);
}

template <typename T, int V>
FASTGEN_HD void unpack(const Pack<T, V>& pack, float (&values)[V]) {
  FASTGEN_UNROLL
  for (int v = 0; v < V; ++v) values[v] = to_float(pack.values[v]);
}

#if defined(__CUDA_ARCH__)
// Spelled out: nvcc takes two instructions for each upper half of a register.
template <int V>
__device__ __forceinline__ std::enable_if_t<V % 2 == 0> unpack(const Pack<BFloat16, V>& pack,
                                                               float (&values)[V]) {
  unsigned words[V / 2];
  memcpy(words, &pack, sizeof(words));
  FASTGEN_UNROLL
  for (int w = 0; w < V / 2; ++w) {
    values[2 * w] = __uint_as_float(words[w] << 16);
    values[2 * w + 1] = __uint_as_float(words[w] & 0xffff0000u);
  }
}
#endif

// N neighbours of 4 bytes into shared memory, in one access at a multiple of their size.
template <typename T, int N>
FASTGEN_HD void store_shared(T* address, const T (&values)[N]) {
  static_assert(sizeof(T) == 4 && (N == 1 || N == 2 || N == 4));
  Pack<T, N> pack;
  FASTGEN_UNROLL
  for (int i = 0; i < N; ++i) pack.values[i] = values[i];
#if defined(__CUDA_ARCH__)
  using W = typename Word<sizeof(pack)>::type;
  W word;
  memcpy(&word, &pack, sizeof(word));
  if constexpr (N == 4) {  // spelled out, too
    asm volatile("st.shared.v4.b32 [%0], {%1, %2, %3, %4};" ::"r"(
                     static_cast<std::uint32_t>(__cvta_generic_to_shared(address))),
                 "r"(word.x), "r"(word.y), "r"(word.z), "r"(word.w)
                 : "memory");
  } else {
    *reinterpret_cast<W*>(address) = word;
  }
#else
  store_whole(address, pack);
#endif
}

// nullptr counts as aligned: an operand that is absent hinders nobody.
inline bool is_aligned(const void* pointer, std::size_t bytes) {
  return reinterpret_cast<std::uintptr_t>(pointer) % bytes == 0;
}

// ---------------------------------------------------------------------------------------- indices

// Division of numbers below 2^31 by a divisor known to the launcher, as a multiplication and a
// shift [Granlund, Montgomery, "Division by invariant integers using multiplication", PLDI 1994]:
// with s = ceil(log2 d) and m = floor(2^32 (2^s - d) / d) + 1, n / d = (mulhi(n, m) + n) >> s.
struct FastDivide {
  std::uint32_t divisor = 1;
  std::uint32_t multiplier = 1;
  std::uint32_t shift = 0;

  FastDivide() = default;
  explicit FastDivide(std::uint32_t d) : divisor(d) {
    while ((std::uint64_t{1} << shift) < d) ++shift;
    const std::uint64_t excess = (std::uint64_t{1} << shift) - d;
    multiplier = static_cast<std::uint32_t>((excess << 32) / d + 1);
  }

  FASTGEN_HD std::uint32_t quotient(std::uint32_t n) const {
#if defined(__CUDA_ARCH__)
    const std::uint32_t high = __umulhi(n, multiplier);
#else
    const std::uint32_t high =
        static_cast<std::uint32_t>((static_cast<std::uint64_t>(n) * multiplier) >> 32);
#endif
    return (high + n) >> shift;
  }
};

// ----------------------------------------------------------------------------------------- device

#if defined(__CUDACC__)
namespace cuda {

inline int multiprocessors() {
  int device = 0;
  int count = 0;
  if (cudaGetDevice(&device) != cudaSuccess ||
      cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device) != cudaSuccess) {
    return 1;
  }
  return count;
}

// A kernel that adds what the one before it in the stream left may be launched while that one's
// last blocks run (programmatic dependent launch, from sm_90 on). The earlier one says when: no
// block of it is still waiting for its place. The later one waits until the earlier one is done
// and its writes are seen. Without such a launch both do nothing.
#if defined(__CUDACC_VER_MAJOR__)
__device__ __forceinline__ void let_next_kernel_start() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}
__device__ __forceinline__ void wait_for_kernel_before() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
#else
inline void let_next_kernel_start() {}
inline void wait_for_kernel_before() {}
#endif

// What the launch before it left as an error: nullptr when it went well.
inline const char* launch_error() {
  const cudaError_t error = cudaGetLastError();
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

}  // namespace cuda
#endif

}  // namespace fastgen
