// Copies from global to shared memory that need no registers and are waited for later. On the host
// they are done at once.
#pragma once

#include <cstring>

#include "cuda/launch.h"

namespace fastgen::cuda {

// kBytes (4, 8 or 16), both addresses aligned to them; zeros where nothing is there to be read.
template <int kBytes>
FASTGEN_HD void copy_async(void* shared, const void* global, bool there) {
#if defined(__CUDA_ARCH__)
  const std::uint32_t to = static_cast<std::uint32_t>(__cvta_generic_to_shared(shared));
  const int bytes = there ? kBytes : 0;
  if constexpr (kBytes == 16) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(global), "r"(bytes)
                 : "memory");
  } else {
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(to), "l"(global),
                 "n"(kBytes), "r"(bytes)
                 : "memory");
  }
#else
  if (there) {
    std::memcpy(shared, global, kBytes);
  } else {
    std::memset(shared, 0, kBytes);
  }
#endif
}

// Everything that this thread copied since the last call is one group.
FASTGEN_HD void end_async_group() {
#if defined(__CUDA_ARCH__)
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

// Until all of this thread's groups but the `left` last are there; at most 4.
FASTGEN_HD void wait_for_async_groups(int left) {
#if defined(__CUDA_ARCH__)
  // No switch: nvcc makes it a jump by a table in memory.
  if (left >= 4) {
    asm volatile("cp.async.wait_group 4;" ::: "memory");
  } else if (left == 3) {
    asm volatile("cp.async.wait_group 3;" ::: "memory");
  } else if (left == 2) {
    asm volatile("cp.async.wait_group 2;" ::: "memory");
  } else if (left == 1) {
    asm volatile("cp.async.wait_group 1;" ::: "memory");
  } else {
    asm volatile("cp.async.wait_group 0;" ::: "memory");
  }
#else
  static_cast<void>(left);
#endif
}

}  // namespace fastgen::cuda
