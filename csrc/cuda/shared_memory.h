// Dynamic shared memory beyond the 48 KiB that every kernel may have unasked.
#pragma once

#include "cuda/launch.h"

namespace fastgen::cuda {

// What one block can have on the current device.
inline int shared_memory_limit() {
  int device = 0;
  int limit = 0;
  if (cudaGetDevice(&device) != cudaSuccess ||
      cudaDeviceGetAttribute(&limit, cudaDevAttrMaxSharedMemoryPerBlockOptin, device) !=
          cudaSuccess) {
    return 48 * 1024;
  }
  return limit;
}

// An attribute of the kernel, not work on a stream: allowed while a graph is captured.
template <typename Kernel>
const char* allow_shared_memory(Kernel kernel, int bytes) {
  if (bytes <= 48 * 1024) return nullptr;
  const cudaError_t error =
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

}  // namespace fastgen::cuda
