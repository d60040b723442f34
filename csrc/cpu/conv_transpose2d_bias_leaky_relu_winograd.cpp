// The kernel behind conv_transpose2d_bias_leaky_relu_winograd.h: transformed tiles of the map, a row
// each, times the transformed weight, a column per input channel, at each point; the inputs of
// neighbouring tiles overlap and are added up.

#include "cpu/conv_transpose2d_bias_leaky_relu_winograd.h"

#include "cpu/winograd_finite.h"
#include "cpu/winograd_tiles.h"
#include "cpu/winograd_weight.h"

namespace fastgen::cpu::FASTGEN_CPU {
namespace {

template <typename T>
using Element = typename Format<T>::Element;

// Input channels in one phase. Those of the same channels lie side by side: in contiguous memory they
// share lines of the weight.
struct Panel {
  int phase;
  std::int64_t first, lanes;
};

template <typename W>
Panel panel_of(const WinogradShape& shape, std::int64_t index) {
  const std::int64_t first = index / W::kPhases * kWinogradPanel;
  return {static_cast<int>(index % W::kPhases), first,
          winograd::at_most(shape.channels - first, kWinogradPanel)};
}

template <typename W>
std::int64_t panel_size(const WinogradShape& shape) {
  return W::kPoints * winograd::padded_plane(shape.filters * kWinogradPanel);
}

// Panels `index` ... end - 1, or up to the last of the same channels, one behind the other; answers
// how many.
template <typename W, typename T>
std::int64_t transform_panels(const WinogradCall& call, std::int64_t index, std::int64_t end,
                              Element<T>* to) {
  const Panel panel = panel_of<W>(call.shape, index);
  const std::int64_t count = winograd::at_most(W::kPhases - panel.phase, end - index);
  transform_weight<W, T, false>(call, panel.first, panel.lanes,
                                {panel.phase, panel.phase + static_cast<int>(count)}, to);
  return count;
}

template <typename W, typename T>
void pack(const WinogradCall& call, std::int64_t begin, std::int64_t end) {
  auto* packed = static_cast<Element<T>*>(call.packed);
  while (begin < end) {
    begin += transform_panels<W, T>(call, begin, end, packed + begin * panel_size<W>(call.shape));
  }
}

// The transposed convolution as it is defined, of one pixel and channel, for what is not finite
// otherwise. A NaN cannot become anything else.
template <typename W, typename T>
Wide<T> defined(const WinogradCall& call, std::int64_t image, std::int64_t row,
                std::int64_t column, std::int64_t channel) {
  constexpr int kKernel = W::kKernel;
  const WinogradShape& shape = call.shape;
  const T* map = static_cast<const T*>(call.map);
  const T* weight = static_cast<const T*>(call.weight) + channel * call.weight_strides[1];
  Wide<T> sum = 0;
  for (int i = 0; i < kKernel && sum == sum; ++i) {
    for (int j = 0; j < kKernel; ++j) {
      const std::int64_t h = row + shape.padding_h - i, w = column + shape.padding_w - j;
      if (h < 0 || h % W::kStride != 0 || h / W::kStride >= shape.map_height) continue;
      if (w < 0 || w % W::kStride != 0 || w / W::kStride >= shape.map_width) continue;
      const T* from = map + ((image * shape.map_height + h / W::kStride) * shape.map_width +
                             w / W::kStride) *
                                shape.filters;
      const T* tap = weight + i * call.weight_strides[2] + j * call.weight_strides[3];
      for (std::int64_t k = 0; k < shape.filters; ++k) {
        sum += widen<T>(from[k]) * widen<T>(tap[k * call.weight_strides[0]]);
      }
    }
  }
  return sum;
}

// A row of inputs in the phase of a panel, kWinogradPanel sums a pixel; without sums they are 0.
template <typename T>
struct Row {
  std::int64_t image, row;
  const Wide<T>* sums;
  std::int64_t columns;
};

// A row into the result, every kStride-th pixel; answers whether everything was finite. kExact: what
// is not is computed as it is defined.
template <typename W, typename T, bool kExact>
inline bool finish_as(const WinogradCall& call, const Panel& panel, const Row<T>& row) {
  constexpr int kWidth = kLanes<Wide<T>>;
  const WinogradShape& shape = call.shape;
  const Vector<Wide<T>> slope = all(static_cast<Wide<T>>(call.slope));
  const T* bias = static_cast<const T*>(call.bias);
  const std::int64_t first = W::column_of(panel.phase) - shape.padding_w;
  const std::int64_t left_out = first < 0 ? ceil_div(-first, W::kStride) : 0;
  const std::int64_t columns = ceil_div(shape.width - first, W::kStride);
  T* result = static_cast<T*>(call.result) +
              ((row.image * shape.height + row.row) * shape.width + first) * shape.channels +
              panel.first;
  Finite<Wide<T>> finite;
  const auto value = [&](std::int64_t v, std::int64_t l) __attribute__((always_inline)) {
    const Vector<Wide<T>> shift =
        bias == nullptr ? Vector<Wide<T>>{} : load(bias + panel.first + l);
    Vector<Wide<T>> sum{};
    if (row.sums != nullptr && v < row.columns) sum = load(row.sums + v * kWinogradPanel + l);
    if constexpr (kExact) {
      sum = with_exact<Wide<T>>(sum, [&](int lane) {
        return defined<W, T>(call, row.image, row.row, first + v * W::kStride,
                             panel.first + l + lane);
      });
    } else {
      finite.see(sum);
    }
    return leaky_relu_lanes<Wide<T>>(sum + shift, slope);
  };
  for (std::int64_t v = left_out; v < columns; ++v) {
    T* to = result + v * W::kStride * shape.channels;
    if (call.stream) {
      for (std::int64_t l = 0; l < panel.lanes; l += kWidth) stream(to + l, value(v, l));
      continue;
    }
    std::int64_t l = 0;
    for (; l + 2 * kWidth <= panel.lanes; l += 2 * kWidth) {
      const Vector<Wide<T>> one = value(v, l), other = value(v, l + kWidth);
      store_two(to + l, one, other);
      __builtin_prefetch(to + W::kStride * shape.width * shape.channels + l, 1);
    }
    for (; l < panel.lanes; l += kWidth) store(to + l, value(v, l));
  }
  return finite.all_were();
}

template <typename W, typename T>
__attribute__((noinline)) void finish_exactly(const WinogradCall& call, const Panel& panel,
                                              const Row<T>& row) {
  finish_as<W, T, true>(call, panel, row);
}

template <typename W, typename T>
void finish_row(const WinogradCall& call, const Panel& panel, const Row<T>& row) {
  if (row.row < 0 || row.row >= call.shape.height) return;
  if (!finish_as<W, T, false>(call, panel, row)) finish_exactly<W, T>(call, panel, row);
}

// Puts the inputs of `count` neighbouring tiles, whose sums at the points lie `plane` apart, into
// rows: the first ones, `above`, hold what the tiles above left there; so do the first columns, but
// for the `first` tile of a row.
template <typename W, typename Tile, typename P, typename T>
void add_inputs(const Wide<T>* sums, std::int64_t plane, std::int64_t count, std::int64_t lanes,
                Wide<T>* above, Wide<T>* rows, std::int64_t row, bool first) {
  using S = typename Tile::template Back<P>;
  constexpr int kWidth = kLanes<Wide<T>>, kRows = S::Rows::kRows, kColumns = S::Columns::kRows;
  constexpr int kAbove = P::kDown - 1, kLeft = P::kRight - 1;
  for (std::int64_t t = 0; t < count; ++t) {
    for (std::int64_t l = 0; l < lanes; l += kWidth) {
      Vector<Wide<T>> in[W::kPoints], out[kRows * kColumns];
      every_point<typename Tile::template Input<P>, W::kSide>(
          [&](int p) __attribute__((always_inline)) {
            in[p] = load(sums + p * plane + t * kWinogradPanel + l);
          });
      transform<S, W::kSide, kColumns>(in, out);
      const std::int64_t column = Tile::kWidth * t * kWinogradPanel + l;
      FASTGEN_UNROLLED
      for (int i = 0; i < kRows; ++i) {
        Wide<T>* to = i < kAbove ? above + i * row : rows + (i - kAbove) * row;
        FASTGEN_UNROLLED
        for (int j = 0; j < kColumns; ++j) {
          Wide<T>* place = to + column + j * kWinogradPanel;
          const bool joins = i < kAbove || (j < kLeft && !(first && t == 0));
          store(place, joins ? load(place) + out[i * kColumns + j] : out[i * kColumns + j]);
        }
      }
    }
  }
}

// The tiles of a block of images in some rows of tiles, one size after the other, and their sums.
template <typename T>
struct Block {
  std::int64_t image, images;
  std::int64_t first, stop;  // rows of tiles
  winograd::Tiles tiles[kWinogradKinds];
  std::int64_t begin[kWinogradKinds + 1];  // tiles of the sizes before
  const Wide<T>* sums;
  std::int64_t plane;
};

template <typename T>
Block<T> block_of(const WinogradShape& shape, std::int64_t image, std::int64_t images,
                  std::int64_t first, std::int64_t stop) {
  Block<T> block{};
  block.image = image, block.images = images, block.first = first, block.stop = stop;
  for (int kind = 0; kind < kWinogradKinds; ++kind) {
    block.tiles[kind] = winograd::tiles_between(shape, kind, first, stop);
    block.begin[kind + 1] = block.begin[kind] + block.tiles[kind].in(images);
  }
  return block;
}

// Puts the inputs of one row of tiles of the n-th image, from row `top` of the map on, into `rows`
// and adds those that overlap to `above`.
template <typename W, typename T>
void add_row(const Block<T>& block, const Panel& panel, std::int64_t n, std::int64_t top,
             Wide<T>* above, Wide<T>* rows, std::int64_t row) {
  for (int kind = 0; kind < kWinogradKinds; ++kind) {
    const winograd::Tiles& tiles = block.tiles[kind];
    const std::int64_t down = top - tiles.row;
    if (down < 0 || down >= tiles.rows * tiles.height) continue;
    const std::int64_t index =
        block.begin[kind] + (n * tiles.rows + down / tiles.height) * tiles.columns;
    by_tile<W>(tiles.height, tiles.width, [&](auto tile) {
      const std::int64_t column = tiles.column * kWinogradPanel;
      by_phase<W>(panel.phase, [&](auto taps) {
        add_inputs<W, decltype(tile), decltype(taps), T>(
            block.sums + index * kWinogradPanel, block.plane, tiles.columns, panel.lanes,
            above + column, rows + column, row, column == 0);
      });
    });
  }
}

// The rows of inputs of the n-th image and a panel that a block completes, but for those before row
// `start` of tiles, which only lead to the first. `carried` keeps, between calls, those that the next
// row of tiles adds to.
template <typename W, typename T>
void finish(const WinogradCall& call, const Panel& panel, const Block<T>& block, std::int64_t n,
            std::int64_t start, Wide<T>* rows, Wide<T>* carried) {
  const WinogradShape& shape = call.shape;
  const winograd::Cut cut = winograd::cut(shape, shape.map_height);
  const std::int64_t overlap = winograd::overlap(shape, W::row_of(panel.phase));
  const std::int64_t columns = winograd::input_columns(shape, W::column_of(panel.phase));
  const std::int64_t row = winograd::input_columns(shape, 0) * kWinogradPanel;
  const std::int64_t above = W::row_of(panel.phase) - shape.padding_h;
  const std::int64_t image = block.image + n;
  if (block.first == 0 || block.first < start) clear(carried, overlap * row);
  for (std::int64_t i = block.first; i < block.stop; ++i) {
    const std::int64_t top = cut.at(i), height = cut.at(i + 1) - top;
    add_row<W, T>(block, panel, n, top, carried, rows, row);
    for (std::int64_t u = 0; u < height && i >= start; ++u) {
      const Wide<T>* done = u < overlap ? carried + u * row : rows + (u - overlap) * row;
      finish_row<W, T>(call, panel, {image, (top + u) * W::kStride + above, done, columns});
    }
    const Wide<T>* left = rows + (height - overlap) * row;
    FASTGEN_INDEPENDENT
    for (std::int64_t x = 0; x < overlap * row; ++x) carried[x] = left[x];
  }
  if (block.stop < cut.tiles()) return;
  for (std::int64_t u = 0;; ++u) {
    const std::int64_t at = (cut.pixels() + u) * W::kStride + above;
    if (at >= shape.height) return;
    finish_row<W, T>(call, panel,
                     {image, at, u < overlap ? carried + u * row : nullptr, columns});
  }
}

// Memory of a thread, and how far apart the numbers of points lie in it.
template <typename T>
struct Memory {
  T* zeros;  // pixels of nothing
  Wide<T>* sums;
  Element<T>* tiles;
  Wide<T>* rows;
  Wide<T>* carried;
  Element<T>* panel;
  std::int64_t row, plane, sums_plane, weight_plane, carried_size;
};

// The sums of a block's tiles at every point that they have in the phase of a panel.
template <typename W, typename T>
void multiply_block(const WinogradShape& shape, const Block<T>& block, const Panel& panel,
                    const Memory<T>& memory, const Element<T>* weight) {
  const std::int64_t* begin = block.begin;
  const int rows = W::points_from(W::row_of(panel.phase));
  const int columns = W::points_from(W::column_of(panel.phase));
  each_point<W>(rows, columns, [&](int p) {
    // The last point of tiles of three is theirs alone.
    const bool high = W::kMost == 3 && p / W::kSide == rows - 1;
    const bool wide = W::kMost == 3 && p % W::kSide == columns - 1;
    const std::int64_t from = high ? begin[1] : 0;
    const std::int64_t to = wide ? begin[2] : high ? begin[3] : begin[kWinogradKinds];
    if (from == to) return;
    multiply({memory.tiles + p * memory.plane + from * memory.row, to - from, memory.row, 1, 0,
              shape.filters, Format<T>::kElements, weight + p * memory.weight_plane,
              kWinogradPanel, panel.lanes / kLanes<Wide<T>>,
              memory.sums + p * memory.sums_plane + from * kWinogradPanel, kWinogradPanel, false});
  });
}

template <typename W, typename T>
void run_block(const WinogradCall& call, const Memory<T>& memory, const Block<T>& block,
               std::int64_t group, std::int64_t start) {
  const WinogradShape& shape = call.shape;
  const WinogradPlan& plan = call.plan;
  for (int kind = 0; kind < kWinogradKinds; ++kind) {
    const winograd::Tiles& tiles = block.tiles[kind];
    const std::int64_t count = tiles.in(block.images);
    if (count == 0) continue;
    const Corner corner{block.image, tiles.row, tiles.column};
    by_tile<W>(tiles.height, tiles.width, [&](auto tile) {
      transform_rows<W, T>(tiles, corner, count, shape.filters,
                           Map<T, decltype(tile)>{call, 0, memory.zeros},
                           memory.tiles + block.begin[kind] * memory.row, memory.plane,
                           memory.row);
    });
  }
  const std::int64_t first_panel = group * plan.panels / plan.groups;
  const std::int64_t end_panel = (group + 1) * plan.panels / plan.groups;
  const Element<T>* weight = nullptr;
  for (std::int64_t index = first_panel; index < end_panel; ++index) {
    const Panel panel = panel_of<W>(shape, index);
    if (call.packed != nullptr) {
      weight = static_cast<const Element<T>*>(call.packed) + index * panel_size<W>(shape);
    } else if (index == first_panel || panel.phase == 0) {
      transform_panels<W, T>(call, index, end_panel, memory.panel);
      weight = memory.panel;
    } else {
      weight += panel_size<W>(shape);
    }
    multiply_block<W, T>(shape, block, panel, memory, weight);
    for (std::int64_t n = 0; n < block.images; ++n) {
      finish<W, T>(call, panel, block, n, start, memory.rows,
                   memory.carried + (index - first_panel) * memory.carried_size);
    }
  }
}

template <typename W, typename T>
void run(const WinogradCall& call, std::int64_t begin, std::int64_t end, void* scratch) {
  const WinogradShape& shape = call.shape;
  const WinogradPlan& plan = call.plan;
  const std::int64_t depth = shape.filters, all_rows = winograd::tile_rows(shape);
  const std::int64_t input_row = winograd::input_columns(shape, 0) * kWinogradPanel;
  const std::int64_t overlap = winograd::overlap(shape, 0);
  const std::int64_t most_panels = ceil_div(plan.panels, plan.groups);
  Memory<T> memory;
  memory.row = winograd::padded_row(depth);
  memory.plane = winograd::padded_plane(plan.tiles * memory.row);
  memory.sums_plane = winograd::padded_plane(plan.tiles * kWinogradPanel);
  memory.weight_plane = winograd::padded_plane(depth * kWinogradPanel);
  memory.carried_size = overlap * input_row;
  Scratch free(shape, scratch);
  memory.zeros = free.take<T>(depth);
  memory.sums = free.take<Wide<T>>(W::kPoints * memory.sums_plane);
  memory.tiles = free.take<Element<T>>(W::kPoints * memory.plane);
  memory.rows = free.take<Wide<T>>(
      (most_panels * overlap + winograd::most_rows(shape)) * input_row);
  memory.carried = memory.rows + winograd::most_rows(shape) * input_row;
  memory.panel = free.take<Element<T>>(0);
  clear(memory.zeros, depth);

  for (std::int64_t piece = begin; piece < end; ++piece) {
    const std::int64_t group = piece % plan.groups;
    const std::int64_t segment = piece / plan.groups % plan.segments;
    const std::int64_t image = piece / plan.groups / plan.segments * plan.images;
    const std::int64_t images = winograd::at_most(shape.batch - image, plan.images);
    const std::int64_t start = segment * all_rows / plan.segments;
    const std::int64_t stop = (segment + 1) * all_rows / plan.segments;
    for (std::int64_t first = winograd::at_least(start - 1, 0); first < stop; first += plan.rows) {
      Block<T> block = block_of<T>(shape, image, images, first,
                                   winograd::at_most(first + plan.rows, stop));
      block.sums = memory.sums, block.plane = memory.sums_plane;
      run_block<W, T>(call, memory, block, group, start);
    }
  }
  if (call.stream) finish_streams();
}

}  // namespace

void winograd_conv_transpose2d_pack(const WinogradCall& call, std::int64_t begin,
                                    std::int64_t end) {
  by_method(call.shape, [&](auto method, auto number) {
    pack<decltype(method), decltype(number)>(call, begin, end);
  });
}

void winograd_conv_transpose2d(const WinogradCall& call, std::int64_t begin, std::int64_t end,
                               void* scratch) {
  by_method(call.shape, [&](auto method, auto number) {
    run<decltype(method), decltype(number)>(call, begin, end, scratch);
  });
}

}  // namespace fastgen::cpu::FASTGEN_CPU
