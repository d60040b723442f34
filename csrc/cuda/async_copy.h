// Copies of 16 bytes from global to shared memory that pass no register. What a thread copies it
// may read once it has waited for the group that the copy belongs to.
#pragma once

#include "cuda/launch.h"

namespace fastgen::cuda {

// Zeros where the source is not there; its address is not looked at then.
FASTGEN_HD void copy_async(void* shared, const void* global, bool there) {
#if defined(__CUDA_ARCH__)
  const auto address = static_cast<std::uint32_t>(__cvta_generic_to_shared(shared));
  asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(address),
               "l"(global), "r"(there ? 16 : 0)
               : "memory");
#else
  if (there) {
    std::memcpy(shared, global, 16);
  } else {
    std::memset(shared, 0, 16);
  }
#endif
}

// Ends a group: all copies of this thread since the last one.
FASTGEN_HD void end_group_of_copies() {
#if defined(__CUDA_ARCH__)
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

// Until at most the youngest kLeft groups are on their way.
template <int kLeft>
FASTGEN_HD void wait_for_copies() {
#if defined(__CUDA_ARCH__)
  asm volatile("cp.async.wait_group %0;" ::"n"(kLeft) : "memory");
#endif
}

}  // namespace fastgen::cuda
