// The weight gradient of a convolution of a picture. With the roles of input and gradient swapped
// it is that of a transposed convolution to a picture.
#pragma once

#include "cpu/image_edge_plan.h"

namespace fastgen::cpu {

//   result[k, c, i, j] = sum over n, p, q of map[n, k, p, q] *
//       picture[n, c, p * stride_h + i - padding_h, q * stride_w + j - padding_w]
//
// A band is rows of the map. Bands are dealt to `pieces` sums of their own, which are added up in
// order: float32 for all dtypes but float64.
struct ImageEdgeWeightCall {
  ImageEdgeShape shape;
  ImageEdgePlan plan;
  const void* picture;
  std::int64_t picture_strides[4];  // in elements; any
  const void* map;                  // dense
  bool map_channels_last;           // the layout of the map
  void* result;
  std::int64_t result_strides[4];
  void* packed;  // workspace of plan.packed_bytes: the sums
};

using ImageEdgeWeight = void(const ImageEdgeWeightCall& call, std::int64_t begin, std::int64_t end,
                             void* scratch);
using ImageEdgeWeightSum = void(const ImageEdgeWeightCall& call);

FASTGEN_KERNEL(ImageEdgeWeight, image_edge_conv2d_weight)         // pieces begin ... end - 1
FASTGEN_KERNEL(ImageEdgeWeightSum, image_edge_conv2d_weight_sum)  // then what they add up to

}  // namespace fastgen::cpu

FASTGEN_BEGIN

// Rows of the map that stay in the second cache while every kernel row's taps are multiplied.
inline std::int64_t weight_rows(const cpu::ImageEdgeShape& shape) {
  using namespace plan;
  return at_least((64 << 10) / at_least(bytes(shape, shape.map_width * shape.filters), 1), 1);
}

inline cpu::ImageEdgePlan image_edge_conv2d_weight_plan(const cpu::ImageEdgeShape& shape) {
  using namespace plan;
  cpu::ImageEdgePlan plan{};
  const std::int64_t pitch = (shape.width + 2 * shape.padding_w) * shape.channels;
  cut(plan, shape, shape.map_height, bytes(shape, pitch) * shape.stride_h, 1);
  plan.piece_operations *= plan.pieces;
  plan.pieces = at_most(plan.pieces, kPieces);
  plan.piece_operations /= at_least(plan.pieces, 1);
  const std::int64_t columns = padded(shape.filters);
  const std::int64_t rows = (plan.band - 1) * shape.stride_h + shape.kernel_h;
  plan.packed_bytes = bytes(shape, plan.pieces * taps(shape) * columns);
  plan.scratch_bytes = 2 * bytes(shape, rows * pitch) +
                       bytes(shape, weight_rows(shape) * (shape.map_width + 1) * columns);
  return plan;
}

FASTGEN_END
