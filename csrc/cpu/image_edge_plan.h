// What the plans of the image-edge convolutions are made of.
#pragma once

#include "cpu/image_edge.h"
#include "elements.h"

FASTGEN_BEGIN

namespace plan {

constexpr std::int64_t kPieces = 16;            // at least, where there are so many rows
constexpr std::int64_t kBandBytes = 96 * 1024;  // of packed picture rows: they stay in the L2 cache

inline std::int64_t at_most(std::int64_t a, std::int64_t b) { return a < b ? a : b; }
inline std::int64_t at_least(std::int64_t a, std::int64_t b) { return a > b ? a : b; }
inline std::int64_t padded(std::int64_t count) {
  return ceil_div(count, cpu::kMostLanes) * cpu::kMostLanes;
}

// Bytes of `count` numbers in the type of sums, on cache lines of their own.
inline std::int64_t bytes(const cpu::ImageEdgeShape& shape, std::int64_t count) {
  return padded(count) * (shape.dtype == Dtype::float64 ? 8 : 4);
}

inline std::int64_t taps(const cpu::ImageEdgeShape& shape) {
  return shape.channels * shape.kernel_h * shape.kernel_w;
}

// Cuts `rows` rows of each picture into bands: kPieces or more in all, but for bands of fewer than
// `least` rows, and `row_bytes` * rows <= kBandBytes in each.
inline void cut(cpu::ImageEdgePlan& plan, const cpu::ImageEdgeShape& shape, std::int64_t rows,
                std::int64_t row_bytes, std::int64_t least) {
  const std::int64_t fitting = at_least(kBandBytes / row_bytes, 1);
  const std::int64_t wanted =
      at_least(ceil_div(rows * at_least(shape.batch, 1), kPieces), least);
  plan.bands = ceil_div(rows, at_least(at_most(at_most(fitting, wanted), rows), 1));
  plan.band = ceil_div(rows, plan.bands);
  plan.bands = ceil_div(rows, plan.band);
  plan.pieces = shape.batch * plan.bands;
  const std::int64_t operations =
      2 * taps(shape) * shape.filters * shape.map_height * shape.map_width;
  plan.piece_operations = at_least(operations / plan.bands, 1);
}

}  // namespace plan

FASTGEN_END
