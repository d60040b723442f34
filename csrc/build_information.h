// What the build knows about itself. The definitions are written by build_support/module.py into a
// generated source, after the CUDA compiler has reported on each kernel.
#pragma once

#include <vector>

namespace fastgen {

// One CUDA kernel as compiled for one architecture. `shared_bytes` is what the kernel declares;
// what a launch asks for on top is not in it.
struct CompiledKernel {
  const char* name;
  const char* source;
  const char* architecture;
  int registers;
  int shared_bytes;
  int stack_bytes;
  int spill_stores;
  int spill_loads;
};

struct BuildFact {
  const char* name;
  const char* value;
};

const std::vector<BuildFact>& build_facts();
const std::vector<CompiledKernel>& compiled_kernels();

}  // namespace fastgen
