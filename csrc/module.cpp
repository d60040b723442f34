// The Python module fastgen._C. Loading it registers the operators of csrc/ops with torch, which is
// why torch is imported first; the functions here only tell what was built and what this CPU can do.
// No tensors and no torch headers: those would cost half a minute to compile and tie the module to
// one torch.

#include <pybind11/pybind11.h>

#include "build_information.h"
#include "ops/kept_memory.h"
#include "cpu/capability.h"

#if defined(__aarch64__) && defined(__linux__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

namespace py = pybind11;

namespace {

py::dict build_information() {
  py::dict facts;
  for (const fastgen::BuildFact& fact : fastgen::build_facts()) facts[fact.name] = fact.value;
  return facts;
}

py::list cuda_kernels() {
  py::list kernels;
  for (const fastgen::CompiledKernel& kernel : fastgen::compiled_kernels()) {
    py::dict entry;
    entry["name"] = kernel.name;
    entry["source"] = kernel.source;
    entry["architecture"] = kernel.architecture;
    entry["registers"] = kernel.registers;
    entry["shared_bytes"] = kernel.shared_bytes;
    entry["stack_bytes"] = kernel.stack_bytes;
    entry["spill_stores"] = kernel.spill_stores;
    entry["spill_loads"] = kernel.spill_loads;
    kernels.append(entry);
  }
  return kernels;
}

// Asked at run time: the machine that runs the module need not be the one that built it.
py::dict cpu_capability() {
  py::dict has;
#if defined(__x86_64__)
  __builtin_cpu_init();
  has["avx2"] = __builtin_cpu_supports("avx2") != 0;
  has["fma"] = __builtin_cpu_supports("fma") != 0;
  has["avx512"] = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                  __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  has["avx512bf16"] = __builtin_cpu_supports("avx512bf16") != 0;
#elif defined(__aarch64__)
  has["neon"] = true;  // part of the architecture
#if defined(__linux__) && defined(HWCAP2_BF16)
  has["bf16"] = (getauxval(AT_HWCAP2) & HWCAP2_BF16) != 0;
#endif
#endif
  return has;
}

const char* cpu_version() { return fastgen::cpu::name_of(fastgen::cpu::capability()); }

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "fastgen's compiled kernels: what was built, and what this CPU can do.";
  m.def("build_information", &build_information,
        "Versions, compilers and architectures this module was built with, as text.");
  m.def("cpu_capability", &cpu_capability,
        "Vector instruction sets of this CPU: name to whether it has them.");
  m.def("cpu_version", &cpu_version,
        "Which version of the CPU kernels runs in this process; FASTGEN_CPU may lower it.");
  m.def("cuda_kernels", &cuda_kernels,
        "Each CUDA kernel for each architecture: registers, shared memory, stack and spills.");
  m.def("kept_bytes", &fastgen::kept_bytes,
        "Bytes of CPU memory that are kept for results to come and belong to no tensor.");
  m.def("forget_blocks", &fastgen::forget_blocks, "Gives those bytes back to the system.");
}
