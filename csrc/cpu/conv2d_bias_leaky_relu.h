// The convolution of a picture, with bias and leaky ReLU or as the tangent of such a layer.
#pragma once

#include "cpu/image_edge_plan.h"

namespace fastgen::cpu {

//   output == nullptr:  result = leaky_relu(conv(picture) + bias)
//   output given:       result = (conv(picture) + bias) * (output > 0 ? 1 : slope)
//
// A band is rows of the map. Sums are in float32, and in float64 for float64.
struct ImageEdgeConvCall {
  ImageEdgeShape shape;
  ImageEdgePlan plan;
  const void* picture;
  std::int64_t picture_strides[4];  // in elements; any
  const void* weight;
  std::int64_t weight_strides[4];
  const void* bias;    // (filters), or nullptr
  const void* output;  // in the layout of the result, or nullptr
  void* result;        // dense
  bool channels_last;  // the layout of the result
  bool stream;         // whether the result goes past the caches
  double slope;
  void* packed;  // workspace of plan.packed_bytes
};

// The part of the map that lies in the first cache between sums and epilogue.
constexpr std::int64_t kConvBlockPixels = 32, kConvBlockFilters = 64;

using ImageEdgeConvPack = void(const ImageEdgeConvCall& call);
using ImageEdgeConv = void(const ImageEdgeConvCall& call, std::int64_t begin, std::int64_t end,
                           void* scratch);

FASTGEN_KERNEL(ImageEdgeConvPack, image_edge_conv2d_pack)  // first: fills `packed`
FASTGEN_KERNEL(ImageEdgeConv, image_edge_conv2d)           // pieces begin ... end - 1

}  // namespace fastgen::cpu

FASTGEN_BEGIN

// Whether a result goes past the caches: it would push out of them what comes next, and half of its
// memory traffic would be reading lines in order to overwrite them (34 MB: 9.2 to 6.5 ms contiguous,
// 7.4 to 6.7 in channels_last). Not in 16 bits, where a vector is half a line.
inline bool image_edge_conv2d_streams(const cpu::ImageEdgeShape& shape) {
  const std::int64_t bytes = shape.batch * shape.filters * shape.map_height * shape.map_width *
                             (shape.dtype == Dtype::float64 ? 8 : 4);
  return shape.dtype != Dtype::bfloat16 && bytes >= std::int64_t{6} << 20;
}

inline cpu::ImageEdgePlan image_edge_conv2d_plan(const cpu::ImageEdgeShape& shape) {
  using namespace plan;
  cpu::ImageEdgePlan plan{};
  const std::int64_t pitch = (shape.width + 2 * shape.padding_w) * shape.channels;
  cut(plan, shape, shape.map_height, bytes(shape, pitch) * shape.stride_h, 1);
  const std::int64_t rows = (plan.band - 1) * shape.stride_h + shape.kernel_h;
  plan.packed_bytes = bytes(shape, (taps(shape) + 1) * padded(shape.filters));
  plan.scratch_bytes =
      bytes(shape, rows * pitch) + bytes(shape, cpu::kConvBlockPixels * cpu::kConvBlockFilters);
  return plan;
}

FASTGEN_END
