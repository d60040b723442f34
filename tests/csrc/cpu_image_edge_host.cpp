// Runs the image-edge kernels of csrc/cpu piece by piece.

#include "cpu/conv2d_bias_leaky_relu.h"
#include "cpu/conv2d_bias_leaky_relu_weight.h"
#include "cpu/conv_transpose2d_bias_leaky_relu.h"
#include "cpu_host.h"

using namespace fastgen;
using namespace fastgen::cpu;
namespace kernels = fastgen::cpu::FASTGEN_CPU;

namespace {

struct Options {
  std::string folder, operation;
  ImageEdgeShape shape;
  bool channels_last, map_channels_last, bias, output, tanh, stream;
  double slope;
  std::int64_t offset, picture_strides[4], weight_strides[4];
};

std::int64_t reach(const std::int64_t (&extents)[4], const std::int64_t (&strides)[4]) {
  std::int64_t last = 0;
  for (int d = 0; d < 4; ++d) last += (extents[d] - 1) * strides[d];
  return last + 1;
}

template <typename T>
void run(const Options& o) {
  const ImageEdgeShape& s = o.shape;
  const std::int64_t map_count = s.batch * s.filters * s.map_height * s.map_width;
  const std::int64_t picture_count = s.batch * s.channels * s.height * s.width;
  const std::int64_t weights = s.filters * s.channels * s.kernel_h * s.kernel_w;
  host::Buffer<T> weight(reach({s.filters, s.channels, s.kernel_h, s.kernel_w}, o.weight_strides),
                         o.offset);
  host::Buffer<T> bias(o.operation == "transposed" ? s.channels : s.filters);
  if (o.operation != "weight") weight.read(o.folder + "/weight.bin");
  if (o.bias) bias.read(o.folder + "/bias.bin");

  if (o.operation == "transposed") {
    host::Buffer<T> map(map_count, o.offset), result(picture_count, o.offset);
    ImageEdgeTransposeCall call{};
    call.shape = s;
    call.plan = image_edge_conv_transpose2d_plan(s);
    call.map = map.read(o.folder + "/map.bin").data();
    call.map_channels_last = o.map_channels_last;
    call.weight = weight.data();
    std::copy(o.weight_strides, o.weight_strides + 4, call.weight_strides);
    call.bias = o.bias ? bias.data() : nullptr;
    call.result = result.data();
    call.channels_last = o.channels_last;
    call.tanh = o.tanh;
    call.slope = o.slope;
    host::Buffer<char> packed(call.plan.packed_bytes);
    call.packed = packed.data();
    kernels::image_edge_conv_transpose2d_pack(call);
    host::run_pieces(call, kernels::image_edge_conv_transpose2d);
    return result.write(o.folder + "/result.bin");
  }

  host::Buffer<T> picture(reach({s.batch, s.channels, s.height, s.width}, o.picture_strides),
                          o.offset);
  picture.read(o.folder + "/picture.bin");
  if (o.operation == "weight") {
    host::Buffer<T> map(map_count, o.offset), result(weights, o.offset);
    ImageEdgeWeightCall call{};
    call.shape = s;
    call.plan = image_edge_conv2d_weight_plan(s);
    call.picture = picture.data();
    std::copy(o.picture_strides, o.picture_strides + 4, call.picture_strides);
    call.map = map.read(o.folder + "/map.bin").data();
    call.map_channels_last = o.map_channels_last;
    call.result = result.data();
    std::copy(o.weight_strides, o.weight_strides + 4, call.result_strides);
    host::Buffer<char> packed(call.plan.packed_bytes);
    call.packed = packed.data();
    host::run_pieces(call, kernels::image_edge_conv2d_weight);
    kernels::image_edge_conv2d_weight_sum(call);
    return result.write(o.folder + "/result.bin");
  }

  host::Buffer<T> output(map_count, o.offset), result(map_count, o.offset);
  ImageEdgeConvCall call{};
  call.shape = s;
  call.plan = image_edge_conv2d_plan(s);
  call.picture = picture.data();
  std::copy(o.picture_strides, o.picture_strides + 4, call.picture_strides);
  call.weight = weight.data();
  std::copy(o.weight_strides, o.weight_strides + 4, call.weight_strides);
  call.bias = o.bias ? bias.data() : nullptr;
  call.output = o.output ? output.read(o.folder + "/output.bin").data() : nullptr;
  call.result = result.data();
  call.channels_last = o.channels_last;
  call.stream = o.stream;
  call.slope = o.slope;
  host::Buffer<char> packed(call.plan.packed_bytes);
  call.packed = packed.data();
  kernels::image_edge_conv2d_pack(call);
  host::run_pieces(call, kernels::image_edge_conv2d);
  result.write(o.folder + "/result.bin");
}

}  // namespace

int main(int count, char** arguments) {
  host::require(count == 33, "32 arguments, see test_cpu_image_edge.py");
  host::Arguments next{arguments, 4};
  Options o{};
  o.folder = arguments[1], o.operation = arguments[2];
  o.slope = next.real();
  for (bool* flag :
       {&o.channels_last, &o.map_channels_last, &o.bias, &o.output, &o.tanh, &o.stream}) {
    *flag = next.flag();
  }
  o.offset = next.number();
  ImageEdgeShape& s = o.shape;
  for (std::int64_t* value :
       {&s.batch, &s.channels, &s.height, &s.width, &s.filters, &s.map_height, &s.map_width,
        &s.kernel_h, &s.kernel_w, &s.stride_h, &s.stride_w, &s.padding_h, &s.padding_w}) {
    *value = next.number();
  }
  for (std::int64_t& stride : o.picture_strides) stride = next.number();
  for (std::int64_t& stride : o.weight_strides) stride = next.number();
  host::with_cpu_dtype(arguments[3], [&](Dtype dtype, auto element) {
    s.dtype = dtype;
    run<decltype(element)>(o);
  });
  return 0;
}
