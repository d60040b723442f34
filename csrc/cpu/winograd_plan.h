// What the plans of the Winograd convolutions are made of.
#pragma once

#include "cpu/winograd.h"
#include "elements.h"

FASTGEN_BEGIN

namespace winograd {

using cpu::kWinogradKinds;
using cpu::kWinogradPanel;
using cpu::WinogradPlan;
using cpu::WinogradShape;

inline std::int64_t at_most(std::int64_t a, std::int64_t b) { return a < b ? a : b; }
inline std::int64_t at_least(std::int64_t a, std::int64_t b) { return a > b ? a : b; }

inline std::int64_t phases(const WinogradShape& shape) { return shape.stride * shape.stride; }

// Along a side, of the phase that begins at tap `first`; that at 0 has the most.
inline std::int64_t taps(const WinogradShape& shape, std::int64_t first) {
  return ceil_div(shape.kernel - first, shape.stride);
}

// --- tiles ---

// How a side of the map is cut: into tiles of three, then of two.
struct Cut {
  std::int64_t threes, twos;
  std::int64_t tiles() const { return threes + twos; }
  std::int64_t pixels() const { return 3 * threes + 2 * twos; }
  // Where a tile begins.
  std::int64_t at(std::int64_t tile) const { return 2 * tile + at_most(tile, threes); }
};

// Whether there should be tiles of three: for three outputs they take four points of two taps and
// three of one, tiles of two for two outputs three and two. But a weight has more points then, and
// sizes of tiles are computed one after the other; that pays from `least_pixels` pixels of all images'
// maps on.
inline bool mixes(const WinogradShape& shape, std::int64_t least_pixels) {
  const auto has_three = [](std::int64_t size) { return size == 3 || size >= 5; };
  return taps(shape, 0) == 2 && shape.batch * shape.map_height * shape.map_width >= least_pixels &&
         (has_three(shape.map_height) || has_three(shape.map_width));
}

// From how many on, measured: of a transposed convolution, of a weight gradient, and of a convolution,
// where a wide weight's transform weighs more.
constexpr std::int64_t kMixedPixels = 256, kMixedWeightPixels = 1024;
inline std::int64_t mixed_conv_pixels(const WinogradShape& shape) {
  constexpr std::int64_t kShare = 128;  // pairs of channels to a pixel
  return at_least(kMixedPixels, shape.channels * shape.filters / kShare);
}

inline Cut cut(const WinogradShape& shape, std::int64_t size) {
  if (!shape.mixed) return {0, ceil_div(size, 2)};
  const std::int64_t twos = size == 1 ? 1 : size % 3 == 0 ? 0 : 3 - size % 3;
  return {(size - 2 * twos) / 3 * (size > 1), twos};
}

// Points at which polynomials are multiplied, of rows and columns together.
inline std::int64_t points(const WinogradShape& shape) {
  const std::int64_t side = taps(shape, 0) + (shape.mixed ? 3 : 2) - 1;
  return side * side;
}

// Along a side of a tile of `outputs`: points of all phases.
inline std::int64_t products_along(const WinogradShape& shape, std::int64_t outputs) {
  return shape.kernel + shape.stride * (outputs - 1);
}

// Products of a channel and a filter in the largest tile, each point as often as there are phases
// that have it.
inline std::int64_t products(const WinogradShape& shape) {
  const std::int64_t side = products_along(shape, shape.mixed ? 3 : 2);
  return side * side;
}

// Tiles of one size in every image: `rows` rows of `columns`, from pixel (row, column) of the map on.
struct Tiles {
  int height, width;
  std::int64_t row, column, rows, columns;

  std::int64_t in(std::int64_t images) const { return images * rows * columns; }
};

// The tiles of size `kind` in rows of tiles first ... stop - 1. In this order those three high are
// neighbours, and so are those three wide, as are all.
inline Tiles tiles_between(const WinogradShape& shape, int kind, std::int64_t first,
                           std::int64_t stop) {
  const Cut down = cut(shape, shape.map_height), right = cut(shape, shape.map_width);
  const bool high = kind == 1 || kind == 2, wide = kind < 2;
  const std::int64_t from = high ? first : at_least(first, down.threes);
  const std::int64_t to = high ? at_most(stop, down.threes) : stop;
  return {high ? 3 : 2, wide ? 3 : 2, down.at(from), wide ? 0 : 3 * right.threes,
          at_least(to - from, 0), wide ? right.threes : right.twos};
}

inline std::int64_t tile_rows(const WinogradShape& shape) {
  return cut(shape, shape.map_height).tiles();
}
inline Tiles tiles_of_kind(const WinogradShape& shape, int kind) {
  return tiles_between(shape, kind, 0, tile_rows(shape));
}

// --- memory ---

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

// Whether a result of so many numbers goes past the caches: what does not stay in them until it is
// read would first be fetched to be written over. Only lines that are written whole can.
inline bool streams(const WinogradShape& shape, std::int64_t numbers) {
  constexpr std::int64_t kBytes = 4 * 1024 * 1024;
  return shape.dtype != Dtype::bfloat16 && bytes(shape, numbers) >= kBytes;
}

// --- work ---

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
  const auto along = [&](std::int64_t size) {
    const Cut side = cut(shape, size);
    return side.threes * products_along(shape, 3) + side.twos * products_along(shape, 2);
  };
  return 2 * shape.batch * along(shape.map_height) * along(shape.map_width) * shape.channels *
         shape.filters;
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
