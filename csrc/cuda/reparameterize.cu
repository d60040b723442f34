#include "cuda/reparameterize.h"

#include "cuda/partial_sums.h"
#include "cuda/reparameterize_body.h"

namespace fastgen::cuda {

namespace {

template <typename T, NoisePass kPass, Reparameterization kKind>
__global__ void __launch_bounds__(kNoiseThreads) reparameterize_kernel(NoiseArguments<T> a) {
  const int thread = static_cast<int>(threadIdx.x);
  float kl = noise_thread<T, kPass, kKind>(a, blockIdx.x, thread);
  if constexpr (kKind == Reparameterization::sample_kl) {
    const unsigned lanes = static_cast<unsigned>(a.plan.lanes);
    for (unsigned apart = (lanes < kWarp ? lanes : kWarp) / 2; apart > 0; apart /= 2) {
      kl += __shfl_sync(~0u, kl, static_cast<int>((threadIdx.x ^ apart) % kWarp));
    }
    if (lanes > kWarp) {
      __shared__ float warps[kNoiseThreads / kWarp];
      const unsigned warp = threadIdx.x / kWarp;
      if (threadIdx.x % kWarp == 0) warps[warp] = kl;
      __syncthreads();
      kl = 0.0f;
      for (unsigned w = 0; w < kNoiseThreads / kWarp; ++w) {
        if (w >= warp && w < warp + lanes / kWarp) kl += warps[w];
      }
    }
    write_divergence(a, kl, blockIdx.x, thread);
  }
}

template <typename T, NoisePass kPass, Reparameterization kKind>
const char* launch(const NoiseArguments<T>& a, void* stream) {
  reparameterize_kernel<T, kPass, kKind><<<static_cast<unsigned>(a.plan.blocks), kNoiseThreads, 0,
                                           static_cast<cudaStream_t>(stream)>>>(a);
  return launch_error();
}

template <typename T, NoisePass kPass>
const char* launch(Reparameterization kind, const NoiseArguments<T>& a, void* stream) {
  switch (kind) {
    case Reparameterization::sample:
      return launch<T, kPass, Reparameterization::sample>(a, stream);
    case Reparameterization::sample_kl:
      return launch<T, kPass, Reparameterization::sample_kl>(a, stream);
    case Reparameterization::scaled_noise:
      return launch<T, kPass, Reparameterization::scaled_noise>(a, stream);
    case Reparameterization::backward:
      return launch<T, kPass, Reparameterization::backward>(a, stream);
  }
  return "unknown kind of reparameterization";
}

template <typename T>
const char* launch(const ReparameterizeCall& call, void* stream) {
  const NoisePlan plan = noise_plan(call, sizeof(T), multiprocessors());
  if (plan.too_large) return "a sample of 2^31 or more groups in strided memory";
  const NoiseArguments<T> a = noise_arguments<T>(call, plan);
  const char* error = nullptr;
  switch (plan.pass) {
    case NoisePass::rows:
      error = launch<T, NoisePass::rows>(call.kind, a, stream);
      break;
    case NoisePass::cut_rows:
      error = launch<T, NoisePass::cut_rows>(call.kind, a, stream);
      break;
    case NoisePass::wide_tiles:
      error = launch<T, NoisePass::wide_tiles>(call.kind, a, stream);
      break;
    case NoisePass::tiles:
      error = launch<T, NoisePass::tiles>(call.kind, a, stream);
      break;
  }
  if (error != nullptr || call.kind != Reparameterization::sample_kl || plan.splits == 1) {
    return error;
  }
  return sum_partials(call.partials, plan.splits, call.samples, 1, 0.5f, call.kl, Dtype::float32,
                      stream);
}

// Samples of no elements still have a divergence, 0.
bool nothing_to_do(const ReparameterizeCall& call) {
  return call.samples == 0 || (call.channels * call.positions == 0 &&
                               call.kind != Reparameterization::sample_kl);
}

}  // namespace

std::int64_t partial_sums_size(const ReparameterizeCall& call) {
  if (call.kind != Reparameterization::sample_kl || nothing_to_do(call)) return 0;
  const int element_size = call.dtype == Dtype::float32 ? 4 : 2;
  const NoisePlan plan = noise_plan(call, element_size, multiprocessors());
  return plan.splits == 1 ? 0 : plan.splits * call.samples;
}

const char* reparameterize(const ReparameterizeCall& call, void* stream) {
  if (nothing_to_do(call)) return nullptr;
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
