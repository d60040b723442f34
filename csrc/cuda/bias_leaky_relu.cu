#include "cuda/bias_leaky_relu.h"

#include "cuda/bias_leaky_relu_body.h"
#include "cuda/partial_sums.h"

namespace fastgen::cuda {

namespace {

// Blocks that a multiprocessor holds at once.
constexpr int flat_resident(bool mask) { return mask ? 5 : 8; }
constexpr int kWalkResident = 4;

template <typename T, int V, bool kMask>
__global__ void __launch_bounds__(kBiasThreads, flat_resident(kMask))
    bias_leaky_relu_flat(BiasArguments<T> a) {
  bias_flat<T, V, kMask, kFlatUnroll<kMask>>(a, blockIdx.x, static_cast<int>(threadIdx.x));
}

template <typename T, int V, bool kMask, bool kSum>
__global__ void __launch_bounds__(kBiasThreads, kWalkResident)
    bias_leaky_relu_columns(BiasArguments<T> a) {
  const int thread = static_cast<int>(threadIdx.x);
  if constexpr (kSum) let_next_kernel_start();
  float sums[V];
  const bool used = bias_columns<T, V, kMask, kSum, kWalkUnroll>(a, blockIdx.x, thread, sums);
  if constexpr (kSum) {
    if (a.plan.tiles > 1) {
      if (used) write_tile_columns<T, V>(a, blockIdx.x, thread, sums);
      return;
    }
    alignas(16) __shared__ float tree[kBiasThreads * V];
    put_columns<V>(tree, thread, sums);
    const int base = column_base(a);
    for (int copies = column_copies<T, V>(a); copies > 1; copies = rows_left(copies)) {
      __syncthreads();
      wide_tree_level(tree, copies, base, thread, a.plan.threads);
    }
    __syncthreads();
    write_tree_columns(a, tree, blockIdx.x, thread);
  }
}

template <typename T, int V, bool kMask, bool kSum>
__global__ void __launch_bounds__(kBiasThreads, kWalkResident)
    bias_leaky_relu_planes(BiasArguments<T> a) {
  const int thread = static_cast<int>(threadIdx.x);
  if constexpr (kSum) let_next_kernel_start();
  const float sum = bias_planes<T, V, kMask, kSum, kWalkUnroll>(a, blockIdx.x, thread);
  if constexpr (kSum) {
    __shared__ float tree[kBiasThreads];
    tree[thread] = sum;
    for (int copies = a.plan.threads; copies > 1; copies = rows_left(copies)) {
      __syncthreads();
      wide_tree_level(tree, copies, 1, thread, a.plan.threads);
    }
    __syncthreads();
    if (thread == 0) a.partials[blockIdx.x] = tree[0];  // block = split * channels + channel
  }
}

template <typename T>
bool wide_enough(const BiasLeakyReluCall& call) {
  return is_aligned(call.input, 16) && is_aligned(call.output, 16) && is_aligned(call.result, 16);
}

template <typename T>
BiasPlan plan_of(const BiasLeakyReluCall& call) {
  const int V = wide_enough<T>(call) ? kWideExtent<T> : 1;
  const bool sum = call.sum != nullptr;
  const int unroll = call.output != nullptr ? kFlatUnroll<true> : kFlatUnroll<false>;
  return bias_plan(call.outer, call.channels, call.inner, V, sum || call.shift != nullptr, sum,
                   multiprocessors(), unroll, is_aligned(call.shift, 16));
}

template <typename T, int V, bool kMask, bool kSum>
const char* launch(const BiasArguments<T>& a, void* stream) {
  auto kernel = a.plan.pass == BiasPass::columns ? bias_leaky_relu_columns<T, V, kMask, kSum>
                                                 : bias_leaky_relu_planes<T, V, kMask, kSum>;
  if constexpr (!kSum) {
    if (a.plan.pass == BiasPass::flat) kernel = bias_leaky_relu_flat<T, V, kMask>;
  }
  kernel<<<static_cast<unsigned>(a.plan.blocks), static_cast<unsigned>(a.plan.threads), 0,
           static_cast<cudaStream_t>(stream)>>>(a);
  return launch_error();
}

template <typename T, int V>
const char* launch(const BiasLeakyReluCall& call, const BiasArguments<T>& a, void* stream) {
  if (call.output == nullptr) return launch<T, V, false, false>(a, stream);
  if (call.sum == nullptr) return launch<T, V, true, false>(a, stream);
  return launch<T, V, true, true>(a, stream);
}

template <typename T>
const char* launch(const BiasLeakyReluCall& call, void* stream) {
  const bool empty = call.outer == 0 || call.channels == 0 || call.inner == 0;
  BiasPlan plan{};
  if (!empty) {
    plan = plan_of<T>(call);
    if (plan.too_large) return "a plane of 2^30 or more 16-byte vectors";
    const BiasArguments<T> a{static_cast<const T*>(call.input),
                             static_cast<const T*>(call.shift),
                             static_cast<const T*>(call.output),
                             static_cast<T*>(call.result),
                             call.partials,
                             call.outer,
                             call.channels,
                             call.inner,
                             call.slope,
                             plan};
    const char* error = wide_enough<T>(call) ? launch<T, kWideExtent<T>>(call, a, stream)
                                             : launch<T, 1>(call, a, stream);
    if (error != nullptr || call.sum == nullptr) return error;
  }
  // An empty tensor has sums too: zeros, the sum of no partial sums.
  if (call.sum == nullptr) return nullptr;
  return sum_partials(call.partials, plan.partial_rows, call.channels,
                      empty ? 1 : plan.partial_inner, 1.0f, call.sum, call.dtype, stream);
}

}  // namespace

std::int64_t partial_sums_size(const BiasLeakyReluCall& call) {
  if (call.sum == nullptr || call.outer * call.channels * call.inner == 0) return 0;
  BiasPlan plan{};
  switch (call.dtype) {
    case Dtype::float32:
      plan = plan_of<float>(call);
      break;
    case Dtype::bfloat16:
      plan = plan_of<BFloat16>(call);
      break;
    case Dtype::float16:
      plan = plan_of<Float16>(call);
      break;
  }
  return plan.partial_rows * call.channels * plan.partial_inner;
}

const char* bias_leaky_relu(const BiasLeakyReluCall& call, void* stream) {
  switch (call.dtype) {
    case Dtype::float32:
      return launch<float>(call, stream);
    case Dtype::bfloat16:
      return launch<BFloat16>(call, stream);
    case Dtype::float16:
      return launch<Float16>(call, stream);
  }
  return "unknown dtype";
}

}  // namespace fastgen::cuda
