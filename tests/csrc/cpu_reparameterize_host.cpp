// Runs the pieces of csrc/cpu/reparameterize.cpp one by one, the last one first.

#include "cpu/reparameterize.cpp"
#include "host.h"

using namespace fastgen;
using namespace fastgen::cpu;

namespace {

template <typename T>
void run(Dtype dtype, char** arguments) {
  const std::string folder = arguments[1];
  ReparameterizeCall call{};
  call.kind = static_cast<Reparameterization>(std::atoi(arguments[3]));
  call.seed = std::atoll(arguments[4]);
  const std::int64_t offset = std::atoll(arguments[5]);
  call.samples = std::atoll(arguments[6]);
  call.channels = std::atoll(arguments[7]);
  call.positions = std::atoll(arguments[8]);
  const Strides strides{std::atoll(arguments[9]), std::atoll(arguments[10]),
                        std::atoll(arguments[11])};
  const std::int64_t size = std::atoll(arguments[12]);  // of the memory that the strides reach
  host::Buffer<T> mean(size, offset), logvar(size, offset), grad_z(size, offset);
  host::Buffer<T> result(size, offset), grad_logvar(size, offset);
  host::Buffer<Wide<T>> kl(call.samples), grad_kl(call.samples);
  mean.read(folder + "/mean.bin");
  logvar.read(folder + "/logvar.bin");
  grad_z.read(folder + "/grad_z.bin");
  grad_kl.read(folder + "/grad_kl.bin");

  const bool backward = call.kind == Reparameterization::backward;
  const bool divergence = call.kind == Reparameterization::sample_kl;
  call.mean = mean.data();
  call.logvar = logvar.data();
  call.grad_z = backward ? grad_z.data() : nullptr;
  call.grad_kl = backward ? grad_kl.data() : nullptr;
  call.grad_kl_stride = 1;
  call.result = result.data();
  call.grad_logvar = backward ? grad_logvar.data() : nullptr;
  call.kl = divergence ? kl.data() : nullptr;
  call.mean_strides = call.logvar_strides = call.grad_z_strides = strides;
  call.result_strides = call.grad_logvar_strides = strides;
  call.dtype = dtype;
  call.plan = noise_plan(call);
  host::Buffer<double> partials(call.plan.pieces);
  call.partials = partials.data();
  for (std::int64_t piece = call.plan.pieces; piece-- > 0;) {
    fastgen::cpu::FASTGEN_CPU::reparameterize(call, piece, piece + 1);
  }
  if (divergence && call.plan.chunks > 1) {
    fastgen::cpu::FASTGEN_CPU::reparameterize_sum(call, 0, call.samples);
  }
  result.write(folder + "/result.bin");
  grad_logvar.write(folder + "/grad_logvar.bin");
  kl.write(folder + "/kl.bin");
}

// The piece that meets the end of a tensor of more than 2^34 elements: its counters have left 32
// bits. mean and logvar are 0, so the result is the noise itself.
void run_large(std::int64_t samples, std::int64_t row) {
  const std::int64_t count = samples * row;
  host::require(count > std::int64_t{1} << 34, "not large");
  BFloat16* result = host::sparse<BFloat16>(count);
  ReparameterizeCall call{};
  call.kind = Reparameterization::sample;
  call.seed = 5;
  call.mean = call.logvar = host::sparse<BFloat16>(count);
  call.result = result;
  call.mean_strides = call.logvar_strides = call.result_strides = {row, 1, 1};
  call.samples = samples, call.channels = row, call.positions = 1;
  call.dtype = Dtype::bfloat16;
  call.plan = noise_plan(call);
  fastgen::cpu::FASTGEN_CPU::reparameterize(call, call.plan.pieces - 1, call.plan.pieces);
  for (std::int64_t i = count - 1; i > count - 9; --i) {
    float values[4];
    normals(call.seed, i / 4, values);
    const float off = to_float(result[i]) - to_float(from_float<BFloat16>(values[i % 4]));
    host::require(std::fabs(off) <= 0.01f * std::fabs(values[i % 4]), "wrong noise");
  }
}

}  // namespace

int main(int, char** arguments) {
  if (std::string(arguments[2]) == "large") {
    run_large(std::atoll(arguments[3]), std::atoll(arguments[4]));
    return 0;
  }
  const std::string dtype = arguments[2];
  if (dtype == "float32") run<float>(Dtype::float32, arguments);
  if (dtype == "bfloat16") run<BFloat16>(Dtype::bfloat16, arguments);
  if (dtype == "float16") run<Float16>(Dtype::float16, arguments);
  if (dtype == "float64") run<double>(Dtype::float64, arguments);
  return 0;
}
