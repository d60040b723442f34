// Bias + leaky ReLU, its mask, and the mask with the gradient of the bias: one pass each, cut into
// pieces that threads take.
#pragma once

#include "cpu/capability.h"
#include "dtype.h"

namespace fastgen::cpu {

// How the work is cut. It depends on the shape alone, so sums have the same bits for every number
// of threads.
//
// planes: one channel's `inner` neighbours at a time, or chunks of them.
// rows: where planes are short (channels_last has inner = 1), memory is a matrix whose rows repeat
//   every `period` elements, and so does the channel of a column. A piece is a block of rows by a
//   tile of columns; `rest` elements are left behind the whole rows.
struct BiasPlan {
  bool planes;
  std::int64_t pieces;
  std::int64_t piece_elements;  // about
  std::int64_t partials;        // sums in the workspace: `lanes` per plane chunk, or one per column
                                // and block
  std::int64_t chunks;          // planes: of each
  std::int64_t chunk;           // planes: elements of one
  std::int64_t lanes;           // planes: sums of one, added up at the end
  std::int64_t period, rows, rest, block_rows, blocks, tiles;
};

// One call. Every tensor holds outer * channels * inner elements of one dtype, element
// (o * channels + c) * inner + i, dense, with any alignment. result may be input.
//
//   output == nullptr:  result = leaky_relu(input + shift_c)
//   output given:       result = (input + shift_c) * (output > 0 ? 1 : slope)
//   sum given too:      and sum_c = the sum of result over o and i
//
// Arithmetic is in float32, and in float64 for float64. Sums are in that type inside a piece, where
// at most 512 numbers come together, and in float64 over pieces.
struct BiasLeakyReluCall {
  const void* input;   // the input, or the incoming gradient
  const void* shift;   // (channels), or nullptr
  const void* output;  // what the mask is taken from, or nullptr
  void* result;
  void* sum;       // (channels), or nullptr
  void* partials;  // workspace of plan.partials numbers of the arithmetic's type, for a sum
  std::int64_t outer;
  std::int64_t channels;
  std::int64_t inner;
  double slope;
  Dtype dtype;
  BiasPlan plan;
};

using BiasLeakyRelu = void(const BiasLeakyReluCall& call, std::int64_t begin, std::int64_t end);

FASTGEN_KERNEL(BiasLeakyRelu, bias_leaky_relu)      // pieces begin ... end - 1
FASTGEN_KERNEL(BiasLeakyRelu, bias_leaky_relu_sum)  // then the sums of channels begin ... end - 1

constexpr std::int64_t kBiasChunk = 16384;    // elements of a plane in a piece
constexpr std::int64_t kBiasTile = 2048;      // columns in a piece: their sums stay in the L1 cache
constexpr std::int64_t kBiasLeastPeriod = 64;  // columns: vectors of any type are full
constexpr std::int64_t kBiasMostRows = 512;
constexpr std::int64_t kBiasShort = 256;  // elements of a plane up to which its sum stays in lanes
constexpr int kBiasLanes = 16;
constexpr std::int64_t kBiasPiece = 65536;  // elements of a piece of many rows

inline BiasPlan bias_plan(std::int64_t outer, std::int64_t channels, std::int64_t inner) {
  const auto ceil_div = [](std::int64_t a, std::int64_t b) { return (a + b - 1) / b; };
  BiasPlan plan{};
  const std::int64_t total = outer * channels * inner;
  if (total == 0) return plan;
  plan.planes = channels == 1 || inner >= 64;
  if (plan.planes) {
    const std::int64_t plane = channels == 1 ? total : inner;
    plan.chunks = ceil_div(plane, kBiasChunk);
    plan.chunk = ceil_div(ceil_div(plane, plan.chunks), 64) * 64;
    plan.chunks = ceil_div(plane, plan.chunk);
    plan.pieces = (channels == 1 ? 1 : outer * channels) * plan.chunks;
    plan.piece_elements = plane < plan.chunk ? plane : plan.chunk;
    // To add up the lanes of a short plane takes longer than to fill them.
    plan.lanes = plan.piece_elements <= kBiasShort ? kBiasLanes : 1;
    plan.partials = plan.pieces * plan.lanes;
    return plan;
  }
  const std::int64_t base = channels * inner;
  // A multiple of the least period where there is one that is small beside the tensor: no row then
  // ends within a vector.
  plan.period = base * ceil_div(kBiasLeastPeriod, base);
  for (std::int64_t even = base; even <= kBiasTile && 8 * even <= total; even += base) {
    if (even % kBiasLeastPeriod != 0) continue;
    plan.period = even;
    break;
  }
  plan.rows = total / plan.period;
  plan.rest = total % plan.period;
  const std::int64_t width = plan.period < kBiasTile ? plan.period : kBiasTile;
  const std::int64_t fitting = ceil_div(kBiasPiece, width);
  plan.block_rows = fitting < kBiasMostRows ? fitting : kBiasMostRows;
  plan.tiles = ceil_div(plan.period, kBiasTile);
  plan.blocks = ceil_div(plan.rows + (plan.rest > 0), plan.block_rows);
  plan.pieces = plan.blocks * plan.tiles;
  plan.piece_elements = ceil_div(total, plan.pieces);
  plan.partials = plan.blocks * plan.period;
  return plan;
}

}  // namespace fastgen::cpu
