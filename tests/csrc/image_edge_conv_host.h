// What both programs that play the image-edge convolution are told, and its tensors.
#pragma once

#include "cuda/conv2d_bias_leaky_relu.h"
#include "host.h"

namespace host {

struct Options {
  std::string folder;
  int offset;  // elements that result and output stand behind a 16-byte boundary
  int multiprocessors, shared_limit;
  bool bias, output;
  std::string dtype;
  bool tensor_cores;
};

std::int64_t reach(const std::int64_t (&extents)[4], const std::int64_t (&strides)[4]) {
  std::int64_t last = 0;
  for (int d = 0; d < 4; ++d) last += (extents[d] - 1) * strides[d];
  return last + 1;
}

// The tensors of a call, which learns where they are.
template <typename T>
struct Tensors {
  Buffer<T> input, weight, bias, output, result;

  Tensors(fastgen::cuda::ImageEdgeConvCall& call, const Options& options)
      : input(reach({call.batch, call.channels, call.height, call.width}, call.input_strides)),
        weight(reach({call.filters, call.channels, call.kernel_h, call.kernel_w},
                     call.weight_strides)),
        bias(options.bias ? call.filters : 0),
        output(options.output ? results(call) : 0, options.offset),
        result(results(call), options.offset) {
    call.input = input.read(options.folder + "/input.bin").data();
    call.weight = weight.read(options.folder + "/weight.bin").data();
    if (options.bias) call.bias = bias.read(options.folder + "/bias.bin").data();
    if (options.output) call.output = output.read(options.folder + "/output.bin").data();
    call.result = result.data();
  }

  static std::int64_t results(const fastgen::cuda::ImageEdgeConvCall& call) {
    return call.batch * call.filters * call.out_height * call.out_width;
  }
};

inline fastgen::cuda::ImageEdgeConvCall read_call(int count, char** arguments, Options& options) {
  require(count == 32, "31 arguments, see test_conv2d_bias_leaky_relu.py");
  int next = 2;
  const auto number = [&]() -> std::int64_t { return std::atoll(arguments[next++]); };
  options.dtype = arguments[next++];
  options.tensor_cores = number() != 0;
  fastgen::cuda::ImageEdgeConvCall call{};
  call.channels_last = number() != 0;
  call.slope = std::strtof(arguments[next++], nullptr);
  options.folder = arguments[1];
  options.bias = number() != 0;
  options.output = number() != 0;
  options.offset = static_cast<int>(number());
  options.multiprocessors = static_cast<int>(number());
  options.shared_limit = static_cast<int>(number());
  for (std::int64_t* value :
       {&call.batch, &call.channels, &call.height, &call.width, &call.filters, &call.kernel_h,
        &call.kernel_w, &call.out_height, &call.out_width, &call.stride_h, &call.stride_w,
        &call.padding_h, &call.padding_w}) {
    *value = number();
  }
  for (std::int64_t& stride : call.input_strides) stride = number();
  for (std::int64_t& stride : call.weight_strides) stride = number();
  return call;
}

// What the test is told of a plan.
inline void write_facts(const std::string& folder, const std::int64_t (&facts)[7]) {
  std::FILE* file = std::fopen((folder + "/plan.bin").c_str(), "wb");
  require(file != nullptr && std::fwrite(facts, sizeof(facts), 1, file) == 1, "plan.bin");
  std::fclose(file);
}

}  // namespace host
