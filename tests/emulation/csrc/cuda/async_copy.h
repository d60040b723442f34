// Stands in for csrc/cuda/async_copy.h: copies arrive as late as the GPU may let them, when their
// group is waited for. Who reads before that finds NaN.
#pragma once

#include "cuda/launch.h"

namespace fastgen::cuda {

template <int kBytes>
void copy_async(void* shared, const void* global, bool there) {
  static_assert(kBytes == 4 || kBytes == 8 || kBytes == 16);
  if (reinterpret_cast<std::uintptr_t>(shared) % kBytes != 0 ||
      (there && reinterpret_cast<std::uintptr_t>(global) % kBytes != 0)) {
    emulation::stop("an asynchronous copy that is not aligned");
  }
  emulation::copy_later({shared, there ? global : nullptr, kBytes});
}
inline void end_async_group() { emulation::end_copy_group(); }
template <int kLeft>
void wait_for_async_groups() {
  emulation::wait_for_copy_groups(kLeft);
}
inline void wait_for_async_groups(int left) {
  emulation::wait_for_copy_groups(left < 0 ? 0 : left > 4 ? 4 : left);
}

}  // namespace fastgen::cuda
