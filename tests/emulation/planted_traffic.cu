// A kernel whose requests to memory can be counted by hand, for the tests of traffic.cpp.
#include <cstdlib>
#include <string>

#include "cuda/async_copy.h"
#include "watch.h"

namespace fastgen::cuda {

namespace {

constexpr int kPlantedThreads = 32, kMostApart = 32;

// Each thread brings kWords floats, `apart` floats from its neighbour's, into shared memory, as
// often as there are rounds, and writes the first of them.
template <int kWords, bool kCopies>
__global__ void strides_kernel(const float* input, float* result, int apart, int rounds) {
  alignas(16) __shared__ float numbers[kPlantedThreads * kMostApart];
  const int thread = static_cast<int>(threadIdx.x), place = thread * apart;
  for (int round = 0; round < rounds; ++round) {
    if constexpr (kCopies) {
      copy_async<4 * kWords>(numbers + place, input + place, true);
      end_async_group();
      wait_for_async_groups<0>();
    } else {
      const auto pack = load_pack<float, kWords>(input + place);
      store_shared(numbers + place, pack.values);
    }
  }
  __syncthreads();
  result[thread] = numbers[place];
}

}  // namespace

void launch_planted(int words, bool copies, int apart, int rounds) {
  const auto tensor = [](const char* name, std::size_t bytes) {
    void* at = std::aligned_alloc(128, bytes);
    emulation::add_tensor({name, static_cast<const char*>(at), bytes});
    return static_cast<float*>(std::memset(at, 0, bytes));
  };
  const float* input = tensor("input", kPlantedThreads * kMostApart * sizeof(float));
  float* result = tensor("result", kPlantedThreads * sizeof(float));
  auto* kernel = copies ? strides_kernel<1, true> : strides_kernel<1, false>;
  if (words == 2) kernel = copies ? strides_kernel<2, true> : strides_kernel<2, false>;
  if (words == 4) kernel = copies ? strides_kernel<4, true> : strides_kernel<4, false>;
  kernel<<<1, kPlantedThreads, 0, nullptr>>>(input, result, apart, rounds);
}

}  // namespace fastgen::cuda

int main(int, char** arguments) {
  const auto number = [&](int i) { return std::stoi(arguments[i]); };
  fastgen::cuda::launch_planted(number(1), number(2) != 0, number(3), number(4));
}
