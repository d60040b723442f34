// The convolution by Winograd's method, with bias and leaky ReLU or as the tangent of such a layer.
#pragma once

#include "cpu/winograd_plan.h"

namespace fastgen::cpu {

//   output == nullptr:  result = leaky_relu(conv(input) + bias)
//   output given:       result = (conv(input) + bias) * (output > 0 ? 1 : slope)
//
// A block is tiles of one size, a panel is filters. Sums are in float32, and in float64 for float64;
// where the CPU multiplies bfloat16, transformed numbers are rounded to it.
FASTGEN_KERNEL(WinogradPack, winograd_conv2d_pack)  // first, if packed_bytes > 0: of every panel
FASTGEN_KERNEL(Winograd, winograd_conv2d)           // pieces begin ... end - 1

}  // namespace fastgen::cpu

FASTGEN_BEGIN

inline cpu::WinogradPlan winograd_conv2d_plan(const cpu::WinogradShape& shape,
                                              std::int64_t threads) {
  using namespace winograd;
  WinogradPlan plan{};
  plan.segments = 1;
  const std::int64_t depth = phases(shape) * shape.channels;
  plan.tiles = tiles_together(shape, products(shape) * shape.channels);
  std::int64_t most = 0;
  for (int kind = 0; kind < kWinogradKinds; ++kind) {
    const std::int64_t all = tiles_of_kind(shape, kind).in(shape.batch);
    if (all == 0) continue;
    const std::int64_t blocks =
        even_blocks(ceil_div(all, plan.tiles), ceil_div(all, kTileRows), threads);
    const std::int64_t tiles = ceil_div(all, blocks);
    plan.kind_blocks[kind] = ceil_div(all, tiles);
    plan.blocks += plan.kind_blocks[kind];
    most = at_least(most, tiles);
  }
  plan.tiles = most;
  plan.panels = ceil_div(shape.filters, kWinogradPanel);
  cut_panels(plan, plan.panels, threads);
  plan.piece_operations = operations(shape) / plan.pieces;
  const std::int64_t panel = bytes(shape, points(shape) * padded_plane(depth * kWinogradPanel));
  const bool packed = plan.blocks > kBlocksOfAPiece;
  plan.packed_bytes = packed ? panel * plan.panels : 0;
  plan.scratch_bytes = bytes(shape, shape.channels) +
                       bytes(shape, points(shape) * padded_plane(plan.tiles * padded_row(depth))) +
                       bytes(shape, points(shape) * padded_plane(plan.tiles * kWinogradPanel)) +
                       (packed ? 0 : panel);
  return plan;
}

FASTGEN_END
