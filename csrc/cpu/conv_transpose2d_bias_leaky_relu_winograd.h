// The transposed convolution by Winograd's method, with bias and leaky ReLU: the adjoint of the
// convolution, from the map to the input.
#pragma once

#include "cpu/winograd_plan.h"

namespace fastgen::cpu {

//   result = leaky_relu(conv_transpose(map) + bias)
//
// A block is images, a panel is input channels in one phase. Sums are in float32, and in float64 for
// float64; where the CPU multiplies bfloat16, transformed numbers are rounded to it.
FASTGEN_KERNEL(WinogradPack, winograd_conv_transpose2d_pack)  // first, if packed_bytes > 0
FASTGEN_KERNEL(Winograd, winograd_conv_transpose2d)           // pieces begin ... end - 1

}  // namespace fastgen::cpu

FASTGEN_BEGIN

namespace winograd {

// Rows or columns by which the inputs of neighbouring tiles overlap, in a phase that begins at row or
// column `first` of the kernel; in 0 there are the most.
inline std::int64_t overlap(const WinogradShape& shape, std::int64_t first) {
  return taps(shape, first) - 1;
}

// Columns of all inputs of a row of tiles, in a phase that begins at column `first`.
inline std::int64_t input_columns(const WinogradShape& shape, std::int64_t first) {
  return cut(shape, shape.map_width).pixels() + overlap(shape, first);
}

// Rows of the largest tile.
inline std::int64_t most_rows(const WinogradShape& shape) { return shape.mixed ? 3 : 2; }

}  // namespace winograd

inline cpu::WinogradPlan winograd_conv_transpose2d_plan(const cpu::WinogradShape& shape,
                                                        std::int64_t threads) {
  using namespace winograd;
  WinogradPlan plan{};
  const std::int64_t rows = tile_rows(shape), columns = cut(shape, shape.map_width).tiles();
  const std::int64_t together = tiles_together(shape, points(shape) * shape.filters);
  plan.images = at_least(1, at_most(together / (rows * columns), shape.batch));
  plan.rows = at_least(1, at_most(together / columns, rows));
  plan.rows = ceil_div(rows, ceil_div(rows, plan.rows));
  plan.blocks = even_blocks(ceil_div(shape.batch, plan.images), shape.batch, threads);
  plan.images = ceil_div(shape.batch, plan.blocks);
  plan.blocks = ceil_div(shape.batch, plan.images);
  plan.tiles = plan.images * plan.rows * columns;
  plan.panels = phases(shape) * ceil_div(shape.channels, kWinogradPanel);
  cut_panels(plan, plan.panels, threads);
  // Few large images: each segment computes one row of tiles of that above again.
  plan.segments = plan.rows == rows || threads == 1
                      ? 1
                      : at_most(rows / plan.rows, ceil_div(2 * threads, plan.pieces));
  plan.pieces *= plan.segments;
  plan.piece_operations = operations(shape) / plan.pieces;
  const std::int64_t panel = bytes(shape, points(shape) * padded_plane(shape.filters * kWinogradPanel));
  const bool packed = plan.blocks * ceil_div(rows, plan.rows) > kBlocksOfAPiece;
  plan.packed_bytes = packed ? panel * plan.panels : 0;
  const std::int64_t carried = ceil_div(plan.panels, plan.groups) * overlap(shape, 0);
  plan.scratch_bytes =
      bytes(shape, shape.filters) +
      bytes(shape, points(shape) * padded_plane(plan.tiles * padded_row(shape.filters))) +
      bytes(shape, points(shape) * padded_plane(plan.tiles * kWinogradPanel)) +
      bytes(shape, (carried + most_rows(shape)) * input_columns(shape, 0) * kWinogradPanel) +
      (packed ? 0 : phases(shape) * panel);
  return plan;
}

FASTGEN_END
