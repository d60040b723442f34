// Plays every thread of the kernels in csrc/cuda/reparameterize.cu, block by block.

#include "cuda/partial_sums_body.h"
#include "cuda/reparameterize_body.h"
#include "host.h"

using namespace fastgen;
using namespace fastgen::cuda;

namespace {

void tree(float* values, int copies, int columns, int threads) {
  for (; copies > 1; copies = (copies + 1) / 2) {
    for (int t = 0; t < threads; ++t) tree_level(values, copies, columns, t, threads);
  }
}

template <typename T, NoisePass kPass, Reparameterization kKind>
void run_block(const NoiseArguments<T>& a, std::int64_t block) {
  float sums[kNoiseThreads];
  for (int thread = 0; thread < kNoiseThreads; ++thread) {
    sums[thread] = noise_thread<T, kPass, kKind>(a, block, thread);
  }
  if (kKind != Reparameterization::sample_kl) return;
  // As the kernel does: lanes of a warp in pairs, then warps one by one.
  const int in_warp = a.plan.lanes < static_cast<int>(kWarp) ? a.plan.lanes : kWarp;
  for (int apart = in_warp / 2; apart > 0; apart /= 2) {
    float given[kNoiseThreads];
    std::memcpy(given, sums, sizeof(sums));
    for (int t = 0; t < kNoiseThreads; ++t) sums[t] += given[t ^ apart];
  }
  for (int t = 0; t < kNoiseThreads; ++t) {
    float sum = t % a.plan.lanes == 0 ? 0.0f : 1e30f;
    for (int lane = 0; lane < a.plan.lanes && t % a.plan.lanes == 0; lane += in_warp) {
      sum += sums[t + lane];
    }
    write_divergence(a, sum, block, t);
  }
}

template <typename T, NoisePass kPass>
void run_block(Reparameterization kind, const NoiseArguments<T>& a, std::int64_t block) {
  using R = Reparameterization;
  switch (kind) {
    case R::sample:
      return run_block<T, kPass, R::sample>(a, block);
    case R::sample_kl:
      return run_block<T, kPass, R::sample_kl>(a, block);
    case R::scaled_noise:
      return run_block<T, kPass, R::scaled_noise>(a, block);
    case R::backward:
      return run_block<T, kPass, R::backward>(a, block);
  }
}

template <typename T>
void run_block(const ReparameterizeCall& call, const NoiseArguments<T>& a, std::int64_t block) {
  switch (a.plan.pass) {
    case NoisePass::rows:
      return run_block<T, NoisePass::rows>(call.kind, a, block);
    case NoisePass::cut_rows:
      return run_block<T, NoisePass::cut_rows>(call.kind, a, block);
    case NoisePass::wide_tiles:
      return run_block<T, NoisePass::wide_tiles>(call.kind, a, block);
    case NoisePass::tiles:
      return run_block<T, NoisePass::tiles>(call.kind, a, block);
  }
}

// The whole storage behind a tensor, of which the strides pick elements.
template <typename T>
struct Operand {
  host::Buffer<T> storage;
  Strides strides;
  bool there;

  Operand(const std::string& folder, const std::string& name, char**& arguments, bool read,
          int offset)
      : storage(std::atoll(arguments[0]), offset),
        strides{std::atoll(arguments[1]), std::atoll(arguments[2]), std::atoll(arguments[3])},
        there(storage.count() > 0) {
    if (read && there) storage.read(folder + "/" + name + ".bin");
    arguments += 4;
  }
  T* data() { return there ? storage.data() : nullptr; }
};

template <typename T>
void run(Dtype dtype, char** arguments) {
  const std::string folder = arguments[1];
  ReparameterizeCall call{};
  call.kind = static_cast<Reparameterization>(std::atoi(arguments[3]));
  const std::int64_t seed = std::atoll(arguments[4]);
  const int offset = std::atoi(arguments[5]);
  const int multiprocessors = std::atoi(arguments[6]);
  const std::int64_t grad_kl_count = std::atoll(arguments[7]);
  call.grad_kl_stride = std::atoll(arguments[8]);
  call.samples = std::atoll(arguments[9]);
  call.channels = std::atoll(arguments[10]);
  call.positions = std::atoll(arguments[11]);
  char** rest = arguments + 12;
  Operand<T> mean(folder, "mean", rest, true, offset);
  Operand<T> logvar(folder, "logvar", rest, true, offset);
  Operand<T> grad_z(folder, "grad_z", rest, true, offset);
  Operand<T> result(folder, "result", rest, false, offset);
  Operand<T> grad_logvar(folder, "grad_logvar", rest, false, offset);
  host::Buffer<float> grad_kl(grad_kl_count);
  if (grad_kl_count > 0) grad_kl.read(folder + "/grad_kl.bin");
  const bool divergence = call.kind == Reparameterization::sample_kl;
  host::Buffer<float> kl(divergence ? call.samples : 0);

  call.mean = mean.data();
  call.logvar = logvar.data();
  call.grad_z = grad_z.data();
  call.grad_kl = grad_kl_count > 0 ? grad_kl.data() : nullptr;
  call.seed = &seed;
  call.result = result.data();
  call.grad_logvar = grad_logvar.data();
  call.kl = kl.data();
  call.mean_strides = mean.strides;
  call.logvar_strides = logvar.strides;
  call.grad_z_strides = grad_z.strides;
  call.result_strides = result.strides;
  call.grad_logvar_strides = grad_logvar.strides;
  call.dtype = dtype;

  const NoisePlan plan = noise_plan(call, sizeof(T), multiprocessors);
  host::require(!plan.too_large, "the plan says too large");
  host::Buffer<float> partials(divergence && plan.splits > 1 ? plan.splits * call.samples : 0);
  call.partials = partials.data();
  const NoiseArguments<T> a = noise_arguments<T>(call, plan);
  // Backwards, so that no block can lean on one before it.
  for (std::int64_t block = plan.blocks - 1; block >= 0; --block) run_block(call, a, block);

  if (divergence && plan.splits > 1) {
    const PartialSums sums{partials.data(), plan.splits, call.samples, 1, FastDivide(1), 0.5f};
    const int columns = sum_columns(sums);
    for (std::int64_t block = 0; block * columns < call.samples; ++block) {
      float shared[kSumThreads];
      for (int t = 0; t < kSumThreads; ++t) shared[t] = partial_sum(sums, block, t);
      tree(shared, kSumThreads / columns, columns, kSumThreads);
      for (int t = 0; t < kSumThreads; ++t) write_sum(sums, kl.data(), shared, block, t);
    }
  }
  result.storage.write(folder + "/result.bin");
  grad_logvar.storage.write(folder + "/grad_logvar.bin");
  kl.write(folder + "/kl.bin");
  host::Buffer<std::int64_t> facts(3);
  facts.data()[0] = static_cast<std::int64_t>(plan.pass);
  facts.data()[1] = plan.lanes;
  facts.data()[2] = plan.splits;
  facts.write(folder + "/plan.bin");
}

// The block that meets the end of a tensor of more than 2^32 elements. mean and logvar are 0, so
// the result is the noise itself.
void run_large(std::int64_t samples, std::int64_t row) {
  const std::int64_t count = samples * row;
  host::require(count > std::int64_t{1} << 32, "not large");
  const std::int64_t seed = 5;
  BFloat16* zeros = host::sparse<BFloat16>(count);
  BFloat16* result = host::sparse<BFloat16>(count);
  const Strides strides{row, 1, 1};
  ReparameterizeCall call{};
  call.kind = Reparameterization::sample;
  call.mean = zeros;
  call.logvar = zeros;
  call.seed = &seed;
  call.result = result;
  call.mean_strides = call.logvar_strides = call.result_strides = strides;
  call.samples = samples;
  call.channels = row;
  call.positions = 1;
  call.dtype = Dtype::bfloat16;
  const NoisePlan plan = noise_plan(call, 2, 132);
  host::require(plan.pass == (row % 8 == 0 ? NoisePass::rows : NoisePass::cut_rows) &&
                    !plan.too_large,
                "unexpected plan");
  const NoiseArguments<BFloat16> a = noise_arguments<BFloat16>(call, plan);
  // The blocks of the two vectors behind which the last sample ends.
  const std::int64_t batches = plan.blocks / plan.splits;
  const std::int64_t last = (count - 1) / 8 - (plan.samples - 1) * row / 8;
  for (std::int64_t unit = last - 1; unit <= last; ++unit) {
    run_block<BFloat16>(call, a, (batches - 1) * plan.splits + unit / plan.lanes % plan.splits);
  }
  for (std::int64_t i = count - 1; i > count - 9; --i) {
    float values[4];
    normals<true>(seed, i / 4, values);
    host::require(result[i].bits == from_float<BFloat16>(values[i % 4]).bits, "wrong noise");
  }
}

}  // namespace

int main(int count, char** arguments) {
  if (std::string(arguments[2]) == "large") {
    run_large(std::atoll(arguments[3]), std::atoll(arguments[4]));
    return 0;
  }
  host::require(count == 12 + 5 * 4,
                "usage: folder dtype kind seed offset multiprocessors grad_kl_count grad_kl_stride "
                "samples channels positions, then storage size and three strides of mean, logvar, "
                "grad_z, result, grad_logvar");
  const std::string dtype = arguments[2];
  if (dtype == "float32") run<float>(Dtype::float32, arguments);
  if (dtype == "bfloat16") run<BFloat16>(Dtype::bfloat16, arguments);
  if (dtype == "float16") run<Float16>(Dtype::float16, arguments);
  return 0;
}
