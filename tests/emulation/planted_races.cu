// Kernels that do one thing wrong, or nothing, for the tests of races.cpp.
#include <string>

#include "cuda/async_copy.h"

namespace fastgen::cuda {

namespace {

constexpr int kPlantedThreads = 64;

// Each thread reads what its neighbour wrote.
template <bool kWaitsForBlock, bool kWaitsForWarp>
__global__ void neighbours_kernel(const float* input, float* result) {
  __shared__ float numbers[kPlantedThreads];
  const int thread = static_cast<int>(threadIdx.x);
  numbers[thread] = input[thread];
  if constexpr (kWaitsForBlock) __syncthreads();
  if constexpr (kWaitsForWarp) __syncwarp();
  result[thread] = numbers[(thread + 1) % kPlantedThreads];
}

// The second round overwrites what the slow still read in the first.
template <bool kWaitsBetween>
__global__ void rounds_kernel(const float* input, float* result) {
  __shared__ float numbers[kPlantedThreads];
  const int thread = static_cast<int>(threadIdx.x);
  float sum = 0.0f;
  for (int round = 0; round < 2; ++round) {
    if (kWaitsBetween && round != 0) __syncthreads();
    numbers[thread] = input[thread];
    __syncthreads();
    sum += numbers[(thread + 33) % kPlantedThreads];
  }
  result[thread] = sum;
}

// All blocks write the same numbers.
__global__ void blocks_kernel(const float* input, float* result) {
  result[static_cast<int>(threadIdx.x)] = input[static_cast<int>(threadIdx.x)];
}

template <bool kWaits>
__global__ void copies_kernel(const float* input, float* result) {
  __shared__ float numbers[kPlantedThreads];
  const int thread = static_cast<int>(threadIdx.x);
  copy_async<4>(&numbers[thread], &input[thread], true);
  end_async_group();
  if constexpr (kWaits) wait_for_async_groups<0>();
  __syncthreads();
  result[thread] = numbers[(thread + 1) % kPlantedThreads];
}

}  // namespace

void launch_planted(const std::string& which) {
  float input[kPlantedThreads] = {}, result[kPlantedThreads];
  void (*kernel)(const float*, float*) = nullptr;
  if (which == "barrier") kernel = neighbours_kernel<true, false>;
  if (which == "no barrier") kernel = neighbours_kernel<false, false>;
  if (which == "a warp's barrier alone") kernel = neighbours_kernel<false, true>;
  if (which == "rounds") kernel = rounds_kernel<true>;
  if (which == "rounds that overlap") kernel = rounds_kernel<false>;
  if (which == "one block" || which == "two blocks") kernel = blocks_kernel;
  if (which == "copies") kernel = copies_kernel<true>;
  if (which == "copies that nobody waits for") kernel = copies_kernel<false>;
  const unsigned blocks = which == "two blocks" ? 2 : 1;
  kernel<<<blocks, kPlantedThreads, 0, nullptr>>>(input, result);
}

}  // namespace fastgen::cuda

int main(int, char** arguments) { fastgen::cuda::launch_planted(arguments[1]); }
