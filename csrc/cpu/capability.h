// CPU kernels and how one of their versions is picked.
//
// The build compiles every source of csrc/cpu once per CPU capability: `portable` everywhere (on
// ARM that is NEON), on x86-64 also `avx2` (with FMA and F16C), `avx512` (F, BW, DQ, VL) and
// `avx512bf16`, as far as the compiler knows them. FASTGEN_CPU names the one being compiled, and
// FASTGEN_CPU_COUNT says to everybody else how many of the list there are. Which of them runs is
// decided once per process.
//
// A kernel `k` defines fastgen::cpu::FASTGEN_CPU::k; whatever else its source defines lies in an
// unnamed namespace. Neither it nor a header it includes may use functions or templates of the
// standard library: a copy compiled for AVX-512 could be the one that the linker keeps for all.
// tests/csrc/test_capability.py looks at the symbols.
#pragma once

#include <cstdint>

namespace fastgen::cpu {

enum class Capability { portable, avx2, avx512, avx512bf16 };

// The most that this CPU, this build and the environment variable FASTGEN_CPU allow.
Capability capability();
const char* name_of(Capability capability);

// Declares the versions of one kernel; `name##_kernel()` is the one to call in this process.
#define FASTGEN_DECLARE(version, Signature, name) \
  namespace version {                             \
  Signature name;                                 \
  }
#if defined(FASTGEN_CPU)
#define FASTGEN_KERNEL(Signature, name) FASTGEN_DECLARE(FASTGEN_CPU, Signature, name)
#else
#ifndef FASTGEN_CPU_COUNT
#define FASTGEN_CPU_COUNT 1
#endif
#if FASTGEN_CPU_COUNT == 1
#define FASTGEN_VERSIONS(DO, ...) DO(portable, __VA_ARGS__)
#define FASTGEN_TABLE(name) portable::name
#elif FASTGEN_CPU_COUNT == 2
#define FASTGEN_VERSIONS(DO, ...) DO(portable, __VA_ARGS__) DO(avx2, __VA_ARGS__)
#define FASTGEN_TABLE(name) portable::name, avx2::name
#elif FASTGEN_CPU_COUNT == 3
#define FASTGEN_VERSIONS(DO, ...) \
  DO(portable, __VA_ARGS__) DO(avx2, __VA_ARGS__) DO(avx512, __VA_ARGS__)
#define FASTGEN_TABLE(name) portable::name, avx2::name, avx512::name
#else
#define FASTGEN_VERSIONS(DO, ...)                                         \
  DO(portable, __VA_ARGS__) DO(avx2, __VA_ARGS__) DO(avx512, __VA_ARGS__) \
  DO(avx512bf16, __VA_ARGS__)
#define FASTGEN_TABLE(name) portable::name, avx2::name, avx512::name, avx512bf16::name
#endif
#define FASTGEN_KERNEL(Signature, name)                          \
  FASTGEN_VERSIONS(FASTGEN_DECLARE, Signature, name)             \
  inline Signature* name##_kernel() {                            \
    static constexpr Signature* versions[] = {FASTGEN_TABLE(name)}; \
    return versions[static_cast<int>(capability())];             \
  }
#endif

}  // namespace fastgen::cpu
