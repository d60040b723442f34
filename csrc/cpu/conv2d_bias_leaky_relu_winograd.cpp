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
  return W::kPoints * W::kPoints *
         winograd::padded_plane(W::kStride * W::kStride * shape.channels * kWinogradPanel);
}

std::int64_t lanes_of(const WinogradShape& shape, std::int64_t panel) {
  return winograd::at_most(shape.filters - panel * kWinogradPanel, kWinogradPanel);
}

template <typename W, typename T>
void pack(const WinogradCall& call, std::int64_t begin, std::int64_t end) {
  auto* packed = static_cast<Element<T>*>(call.packed);
  for (std::int64_t panel = begin; panel < end; ++panel) {
    transform_weight<W, T, true>(call, panel * kWinogradPanel, lanes_of(call.shape, panel), 0,
                                 packed + panel * panel_size<W>(call.shape));
  }
}

// The convolution as it is defined, of one pixel and filter, for what is not finite otherwise: an
// infinity or NaN of one input would reach both outputs of its tile. A NaN cannot become anything
// else.
template <typename W, typename T>
Wide<T> defined(const WinogradCall& call, std::int64_t image, std::int64_t row,
                std::int64_t column, std::int64_t filter) {
  constexpr int kKernel = W::kStride * W::kTaps;
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
  Tile tile;
  std::int64_t filter, lanes;
  const Wide<T>* sums;
  std::int64_t plane;
};

// A block into the map; answers whether everything was finite. kWhole: no pixel lies outside of the
// map. kExact: what is not finite is computed as it is defined.
template <typename W, typename T, bool kMasked, bool kWhole, bool kExact>
inline bool finish_as(const WinogradCall& call, const Block<T>& block) {
  constexpr int kWidth = kLanes<Wide<T>>, kPoints = W::kPoints * W::kPoints;
  const WinogradShape& shape = call.shape;
  const Tile tile = block.tile;
  const std::int64_t row = 2 * tile.row, column = 2 * tile.column;
  const std::int64_t right = shape.filters, down = shape.map_width * shape.filters;
  const std::int64_t place =
      ((tile.image * shape.map_height + row) * shape.map_width + column) * shape.filters +
      block.filter;
  const Vector<Wide<T>> slope = all(static_cast<Wide<T>>(call.slope));
  const T* bias = static_cast<const T*>(call.bias);
  const T* output = static_cast<const T*>(call.output) + (kMasked ? place : 0);
  T* result = static_cast<T*>(call.result) + place;
  Finite<Wide<T>> finite;
  for (std::int64_t l = 0; l < block.lanes; l += kWidth) {
    Vector<Wide<T>> in[kPoints], out[4];
    FASTGEN_UNROLLED
    for (int p = 0; p < kPoints; ++p) in[p] = load(block.sums + p * block.plane + l);
    transform<typename W::Output>(in, out);
    const Vector<Wide<T>> shift =
        bias == nullptr ? Vector<Wide<T>>{} : load(bias + block.filter + l);
    FASTGEN_UNROLLED
    for (int i = 0; i < 4; ++i) {
      if (!kWhole && (row + i / 2 >= shape.map_height || column + i % 2 >= shape.map_width)) {
        continue;
      }
      if constexpr (kExact) {
        out[i] = with_exact<Wide<T>>(out[i], [&](int lane) {
          return defined<W, T>(call, tile.image, row + i / 2, column + i % 2,
                               block.filter + l + lane);
        });
      } else {
        finite.see(out[i]);
      }
      const std::int64_t at = i / 2 * down + i % 2 * right + l;
      const Vector<Wide<T>> sum = out[i] + shift;
      store(result + at, kMasked
                             ? leaky_relu_mask_lanes<Wide<T>>(sum, load(output + at), slope)
                             : leaky_relu_lanes<Wide<T>>(sum, slope));
    }
  }
  return finite.all_were();
}

template <typename W, typename T, bool kMasked>
__attribute__((noinline)) void finish_exactly(const WinogradCall& call, const Block<T>& block) {
  finish_as<W, T, kMasked, false, true>(call, block);
}

template <typename W, typename T, bool kMasked>
void finish(const WinogradCall& call, Block<T> block, std::int64_t tiles) {
  const WinogradShape& shape = call.shape;
  for (std::int64_t t = 0; t < tiles; ++t, block.tile = next_tile(shape, block.tile)) {
    const bool whole = 2 * block.tile.row + 1 < shape.map_height &&
                       2 * block.tile.column + 1 < shape.map_width;
    const bool finite = whole ? finish_as<W, T, kMasked, true, false>(call, block)
                              : finish_as<W, T, kMasked, false, false>(call, block);
    if (!finite) finish_exactly<W, T, kMasked>(call, block);
    block.sums += kWinogradPanel;
  }
}

template <typename W, typename T>
void run(const WinogradCall& call, std::int64_t begin, std::int64_t end, void* scratch) {
  using F = Format<T>;
  constexpr int kPhases = W::kStride * W::kStride, kPoints = W::kPoints * W::kPoints;
  const WinogradShape& shape = call.shape;
  const WinogradPlan& plan = call.plan;
  const std::int64_t depth = kPhases * shape.channels, row = winograd::padded_row(depth);
  const std::int64_t all = shape.batch * winograd::tile_rows(shape) * winograd::tile_columns(shape);
  const std::int64_t plane = winograd::padded_plane(plan.tiles * row);
  const std::int64_t sums_plane = winograd::padded_plane(plan.tiles * kWinogradPanel);
  const std::int64_t weight_plane = winograd::padded_plane(depth * kWinogradPanel);
  Scratch free(shape, scratch);
  auto* zeros = free.take<T>(shape.channels);  // pixels of nothing
  auto* sums = free.take<Wide<T>>(kPoints * sums_plane);
  auto* tiles = free.take<Element<T>>(kPoints * plane);
  auto* own_panel = free.take<Element<T>>(0);
  for (std::int64_t c = 0; c < shape.channels; ++c) zeros[c] = T{};

  for (std::int64_t piece = begin; piece < end; ++piece) {
    const std::int64_t block = piece / plan.groups, group = piece % plan.groups;
    const std::int64_t first = block * plan.tiles;
    const std::int64_t count = winograd::at_most(all - first, plan.tiles);
    const Tile tile = tile_of(shape, first);
    transform_rows<typename W::Input, T, kPhases>(
        shape, tile, count, shape.channels,
        [&](Tile one, int phase) { return inputs_of<W, T>(call, one, phase, 0, zeros); }, tiles,
        plane, row);
    const std::int64_t end_panel = (group + 1) * plan.panels / plan.groups;
    for (std::int64_t panel = group * plan.panels / plan.groups; panel < end_panel; ++panel) {
      const Element<T>* weight = own_panel;
      const std::int64_t lanes = lanes_of(shape, panel);
      if (call.packed != nullptr) {
        weight = static_cast<const Element<T>*>(call.packed) + panel * panel_size<W>(shape);
      } else {
        transform_weight<W, T, true>(call, panel * kWinogradPanel, lanes, 0, own_panel);
      }
      for (int p = 0; p < kPoints; ++p) {
        multiply({tiles + p * plane, count, row, 1, 0, depth, F::kElements,
                  weight + p * weight_plane, kWinogradPanel,
                  lanes / kLanes<Wide<T>>, sums + p * sums_plane, kWinogradPanel, false});
      }
      const Block<T> block{tile, panel * kWinogradPanel, lanes, sums, sums_plane};
      if (call.output == nullptr) {
        finish<W, T, false>(call, block, count);
      } else {
        finish<W, T, true>(call, block, count);
      }
    }
  }
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
