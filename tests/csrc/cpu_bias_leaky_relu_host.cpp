// Runs the pieces of csrc/cpu/bias_leaky_relu.cpp in calls of one to three, the last ones first.

#include "cpu/bias_leaky_relu.cpp"
#include "host.h"

using namespace fastgen;
using namespace fastgen::cpu;

namespace {

template <typename T>
void run(Dtype dtype, char** arguments) {
  const std::string folder = arguments[1], operation = arguments[2];
  const bool shifted = std::atoi(arguments[4]) != 0, in_place = std::atoi(arguments[5]) != 0;
  const std::int64_t outer = std::atoll(arguments[6]), channels = std::atoll(arguments[7]);
  const std::int64_t inner = std::atoll(arguments[8]), offset = std::atoll(arguments[10]);
  const std::int64_t count = outer * channels * inner;
  host::Buffer<T> input(count, offset), output(count, offset), shift(channels, offset);
  host::Buffer<T> result(count, offset), sum(channels, offset);
  input.read(folder + "/input.bin");
  if (operation != "forward") output.read(folder + "/output.bin");
  if (shifted) shift.read(folder + "/shift.bin");

  BiasLeakyReluCall call{};
  call.input = input.data();
  call.shift = shifted ? shift.data() : nullptr;
  call.output = operation == "forward" ? nullptr : output.data();
  call.result = in_place ? input.data() : result.data();
  call.outer = outer, call.channels = channels, call.inner = inner;
  call.slope = std::atof(arguments[9]);
  call.dtype = dtype;
  call.plan = bias_plan(outer, channels, inner);
  host::Buffer<Wide<T>> partials(operation == "mask_sum" ? call.plan.partials : 0);
  if (operation == "mask_sum") call.sum = sum.data(), call.partials = partials.data();
  const std::int64_t together = 1 + offset % 3;
  for (std::int64_t end = call.plan.pieces; end > 0; end -= together) {
    const std::int64_t begin = end > together ? end - together : 0;
    fastgen::cpu::FASTGEN_CPU::bias_leaky_relu(call, begin, end);
  }
  if (call.sum != nullptr) {
    fastgen::cpu::FASTGEN_CPU::bias_leaky_relu_sum(call, 0, channels);
  }
  (in_place ? input : result).write(folder + "/result.bin");
  sum.write(folder + "/sum.bin");
  host::Buffer<std::int64_t> facts(2);
  facts.data()[0] = call.plan.planes;
  facts.data()[1] = call.plan.pieces;
  facts.write(folder + "/plan.bin");
}

// The piece that meets the end of a tensor of more than 2^32 elements, all of them 0.
void run_large(std::int64_t outer, std::int64_t channels, std::int64_t inner) {
  const std::int64_t count = outer * channels * inner;
  host::require(count > std::int64_t{1} << 32, "not large");
  host::Buffer<BFloat16> shift(channels);
  for (std::int64_t c = 0; c < channels; ++c) {
    shift.data()[c] = from_float<BFloat16>(static_cast<float>(c % 100 + 1));
  }
  BFloat16* result = host::sparse<BFloat16>(count);
  BiasLeakyReluCall call{};
  call.input = host::sparse<BFloat16>(count);
  call.shift = shift.data();
  call.result = result;
  call.outer = outer, call.channels = channels, call.inner = inner;
  call.slope = 0.2;
  call.dtype = Dtype::bfloat16;
  call.plan = bias_plan(outer, channels, inner);
  fastgen::cpu::FASTGEN_CPU::bias_leaky_relu(call, call.plan.pieces - 1, call.plan.pieces);
  const float last = to_float(result[count - 1]);
  host::require(last == static_cast<float>((channels - 1) % 100 + 1), "wrong element");
}

}  // namespace

int main(int, char** arguments) {
  if (std::string(arguments[2]) == "large") {
    run_large(std::atoll(arguments[3]), std::atoll(arguments[4]), std::atoll(arguments[5]));
    return 0;
  }
  const std::string dtype = arguments[3];
  if (dtype == "float32") run<float>(Dtype::float32, arguments);
  if (dtype == "bfloat16") run<BFloat16>(Dtype::bfloat16, arguments);
  if (dtype == "float16") run<Float16>(Dtype::float16, arguments);
  if (dtype == "float64") run<double>(Dtype::float64, arguments);
  return 0;
}
