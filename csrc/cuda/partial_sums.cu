#include "cuda/partial_sums.h"

#include "cuda/partial_sums_body.h"

namespace fastgen::cuda {

namespace {

template <typename T>
__global__ void __launch_bounds__(kSumThreads) sum_partials_kernel(PartialSums sums, T* result) {
  __shared__ float tree[kSumThreads];
  const int thread = static_cast<int>(threadIdx.x);
  wait_for_kernel_before();
  tree[thread] = partial_sum(sums, blockIdx.x, thread);
  const int columns = sum_columns(sums);
  for (int copies = kSumThreads / columns; copies > 1; copies = rows_left(copies)) {
    __syncthreads();
    wide_tree_level(tree, copies, columns, thread, kSumThreads);
  }
  __syncthreads();
  write_sum(sums, result, tree, blockIdx.x, thread);
}

#if defined(__CUDACC_VER_MAJOR__)
bool overlaps_launches() {
  int device = 0;
  int major = 0;
  return cudaGetDevice(&device) == cudaSuccess &&
         cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device) ==
             cudaSuccess &&
         major >= 9;
}
#endif

template <typename T>
const char* launch(const PartialSums& sums, void* result, void* stream) {
  const std::int64_t blocks = ceil_div(sums.channels, sum_columns(sums));
#if defined(__CUDACC_VER_MAJOR__)
  if (overlaps_launches()) {
    cudaLaunchAttribute attribute{};
    attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attribute.val.programmaticStreamSerializationAllowed = 1;
    cudaLaunchConfig_t config{};
    config.gridDim = dim3(static_cast<unsigned>(blocks));
    config.blockDim = dim3(kSumThreads);
    config.stream = static_cast<cudaStream_t>(stream);
    config.attrs = &attribute;
    config.numAttrs = 1;
    cudaLaunchKernelEx(&config, sum_partials_kernel<T>, sums, static_cast<T*>(result));
    return launch_error();
  }
#endif
  sum_partials_kernel<T>
      <<<static_cast<unsigned>(blocks), kSumThreads, 0, static_cast<cudaStream_t>(stream)>>>(
          sums, static_cast<T*>(result));
  return launch_error();
}

}  // namespace

const char* sum_partials(const float* partials, std::int64_t rows, std::int64_t channels,
                         std::int64_t inner, float factor, void* result, Dtype dtype,
                         void* stream) {
  if (channels == 0) return nullptr;
  if (rows * inner >= std::int64_t{1} << 31) return "2^31 or more partial sums per channel";
  const PartialSums sums{partials, rows, channels, inner,
                         FastDivide(static_cast<std::uint32_t>(inner)), factor};
  switch (dtype) {
    case Dtype::float32:
      return launch<float>(sums, result, stream);
    case Dtype::bfloat16:
      return launch<BFloat16>(sums, result, stream);
    case Dtype::float16:
      return launch<Float16>(sums, result, stream);
  }
  return "unknown dtype";
}

}  // namespace fastgen::cuda
