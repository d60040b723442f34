// What the plans of the Winograd convolutions are made of.
#pragma once

#include "cpu/winograd.h"
#include "elements.h"

FASTGEN_BEGIN

namespace winograd {

using cpu::kWinogradOutputs;
using cpu::kWinogradPanel;
using cpu::WinogradPlan;
using cpu::WinogradShape;

inline std::int64_t at_most(std::int64_t a, std::int64_t b) { return a < b ? a : b; }
inline std::int64_t at_least(std::int64_t a, std::int64_t b) { return a > b ? a : b; }

inline std::int64_t phases(const WinogradShape& shape) { return shape.stride * shape.stride; }

// Points at which polynomials are multiplied, of rows and columns together.
inline std::int64_t points(const WinogradShape& shape) {
  const std::int64_t side = shape.kernel / shape.stride + kWinogradOutputs - 1;
  return side * side;
}

inline std::int64_t tile_rows(const WinogradShape& shape) {
  return ceil_div(shape.map_height, kWinogradOutputs);
}
inline std::int64_t tile_columns(const WinogradShape& shape) {
  return ceil_div(shape.map_width, kWinogradOutputs);
}

// Bytes of so many numbers, on cache lines of their own. BFloat16 is counted as float32: what is
// multiplied without instructions for it is.
inline std::int64_t bytes(const WinogradShape& shape, std::int64_t count) {
  return ceil_div(count, 16) * 16 * (shape.dtype == Dtype::float64 ? 8 : 4);
}

// From row to row of a left side: rows a power of two apart would share few lines of a cache.
inline std::int64_t padded_row(std::int64_t length) { return length + 32; }

// The numbers of one point, of at least `count`, apart from those of the next: so far that the same
// place of all points lies in different lines of the first cache, which takes a page.
inline std::int64_t padded_plane(std::int64_t count) {
  constexpr std::int64_t kPage = 2048, kApart = 224;  // numbers of 16 bits; more of wider ones
  return ceil_div(count, kPage) * kPage + kApart;
}

constexpr std::int64_t kBlockBytes = 256 * 1024;  // of transformed tiles: they stay in the L2 cache
constexpr std::int64_t kFewTiles = 96, kManyTiles = 384;
constexpr std::int64_t kBlocksOfAPiece = 2;  // up to which a piece transforms the weight itself
constexpr std::int64_t kTileRows = 12;  // of a product that are computed together

// Tiles that are transformed together where one becomes `numbers` numbers. With few of them a
// weight's transform and its way from the caches would cost as much as the products.
inline std::int64_t tiles_together(const WinogradShape& shape, std::int64_t numbers) {
  const std::int64_t size = shape.dtype == Dtype::float64 ? 8
                            : shape.dtype == Dtype::float32 ? 4
                                                            : 2;
  const std::int64_t fitting = kBlockBytes / (numbers * size) / kTileRows * kTileRows;
  return at_most(at_least(fitting, kFewTiles), kManyTiles);
}

// Blocks of about the same size, so many that few threads have less to do than others.
inline std::int64_t even_blocks(std::int64_t blocks, std::int64_t most, std::int64_t threads) {
  constexpr std::int64_t kMany = 4;  // blocks of a thread: then one more or less matters little
  const bool few = threads > 1 && blocks < kMany * threads;
  return at_most(few ? ceil_div(blocks, threads) * threads : blocks, most);
}

// Cuts `panels` panels into groups where there are fewer blocks than threads have use for.
inline void cut_panels(WinogradPlan& plan, std::int64_t panels, std::int64_t threads) {
  constexpr std::int64_t kPiecesOfAThread = 2;
  const std::int64_t wanted = threads > 1 ? threads * kPiecesOfAThread : 1;
  plan.groups = at_least(1, at_most(panels, ceil_div(wanted, at_least(plan.blocks, 1))));
  plan.pieces = plan.blocks * plan.groups;
}

inline std::int64_t operations(const WinogradShape& shape) {
  return 2 * shape.batch * tile_rows(shape) * tile_columns(shape) * points(shape) *
         phases(shape) * shape.channels * shape.filters;
}

}  // namespace winograd

// Scratch memory, from its beginning on.
class Scratch {
 public:
  Scratch(const cpu::WinogradShape& shape, void* memory)
      : shape_(shape), free_(static_cast<char*>(memory)) {}

  // Room for as many numbers, of a type no wider than that of sums.
  template <typename Number>
  Number* take(std::int64_t count) {
    void* taken = free_;
    free_ += winograd::bytes(shape_, count);
    return static_cast<Number*>(taken);
  }

 private:
  const cpu::WinogradShape& shape_;
  char* free_;
};

FASTGEN_END
