// The transposed convolution to a picture, with bias and activation: a generator's last layer, and
// without bias at slope 1 the input gradient of a convolution.
#pragma once

#include "cpu/image_edge_plan.h"

namespace fastgen::cpu {

//   result = activation(conv_transpose(map) + bias)
//
// A band is rows of the picture. Sums are in float32, and in float64 for float64.
struct ImageEdgeTransposeCall {
  ImageEdgeShape shape;
  ImageEdgePlan plan;
  const void* map;         // dense
  bool map_channels_last;  // the layout of the map
  const void* weight;
  std::int64_t weight_strides[4];  // in elements; any
  const void* bias;                // (channels), or nullptr
  void* result;                    // dense
  bool channels_last;              // the layout of the result
  bool tanh;                       // instead of leaky ReLU
  double slope;
  void* packed;  // workspace of plan.packed_bytes
};

using ImageEdgeTransposePack = void(const ImageEdgeTransposeCall& call);
using ImageEdgeTranspose = void(const ImageEdgeTransposeCall& call, std::int64_t begin,
                                std::int64_t end, void* scratch);

FASTGEN_KERNEL(ImageEdgeTransposePack, image_edge_conv_transpose2d_pack)  // first: fills `packed`
FASTGEN_KERNEL(ImageEdgeTranspose, image_edge_conv_transpose2d)  // pieces begin ... end - 1

}  // namespace fastgen::cpu

FASTGEN_BEGIN

// How rows of the map become a row of the picture. Every pixel of the map contributes to each of
// its taps; `step` neighbours of a picture's row, those under one column of the map, are sums of as
// many neighbours of `groups` columns' contributions, in as many kernel rows as reach that row.
struct TransposeRows {
  std::int64_t taps;     // of a pixel of the map: (kernel row, kernel column, channel)
  std::int64_t columns;  // `taps`, padded to whole vectors
  std::int64_t row;      // taps of a kernel row
  std::int64_t step;     // numbers of a picture's row per column of the map
  std::int64_t groups;   // of so many taps in a kernel row, the last one perhaps shorter
  std::int64_t depth;    // rows of the map that a row of the picture sees
  std::int64_t turn;     // numbers of a row's contributions, with zeros around them
  std::int64_t line;     // numbers of a padded row of the picture, with room behind it
};

inline TransposeRows transpose_rows(const cpu::ImageEdgeShape& shape) {
  const auto padded = [](std::int64_t count) {
    return ceil_div(count, cpu::kMostLanes) * cpu::kMostLanes;
  };
  TransposeRows rows{};
  rows.row = shape.kernel_w * shape.channels;
  rows.taps = shape.kernel_h * rows.row;
  rows.columns = padded(rows.taps);
  rows.step = shape.stride_w * shape.channels;
  rows.groups = ceil_div(shape.kernel_w, shape.stride_w);
  rows.depth = ceil_div(shape.kernel_h, shape.stride_h);
  rows.turn = padded((shape.map_width + 2 * (rows.groups - 1)) * rows.columns + rows.step +
                     cpu::kMostLanes);
  const std::int64_t reached = (shape.map_width + rows.groups - 1) * rows.step;
  const std::int64_t shown = (shape.padding_w + padded(shape.width)) * shape.channels;
  rows.line = padded((reached > shown ? reached : shown) + rows.step + cpu::kMostLanes);
  return rows;
}

inline cpu::ImageEdgePlan image_edge_conv_transpose2d_plan(const cpu::ImageEdgeShape& shape) {
  using namespace plan;
  cpu::ImageEdgePlan plan{};
  const TransposeRows rows = transpose_rows(shape);
  // Neighbouring bands compute depth - 1 rows of the map twice: an eighth at most.
  cut(plan, shape, shape.height, 1, 8 * (rows.depth - 1) * shape.stride_h);
  plan.packed_bytes = bytes(shape, (shape.filters + 1) * rows.columns);
  plan.scratch_bytes = bytes(shape, rows.turn * rows.depth + 3 * rows.line) +
                       bytes(shape, shape.map_width * shape.filters);
  return plan;
}

FASTGEN_END
