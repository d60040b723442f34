// Launches every kernel of csrc/cuda that needs no Hopper on the emulated device, which watches
// what they do to memory. A line of the standard input is one call: the operation, a dtype and its
// numbers. The kernels that ran are named by their addresses.

#include <cmath>
#include <iostream>
#include <map>
#include <memory>
#include <set>
#include <sstream>

#include "cuda/bias_leaky_relu.h"
#include "cuda/conv2d_bias_leaky_relu.h"
#include "cuda/conv2d_bias_leaky_relu_weight.h"
#include "cuda/conv_transpose2d_bias_leaky_relu.h"
#include "cuda/reparameterize.h"
#include "host.h"
#include "watch.h"

namespace emulation {
const std::set<const void*>& kernels_run();
}

using namespace fastgen;
using namespace fastgen::cuda;

namespace {

// Memory of a tensor: small numbers, whatever the dtype, or what nobody has written yet.
class Memory {
 public:
  Memory(const char* name, std::int64_t count, std::int64_t size, bool written = true)
      : name_(name),
        bytes_(count * size),
        memory_(std::aligned_alloc(256, bytes_ / 256 * 256 + 256)) {  // as CUDA's own
    std::memset(memory_.get(), written ? 0x3c : 0xff, bytes_);
    emulation::add_tensor({name, static_cast<const char*>(at()), static_cast<std::size_t>(bytes_)});
  }
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;
  ~Memory() { emulation::remove_tensor(at()); }
  void* at() { return memory_.get(); }
  template <typename T>
  void require_numbers() const {
    const auto* values = static_cast<const T*>(memory_.get());
    for (std::int64_t i = 0; i < bytes_ / static_cast<std::int64_t>(sizeof(T)); ++i) {
      host::require(!std::isnan(to_float(values[i])), std::string(name_) + " holds NaN");
    }
  }

 private:
  struct Free {
    void operator()(void* memory) const { std::free(memory); }
  };
  const char* name_;
  std::int64_t bytes_;
  std::unique_ptr<void, Free> memory_;
};

std::string dtype_name;
Dtype dtype;
std::int64_t size;  // of an element

void require_numbers(const Memory& memory) {
  host::with_dtype(dtype_name, [&](auto zero) { memory.require_numbers<decltype(zero)>(); });
}

std::int64_t next(std::istream& line) {
  std::int64_t number = 0;
  host::require(static_cast<bool>(line >> number), "a line is too short");
  return number;
}

void require_success(const char* problem) {
  host::require(problem == nullptr, problem ? problem : "");
}

void bias(std::istream& line) {
  BiasLeakyReluCall call{};
  for (auto* extent : {&call.outer, &call.channels, &call.inner}) *extent = next(line);
  const bool shift = next(line) != 0, mask = next(line) != 0, sum = next(line) != 0;
  const bool in_place = next(line) != 0;
  const std::int64_t total = call.outer * call.channels * call.inner;
  Memory input("input", total, size), shifts("shifts", call.channels, size),
      output("output", total, size);
  Memory result("result", total, size, false), sums("sums", call.channels, size, false);
  call.input = input.at();
  if (shift) call.shift = shifts.at();
  if (mask) call.output = output.at();
  call.result = in_place ? input.at() : result.at();
  if (sum) call.sum = sums.at();
  call.slope = 0.2f;
  call.dtype = dtype;
  Memory partials("partials", partial_sums_size(call), 4, false);
  call.partials = static_cast<float*>(partials.at());
  require_success(bias_leaky_relu(call, nullptr));
  require_numbers(in_place ? input : result);
  if (sum) require_numbers(sums);
}

void noise(std::istream& line) {
  ReparameterizeCall call{};
  call.kind = static_cast<Reparameterization>(next(line));
  for (auto* extent : {&call.samples, &call.channels, &call.positions}) *extent = next(line);
  const bool last = next(line) != 0;
  const std::int64_t sample = call.channels * call.positions, total = call.samples * sample;
  const Strides strides = last ? Strides{sample, 1, call.channels}
                               : Strides{sample, call.positions, 1};
  call.mean_strides = call.logvar_strides = call.grad_z_strides = call.result_strides =
      call.grad_logvar_strides = strides;
  Memory mean("mean", total, size), logvar("logvar", total, size), grad("grad", total, size),
      grad_kl("grad_kl", call.samples, 4);
  Memory result("result", total, size, false), grad_logvar("grad_logvar", total, size, false),
      kl("kl", call.samples, 4, false);
  const std::int64_t seed = 7;
  call.mean = mean.at();
  call.logvar = logvar.at();
  call.seed = &seed;
  call.result = result.at();
  if (call.kind == Reparameterization::backward) {
    call.grad_z = grad.at();
    call.grad_kl = static_cast<float*>(grad_kl.at());
    call.grad_kl_stride = 1;
    call.grad_logvar = grad_logvar.at();
  }
  const bool divergence = call.kind == Reparameterization::sample_kl;
  if (divergence) call.kl = static_cast<float*>(kl.at());
  call.dtype = dtype;
  Memory partials("partials", partial_sums_size(call), 4, false);
  call.partials = static_cast<float*>(partials.at());
  require_success(reparameterize(call, nullptr));
  require_numbers(result);
  if (call.grad_logvar != nullptr) require_numbers(grad_logvar);
  if (divergence) kl.require_numbers<float>();
}

void put_strides(std::int64_t (&strides)[4], const std::int64_t (&extents)[4], bool last) {
  const auto [n, c, h, w] = extents;
  (void)n;
  const std::int64_t rows[4] = {c * h * w, h * w, w, 1}, pixels[4] = {c * h * w, 1, w * c, c};
  std::memcpy(strides, last ? pixels : rows, sizeof(strides));
}

// Pictures of `channels` channels, maps of `others`.
struct Edge {
  std::int64_t batch, channels, others, height, width, kernel, stride, padding, map_height,
      map_width;
  bool last;
  std::int64_t pixels() const { return batch * channels * height * width; }
  std::int64_t points() const { return batch * others * map_height * map_width; }
  std::int64_t weights() const { return others * channels * kernel * kernel; }
  void put_picture_strides(std::int64_t (&strides)[4]) const {
    put_strides(strides, {batch, channels, height, width}, last);
  }
  void put_weight_strides(std::int64_t (&strides)[4]) const {
    put_strides(strides, {others, channels, kernel, kernel}, last);
  }

  explicit Edge(std::istream& line) {
    for (auto* number :
         {&batch, &channels, &others, &height, &width, &kernel, &stride, &padding}) {
      *number = next(line);
    }
    last = next(line) != 0;
    map_height = (height + 2 * padding - kernel) / stride + 1;
    map_width = (width + 2 * padding - kernel) / stride + 1;
  }
};

// What the calls of all three say alike.
template <typename Call>
Call call_of(const Edge& edge) {
  Call call{};
  call.batch = edge.batch;
  call.kernel_h = call.kernel_w = edge.kernel;
  call.stride_h = call.stride_w = edge.stride;
  call.padding_h = call.padding_w = edge.padding;
  call.dtype = dtype;
  return call;
}

void edge_forward(std::istream& line) {
  const Edge edge(line);
  auto call = call_of<ImageEdgeConvCall>(edge);
  const bool bias = next(line) != 0, mask = next(line) != 0;
  call.allow_tf32 = next(line) != 0;
  Memory input("input", edge.pixels(), size), weight("weight", edge.weights(), size),
      shifts("shifts", edge.others, size);
  Memory output("output", edge.points(), size), result("result", edge.points(), size, false);
  call.input = input.at();
  call.weight = weight.at();
  if (bias) call.bias = shifts.at();
  if (mask) call.output = output.at();
  call.result = result.at();
  call.channels = edge.channels, call.height = edge.height, call.width = edge.width;
  call.filters = edge.others;
  call.out_height = edge.map_height, call.out_width = edge.map_width;
  edge.put_picture_strides(call.input_strides);
  edge.put_weight_strides(call.weight_strides);
  call.slope = 0.2f;
  call.channels_last = edge.last;
  require_success(image_edge_conv2d(call, nullptr));
  require_numbers(result);
}

void edge_weight(std::istream& line) {
  const Edge edge(line);
  auto call = call_of<ImageEdgeWeightCall>(edge);
  Memory picture("picture", edge.pixels(), size), map("map", edge.points(), size);
  Memory result("result", edge.weights(), size, false);
  call.picture = picture.at();
  call.map = map.at();
  call.result = result.at();
  call.channels = edge.channels, call.height = edge.height, call.width = edge.width;
  call.filters = edge.others;
  call.map_height = edge.map_height, call.map_width = edge.map_width;
  edge.put_picture_strides(call.picture_strides);
  edge.put_weight_strides(call.result_strides);
  Memory partials("partials", edge_weight_partials(call), 4, false);
  call.partials = static_cast<float*>(partials.at());
  require_success(image_edge_conv2d_weight(call, nullptr));
  require_numbers(result);
}

void edge_transposed(std::istream& line) {
  const Edge edge(line);
  auto call = call_of<ImageEdgeTransposeCall>(edge);
  const bool bias = next(line) != 0;
  call.tanh = next(line) != 0;
  call.allow_tf32 = next(line) != 0;
  Memory input("input", edge.points(), size), weight("weight", edge.weights(), size),
      shifts("shifts", edge.channels, size);
  Memory result("result", edge.pixels(), size, false);
  call.input = input.at();
  call.weight = weight.at();
  if (bias) call.bias = shifts.at();
  call.result = result.at();
  call.channels = edge.others, call.height = edge.map_height, call.width = edge.map_width;
  call.out_channels = edge.channels;
  call.out_height = edge.height, call.out_width = edge.width;
  edge.put_weight_strides(call.weight_strides);
  call.slope = call.tanh ? 1.0f : 0.2f;
  call.input_channels_last = call.channels_last = edge.last;
  require_success(image_edge_conv_transpose2d(call, nullptr));
  require_numbers(result);
}

}  // namespace

int main() {
  const std::map<std::string, void (*)(std::istream&)> operations = {
      {"bias", bias},
      {"noise", noise},
      {"forward", edge_forward},
      {"weight", edge_weight},
      {"transposed", edge_transposed}};
  std::string text;
  while (std::getline(std::cin, text)) {
    std::istringstream line(text);
    std::string operation;
    line >> operation >> dtype_name;
    host::with_dtype(dtype_name, [](auto zero) { size = sizeof(zero); });
    dtype = dtype_name == "float32"    ? Dtype::float32
            : dtype_name == "bfloat16" ? Dtype::bfloat16
                                       : Dtype::float16;
    std::fprintf(stderr, "%s\n", text.c_str());  // the last one is the one that failed
    const auto found = operations.find(operation);
    host::require(found != operations.end(), "unknown operation " + operation);
    found->second(line);
  }
  for (const void* kernel : emulation::kernels_run()) std::printf("kernel %p\n", kernel);
}
