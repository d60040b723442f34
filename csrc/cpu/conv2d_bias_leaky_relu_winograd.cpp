// The kernel behind conv2d_bias_leaky_relu_winograd.h: transformed inputs, a row per tile, times the
// transformed weight, a column per filter, at each point.

#include "cpu/conv2d_bias_leaky_relu_winograd.h"

#include "cpu/winograd_finite.h"
#include "cpu/winograd_tiles.h"
#include "cpu/winograd_weight.h"

namespace fastgen::cpu::FASTGEN_CPU {
namespace {

template <typename T>
using Element = typename Format<T>::Element;

// Elements of a panel of the transformed weight.
template <typename W>
std::int64_t panel_size(const WinogradShape& shape) {
  return W::kPoints * winograd::padded_plane(W::kPhases * shape.channels * kWinogradPanel);
}

std::int64_t lanes_of(const WinogradShape& shape, std::int64_t panel) {
  return winograd::at_most(shape.filters - panel * kWinogradPanel, kWinogradPanel);
}

template <typename W, typename T>
void transform_panel(const WinogradCall& call, std::int64_t panel, Element<T>* to) {
  transform_weight<W, T, true>(call, panel * kWinogradPanel, lanes_of(call.shape, panel),
                               {0, W::kPhases}, to);
}

template <typename W, typename T>
void pack(const WinogradCall& call, std::int64_t begin, std::int64_t end) {
  auto* packed = static_cast<Element<T>*>(call.packed);
  for (std::int64_t panel = begin; panel < end; ++panel) {
    transform_panel<W, T>(call, panel, packed + panel * panel_size<W>(call.shape));
  }
}

// The convolution as it is defined, of one pixel and filter, for what is not finite otherwise: an
// infinity or NaN of one input would reach both outputs of its tile. A NaN cannot become anything
// else.
template <typename W, typename T>
Wide<T> defined(const WinogradCall& call, std::int64_t image, std::int64_t row,
                std::int64_t column, std::int64_t filter) {
  constexpr int kKernel = W::kKernel;
  const WinogradShape& shape = call.shape;
  const T* input = static_cast<const T*>(call.input);
  const T* weight = static_cast<const T*>(call.weight) + filter * call.weight_strides[0];
  Wide<T> sum = 0;
  for (int i = 0; i < kKernel && sum == sum; ++i) {
    for (int j = 0; j < kKernel; ++j) {
      const std::int64_t h = row * W::kStride + i - shape.padding_h;
      const std::int64_t w = column * W::kStride + j - shape.padding_w;
      if (h < 0 || h >= shape.height || w < 0 || w >= shape.width) continue;
      const T* from = input + ((image * shape.height + h) * shape.width + w) * shape.channels;
      const T* tap = weight + i * call.weight_strides[2] + j * call.weight_strides[3];
      for (std::int64_t c = 0; c < shape.channels; ++c) {
        sum += widen<T>(from[c]) * widen<T>(tap[c * call.weight_strides[1]]);
      }
    }
  }
  return sum;
}

// A tile of the map and the filters of a panel, whose sums at the points lie `plane` apart.
template <typename T>
struct Block {
  Corner corner;
  std::int64_t filter, lanes;
  const Wide<T>* sums;
  std::int64_t plane;
};

// A block into the map; answers whether everything was finite. kExact: what is not finite is computed
// as it is defined, and pixels may lie outside of the map.
template <typename W, typename Tile, typename T, bool kExact>
inline bool finish_as(const WinogradCall& call, const Block<T>& block) {
  using S = typename Tile::Output;
  constexpr int kWidth = kLanes<Wide<T>>, kColumns = Tile::kWidth, kPixels = Tile::kHeight * kColumns;
  const WinogradShape& shape = call.shape;
  const auto [image, row, column] = block.corner;
  const std::int64_t right = shape.filters, down = shape.map_width * shape.filters;
  const std::int64_t place =
      ((image * shape.map_height + row) * shape.map_width + column) * shape.filters + block.filter;
  const Vector<Wide<T>> slope = all(static_cast<Wide<T>>(call.slope));
  const T* bias = static_cast<const T*>(call.bias);
  const T* output =
      call.output == nullptr ? nullptr : static_cast<const T*>(call.output) + place;
  T* result = static_cast<T*>(call.result) + place;
  Finite<Wide<T>> finite;
  for (std::int64_t l = 0; l < block.lanes; l += kWidth) {
    Vector<Wide<T>> in[W::kPoints], out[kPixels];
    every_point<typename Tile::Map, W::kSide>([&](int p) __attribute__((always_inline)) {
      in[p] = load(block.sums + p * block.plane + l);
    });
    transform<S, W::kSide, kColumns>(in, out);
    const Vector<Wide<T>> shift =
        bias == nullptr ? Vector<Wide<T>>{} : load(bias + block.filter + l);
    FASTGEN_UNROLLED
    for (int i = 0; i < kPixels; ++i) {
      const int h = i / kColumns, w = i % kColumns;
      if constexpr (kExact) {
        if (row + h >= shape.map_height || column + w >= shape.map_width) continue;
        out[i] = with_exact<Wide<T>>(out[i], [&, image = image, row = row, column = column](int lane) {
          return defined<W, T>(call, image, row + h, column + w, block.filter + l + lane);
        });
      } else {
        finite.see(out[i]);
      }
      const std::int64_t at = h * down + w * right + l;
      const Vector<Wide<T>> sum = out[i] + shift;
      const Vector<Wide<T>> chooser = output == nullptr ? sum : load(output + at);
      const Vector<Wide<T>> value = leaky_relu_mask_lanes<Wide<T>>(sum, chooser, slope);
      if (call.stream) {
        stream(result + at, value);
      } else {
        store(result + at, value);
      }
    }
  }
  return finite.all_were();
}

template <typename W, typename Tile, typename T>
__attribute__((noinline)) void finish_exactly(const WinogradCall& call, const Block<T>& block) {
  finish_as<W, Tile, T, true>(call, block);
}

template <typename W, typename Tile, typename T>
void finish(const WinogradCall& call, const winograd::Tiles& tiles, Block<T> block,
            std::int64_t count) {
  const WinogradShape& shape = call.shape;
  for (std::int64_t t = 0; t < count; ++t, block.corner = next_corner(tiles, block.corner)) {
    const bool whole = block.corner.row + Tile::kHeight <= shape.map_height &&
                       block.corner.column + Tile::kWidth <= shape.map_width;
    if (!whole || !finish_as<W, Tile, T, false>(call, block)) {
      finish_exactly<W, Tile, T>(call, block);
    }
    block.sums += kWinogradPanel;
  }
}

// Memory of a thread, and how far apart the numbers of points lie in it.
template <typename T>
struct Memory {
  T* zeros;  // pixels of nothing
  Wide<T>* sums;
  Element<T>* tiles;
  Element<T>* panel;
  std::int64_t row, plane, sums_plane, weight_plane;
};

// Tiles of one size, `count` of them from `first` on.
template <typename W, typename Tile, typename T>
void run_block(const WinogradCall& call, const Memory<T>& memory, const winograd::Tiles& tiles,
               std::int64_t first, std::int64_t count, std::int64_t group) {
  using F = Format<T>;
  const WinogradShape& shape = call.shape;
  const WinogradPlan& plan = call.plan;
  const Corner corner = corner_of(tiles, first);
  transform_rows<W, T>(tiles, corner, count, shape.channels,
                       Inputs<W, T, Tile>{call, 0, memory.zeros}, memory.tiles, memory.plane,
                       memory.row);
  const std::int64_t end_panel = (group + 1) * plan.panels / plan.groups;
  for (std::int64_t panel = group * plan.panels / plan.groups; panel < end_panel; ++panel) {
    const Element<T>* weight = memory.panel;
    const std::int64_t lanes = lanes_of(shape, panel);
    if (call.packed != nullptr) {
      weight = static_cast<const Element<T>*>(call.packed) + panel * panel_size<W>(shape);
    } else {
      transform_panel<W, T>(call, panel, memory.panel);
    }
    each_point<W>(Tile::kRows, Tile::kColumns, [&](int p) {
      const auto [phase, stop] = Tile::phases_at(p);
      const std::int64_t first = phase * shape.channels, depth = (stop - phase) * shape.channels;
      multiply({memory.tiles + p * memory.plane + first, count, memory.row, 1, 0, depth,
                F::kElements, weight + p * memory.weight_plane + first * kWinogradPanel,
                kWinogradPanel, lanes / kLanes<Wide<T>>, memory.sums + p * memory.sums_plane,
                kWinogradPanel, false});
    });
    finish<W, Tile, T>(call, tiles,
                       {corner, panel * kWinogradPanel, lanes, memory.sums, memory.sums_plane},
                       count);
  }
}

template <typename W, typename T>
void run(const WinogradCall& call, std::int64_t begin, std::int64_t end, void* scratch) {
  const WinogradShape& shape = call.shape;
  const WinogradPlan& plan = call.plan;
  const std::int64_t depth = W::kPhases * shape.channels;
  Memory<T> memory;
  memory.row = winograd::padded_row(depth);
  memory.plane = winograd::padded_plane(plan.tiles * memory.row);
  memory.sums_plane = winograd::padded_plane(plan.tiles * kWinogradPanel);
  memory.weight_plane = winograd::padded_plane(depth * kWinogradPanel);
  Scratch free(shape, scratch);
  memory.zeros = free.take<T>(shape.channels);
  memory.sums = free.take<Wide<T>>(W::kPoints * memory.sums_plane);
  memory.tiles = free.take<Element<T>>(W::kPoints * memory.plane);
  memory.panel = free.take<Element<T>>(0);
  clear(memory.zeros, shape.channels);

  for (std::int64_t piece = begin; piece < end; ++piece) {
    std::int64_t block = piece / plan.groups;
    int kind = 0;
    while (block >= plan.kind_blocks[kind]) block -= plan.kind_blocks[kind++];
    const winograd::Tiles tiles = winograd::tiles_of_kind(shape, kind);
    const std::int64_t all = tiles.in(shape.batch);
    const std::int64_t together = ceil_div(all, plan.kind_blocks[kind]);
    const std::int64_t first = block * together;
    by_tile<W>(tiles.height, tiles.width, [&](auto tile) {
      run_block<W, decltype(tile), T>(call, memory, tiles, first,
                                      winograd::at_most(all - first, together),
                                      piece % plan.groups);
    });
  }
  if (call.stream) finish_streams();
}

}  // namespace

void winograd_conv2d_pack(const WinogradCall& call, std::int64_t begin, std::int64_t end) {
  by_method(call.shape, [&](auto method, auto number) {
    pack<decltype(method), decltype(number)>(call, begin, end);
  });
}

void winograd_conv2d(const WinogradCall& call, std::int64_t begin, std::int64_t end,
                     void* scratch) {
  by_method(call.shape, [&](auto method, auto number) {
    run<decltype(method), decltype(number)>(call, begin, end, scratch);
  });
}

}  // namespace fastgen::cpu::FASTGEN_CPU
