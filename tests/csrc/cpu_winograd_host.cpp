// Runs the Winograd kernels of csrc/cpu piece by piece.

#include "cpu/conv2d_bias_leaky_relu_winograd.h"
#include "cpu/conv2d_bias_leaky_relu_winograd_weight.h"
#include "cpu/conv_transpose2d_bias_leaky_relu_winograd.h"
#include "cpu_host.h"

using namespace fastgen;
using namespace fastgen::cpu;
namespace kernels = fastgen::cpu::FASTGEN_CPU;

namespace {

// What memory holds before: 5e7 in float32 and BFloat16. The kernels would compute anew what NaN makes.
constexpr int kFill = 0x4c;

struct Options {
  std::string folder, operation;
  WinogradShape shape;
  bool bias, output, stream;
  double slope;
  std::int64_t offset, threads, weight_strides[4];
};

void run_packed(const WinogradCall& call, WinogradPack* pack, Winograd* kernel) {
  if (call.plan.packed_bytes > 0) {
    for (std::int64_t panel = call.plan.panels; panel-- > 0;) pack(call, panel, panel + 1);
  }
  host::run_pieces(call, kernel, kFill);
}

template <typename T>
void run(const Options& o) {
  const WinogradShape& s = o.shape;
  const bool transposed = o.operation == "transposed", gradient = o.operation == "weight";
  host::Buffer<T> input(s.batch * s.channels * s.height * s.width, o.offset);
  host::Buffer<T> map(s.batch * s.filters * s.map_height * s.map_width, o.offset);
  host::Buffer<T> weight(s.filters * s.channels * s.kernel * s.kernel, o.offset);
  host::Buffer<T> bias(transposed ? s.channels : s.filters), output(map.count(), o.offset);
  WinogradCall call{};
  call.shape = s;
  call.plan = transposed ? winograd_conv_transpose2d_plan(s, o.threads)
              : gradient ? winograd_conv2d_weight_plan(s, o.threads)
                         : winograd_conv2d_plan(s, o.threads);
  host::Buffer<char> packed(call.plan.packed_bytes);
  std::memset(packed.data(), kFill, packed.count());
  call.packed = call.plan.packed_bytes > 0 ? packed.data() : nullptr;
  call.slope = o.slope;
  call.stream = o.stream;
  std::copy(o.weight_strides, o.weight_strides + 4,
            gradient ? call.result_strides : call.weight_strides);
  if (!transposed) call.input = input.read(o.folder + "/input.bin").data();
  if (transposed || gradient) call.map = map.read(o.folder + "/map.bin").data();
  if (!gradient) call.weight = weight.read(o.folder + "/weight.bin").data();
  call.bias = o.bias ? bias.read(o.folder + "/bias.bin").data() : nullptr;
  call.output = o.output ? output.read(o.folder + "/output.bin").data() : nullptr;
  host::Buffer<T>& result = transposed ? input : gradient ? weight : map;
  call.result = result.data();
  if (transposed) {
    run_packed(call, kernels::winograd_conv_transpose2d_pack, kernels::winograd_conv_transpose2d);
  } else if (gradient) {
    host::run_pieces(call, kernels::winograd_conv2d_weight, kFill);
    if (call.plan.segments > 1) {
      for (std::int64_t k = s.filters; k-- > 0;) kernels::winograd_conv2d_weight_sum(call, k, k + 1);
    }
  } else {
    run_packed(call, kernels::winograd_conv2d_pack, kernels::winograd_conv2d);
  }
  result.write(o.folder + "/result.bin");
}

}  // namespace

int main(int count, char** arguments) {
  host::require(count == 26, "25 arguments, see test_cpu_winograd.py");
  host::Arguments next{arguments, 4};
  Options o{};
  o.folder = arguments[1], o.operation = arguments[2];
  o.slope = next.real();
  WinogradShape& s = o.shape;
  for (bool* flag : {&o.bias, &o.output, &o.stream, &s.mixed}) *flag = next.flag();
  o.offset = next.number(), o.threads = next.number();
  for (std::int64_t* value : {&s.batch, &s.channels, &s.height, &s.width, &s.filters, &s.map_height,
                              &s.map_width, &s.kernel, &s.stride, &s.padding_h, &s.padding_w}) {
    *value = next.number();
  }
  for (std::int64_t& stride : o.weight_strides) stride = next.number();
  host::with_cpu_dtype(arguments[3], [&](Dtype dtype, auto element) {
    s.dtype = dtype;
    run<decltype(element)>(o);
  });
  return 0;
}
