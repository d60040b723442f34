// What CUDA C++ adds to C++, for a compiler of the host: included before a source of csrc/cuda, in
// which `emulated_nvcc.py` has replaced launches and matrix products. No other CUDA header follows.
//
// A block's threads are fibers that wait for each other where the GPU's do. Blocks run one after
// the other, warps from the last to the first, so that who leans on an order is found out.
#pragma once

#include <cuda_runtime_api.h>
#include <vector_functions.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "mma_layout.h"

#undef __global__
#undef __device__
#undef __host__
#undef __forceinline__
#undef __launch_bounds__
#undef __shared__
#undef __grid_constant__
#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __shared__ static
#define __grid_constant__
#define __CUDACC__ 1

namespace emulation {

// The thread that runs, and its place.
struct Place {
  int thread, threads;
  dim3 block, grid;
};
const Place& place();
[[noreturn]] void stop(const char* why);

void* dynamic_shared_memory();
void wait_for_block();
// All lanes of a warp give bytes; afterwards each may read those of the others, until it waits
// again.
constexpr std::size_t kLaneBytes = 32;
void give_to_warp(const void* bytes, std::size_t count);
const void* given_by(int lane);
void wait_for_warp();

// A copy that arrives when its group is waited for, and until then leaves ones, which is NaN;
// zeros where it comes from nowhere.
struct Copy {
  void* to;
  const void* from;
  std::size_t bytes;
};
void copy_later(const Copy& copy);
void end_copy_group();
void wait_for_copy_groups(int left);

// When the thread that runs does what it does. Blocks and launches are counted from the start of
// the process; of two threads of a block, what one did comes before what the other does only if
// both have waited for each other in between.
struct Moment {
  std::uint64_t block, first_of_launch;
  int thread;
  std::uint32_t waits_for_block, waits_for_warp;
  const void* kernel;
};
// False outside of a kernel.
bool now(Moment& moment);
// Whether memory is the stack of the thread that runs.
bool is_own(const void* address);
bool is_dynamic_shared(const void* address);

// Who is told of copies that have yet to arrive, and of launches that have ended.
struct Listener {
  void (*left)(const Copy&);
  void (*arrived)(const Copy&);
  void (*ended)(const void* kernel);
};
void listen(Listener listener);

cudaError_t allow_shared_memory(const void* kernel, int bytes);
void run(const void* kernel, dim3 grid, dim3 block, std::size_t shared, void (*body)(void*),
         void* closure);

template <typename Kernel, typename... Arguments>
void launch(dim3 grid, dim3 block, std::size_t shared, cudaStream_t, Kernel kernel,
            Arguments... arguments) {
  auto call = [&] { kernel(arguments...); };
  run(reinterpret_cast<const void*>(kernel), grid, block, shared,
      [](void* closure) { (*static_cast<decltype(call)*>(closure))(); }, &call);
}

template <typename T>
T shuffled(T value, int lane) {
  give_to_warp(&value, sizeof(T));
  T result;
  std::memcpy(&result, given_by(lane), sizeof(T));
  wait_for_warp();
  return result;
}

}  // namespace emulation

#define threadIdx (dim3(static_cast<unsigned>(emulation::place().thread), 0, 0))
#define blockIdx (emulation::place().block)
#define gridDim (emulation::place().grid)
inline void __syncthreads() { emulation::wait_for_block(); }
inline void __syncwarp() { emulation::wait_for_warp(); }
inline float __shfl_sync(unsigned, float value, int lane) {
  return emulation::shuffled(value, lane);
}
template <typename Kernel>
cudaError_t emulated_function_attribute(Kernel kernel, int bytes) {
  return emulation::allow_shared_memory(reinterpret_cast<const void*>(kernel), bytes);
}
#define cudaFuncSetAttribute(kernel, attribute, value) emulated_function_attribute(kernel, value)
