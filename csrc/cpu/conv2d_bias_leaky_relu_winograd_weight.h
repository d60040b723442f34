// The weight gradient of a convolution by Winograd's method. With the roles of input and gradient
// swapped it is that of a transposed convolution.
#pragma once

#include "cpu/winograd_plan.h"

namespace fastgen::cpu {

//   result[k, c, i, j] = sum over n, p, q of map[n, k, p, q] *
//                        input[n, c, p * s + i - padding_h, q * s + j - padding_w]
//
// A block is input channels, a panel is filters. Sums are in float32, and in float64 for float64;
// where the CPU multiplies bfloat16, transformed numbers are rounded to it.
// With several segments, each writes its part to `packed`, and the parts are added up in order.
FASTGEN_KERNEL(Winograd, winograd_conv2d_weight)  // pieces begin ... end - 1
FASTGEN_KERNEL(WinogradPack, winograd_conv2d_weight_sum)  // then, of filters begin ... end - 1

}  // namespace fastgen::cpu

FASTGEN_BEGIN

namespace winograd {

// Steps of a weight gradient: tiles of one size that are transformed together.
inline std::int64_t steps_of_tiles(const WinogradPlan& plan) {
  std::int64_t steps = 0;
  for (std::int64_t blocks : plan.kind_blocks) steps += blocks;
  return steps;
}

}  // namespace winograd

inline cpu::WinogradPlan winograd_conv2d_weight_plan(const cpu::WinogradShape& shape,
                                                     std::int64_t threads) {
  using namespace winograd;
  // Sums over so many tiles stay in registers.
  constexpr std::int64_t kTiles = 64, kTilesOf16Bits = 128;
  constexpr std::int64_t kSumBytes = 600 * 1024;  // of a piece
  constexpr std::int64_t kPanels = 4;
  WinogradPlan plan{};
  plan.tiles = shape.dtype == Dtype::bfloat16 ? kTilesOf16Bits : kTiles;
  plan.panels = ceil_div(shape.filters, kWinogradPanel);
  const std::int64_t together = at_most(plan.panels, kPanels) * kWinogradPanel;
  const std::int64_t channels =
      kSumBytes / (bytes(shape, together * cpu::kWinogradChannels) * products(shape));
  const std::int64_t all = shape.channels / cpu::kWinogradChannels;
  plan.blocks = ceil_div(all, at_least(channels, 1));
  plan.block_channels = ceil_div(all, plan.blocks) * cpu::kWinogradChannels;
  plan.blocks = ceil_div(shape.channels, plan.block_channels);
  cut_panels(plan, plan.panels, threads);
  plan.groups = at_least(plan.groups, ceil_div(plan.panels, kPanels));
  // A layer with few channels has little else for many threads to share.
  constexpr std::int64_t kPieces = 16, kLeastSteps = 4;
  for (int kind = 0; kind < kWinogradKinds; ++kind) {
    plan.kind_blocks[kind] = ceil_div(tiles_of_kind(shape, kind).in(shape.batch), plan.tiles);
  }
  plan.segments = at_least(
      1, at_most(ceil_div(kPieces, plan.blocks * plan.panels), steps_of_tiles(plan) / kLeastSteps));
  plan.pieces = plan.segments * plan.blocks * plan.groups;
  if (plan.segments > 1) {
    plan.packed_bytes = bytes(shape, plan.segments * shape.filters * shape.channels *
                                         shape.kernel * shape.kernel);
  }
  plan.piece_operations = operations(shape) / plan.pieces;
  const std::int64_t numbers = phases(shape) * plan.block_channels;
  const std::int64_t filters = ceil_div(plan.panels, plan.groups) * kWinogradPanel;
  plan.scratch_bytes = bytes(shape, at_least(shape.channels, shape.filters)) +
                       bytes(shape, points(shape) * padded_plane(plan.tiles * numbers)) +
                       bytes(shape, points(shape) * padded_plane(plan.tiles * filters)) +
                       bytes(shape, points(shape) * padded_plane(numbers * filters));
  return plan;
}

FASTGEN_END
