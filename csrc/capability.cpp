// Which version of the CPU kernels runs: asked once, because the machine that runs the module need
// not be the one that built it.

#include "cpu/capability.h"

#include <cstdlib>
#include <cstring>

#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace fastgen::cpu {
namespace {

constexpr const char* kNames[] = {"portable", "avx2", "avx512", "avx512bf16"};

Capability of_machine() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  unsigned a, b, c, d;
  const bool f16c = __get_cpuid(1, &a, &b, &c, &d) != 0 && (c & bit_F16C) != 0;
  if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma") || !f16c) {
    return Capability::portable;
  }
  if (!__builtin_cpu_supports("avx512f") || !__builtin_cpu_supports("avx512bw") ||
      !__builtin_cpu_supports("avx512dq") || !__builtin_cpu_supports("avx512vl")) {
    return Capability::avx2;
  }
  const bool bf16 = __get_cpuid_count(7, 1, &a, &b, &c, &d) != 0 && (a & (1u << 5)) != 0;
  return bf16 ? Capability::avx512bf16 : Capability::avx512;
#else
  return Capability::portable;
#endif
}

Capability chosen() {
  int most = static_cast<int>(of_machine());
  if (most > FASTGEN_CPU_COUNT - 1) most = FASTGEN_CPU_COUNT - 1;
  // Lowers it only. fastgen/ops/compiled.py refuses a name that is none of these.
  if (const char* asked = std::getenv("FASTGEN_CPU")) {
    for (int i = 0; i < most; ++i) {
      if (std::strcmp(asked, kNames[i]) == 0) most = i;
    }
  }
  return static_cast<Capability>(most);
}

}  // namespace

Capability capability() {
  static const Capability once = chosen();
  return once;
}

const char* name_of(Capability capability) { return kNames[static_cast<int>(capability)]; }

}  // namespace fastgen::cpu
