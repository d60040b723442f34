// Copies from global to shared memory that pass no register and are waited for later. What a thread
// copies it may read once it has waited for the group that the copy belongs to. On the host they
// are done at once.
#pragma once

#include <cstring>

#include "cuda/launch.h"

namespace fastgen::cuda {

// kBytes (4, 8 or 16), both addresses aligned to them. Zeros where the source is not there; its
// address is not looked at then.
template <int kBytes>
FASTGEN_HD void copy_async(void* shared, const void* global, bool there) {
#if defined(__CUDA_ARCH__)
  const auto to = static_cast<std::uint32_t>(__cvta_generic_to_shared(shared));
  const int bytes = there ? kBytes : 0;
  if constexpr (kBytes == 16) {
    asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(to), "l"(global),
                 "r"(bytes)
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

// Ends a group: all copies of this thread since the last one.
FASTGEN_HD void end_async_group() {
#if defined(__CUDA_ARCH__)
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

// Until at most the youngest kLeft groups are on their way.
template <int kLeft>
FASTGEN_HD void wait_for_async_groups() {
#if defined(__CUDA_ARCH__)
  asm volatile("cp.async.wait_group %0;" ::"n"(kLeft) : "memory");
#endif
}

// The same for a number known at run time, at most 4.
FASTGEN_HD void wait_for_async_groups(int left) {
  // No switch: nvcc makes it a jump by a table in memory.
  if (left >= 4) {
    wait_for_async_groups<4>();
  } else if (left == 3) {
    wait_for_async_groups<3>();
  } else if (left == 2) {
    wait_for_async_groups<2>();
  } else if (left == 1) {
    wait_for_async_groups<1>();
  } else {
    wait_for_async_groups<0>();
  }
}

}  // namespace fastgen::cuda
