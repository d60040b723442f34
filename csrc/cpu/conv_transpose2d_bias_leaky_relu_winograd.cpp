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

// Input channels in one phase.
struct Panel {
  int phase;
  std::int64_t first, lanes;
};

Panel panel_of(const WinogradShape& shape, std::int64_t index) {
  const std::int64_t panels = winograd::channel_panels(shape);
  const std::int64_t first = index % panels * kWinogradPanel;
  return {static_cast<int>(index / panels), first,
          winograd::at_most(shape.channels - first, kWinogradPanel)};
}

template <typename W>
std::int64_t panel_size(const WinogradShape& shape) {
  return W::kPoints * W::kPoints * winograd::padded_plane(shape.filters * kWinogradPanel);
}

template <typename W, typename T>
void pack(const WinogradCall& call, std::int64_t begin, std::int64_t end) {
  auto* packed = static_cast<Element<T>*>(call.packed);
  for (std::int64_t index = begin; index < end; ++index) {
    const Panel panel = panel_of(call.shape, index);
    transform_weight<W, T, false>(call, panel.first, panel.lanes, panel.phase,
                                  packed + index * panel_size<W>(call.shape));
  }
}

// The transposed convolution as it is defined, of one pixel and channel, for what is not finite
// otherwise. A NaN cannot become anything else.
template <typename W, typename T>
Wide<T> defined(const WinogradCall& call, std::int64_t image, std::int64_t row,
                std::int64_t column, std::int64_t channel) {
  constexpr int kKernel = W::kStride * W::kTaps;
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
  const std::int64_t first = panel.phase % W::kStride - shape.padding_w;
  const std::int64_t left_out = first < 0 ? ceil_div(-first, W::kStride) : 0;
  const std::int64_t columns = ceil_div(shape.width - first, W::kStride);
  T* result = static_cast<T*>(call.result) +
              ((row.image * shape.height + row.row) * shape.width + first) * shape.channels +
              panel.first;
  Finite<Wide<T>> finite;
  for (std::int64_t l = 0; l < panel.lanes; l += kWidth) {
    const Vector<Wide<T>> shift =
        bias == nullptr ? Vector<Wide<T>>{} : load(bias + panel.first + l);
    for (std::int64_t v = left_out; v < columns; ++v) {
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
      T* to = result + v * W::kStride * shape.channels + l;
      store(to, leaky_relu_lanes<Wide<T>>(sum + shift, slope));
      __builtin_prefetch(to + W::kStride * shape.width * shape.channels, 1);
    }
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

// Adds the inputs of one row of tiles, whose sums at the points lie `plane` apart, to kPoints rows.
template <typename W, typename T>
void add_inputs(const Wide<T>* sums, std::int64_t plane, std::int64_t tiles, std::int64_t lanes,
                Wide<T>* rows, std::int64_t columns) {
  constexpr int kWidth = kLanes<Wide<T>>, kPoints = W::kPoints * W::kPoints;
  for (std::int64_t t = 0; t < tiles; ++t) {
    for (std::int64_t l = 0; l < lanes; l += kWidth) {
      Vector<Wide<T>> in[kPoints], out[kPoints];
      FASTGEN_UNROLLED
      for (int p = 0; p < kPoints; ++p) in[p] = load(sums + p * plane + t * kWinogradPanel + l);
      transform<Transposed<typename W::Input>>(in, out);
      Wide<T>* to = rows + 2 * t * kWinogradPanel + l;
      FASTGEN_UNROLLED
      for (int i = 0; i < W::kPoints; ++i) {
        FASTGEN_UNROLLED
        for (int j = 0; j < W::kPoints; ++j) {
          Wide<T>* place = to + (i * columns + j) * kWinogradPanel;
          store(place, load(place) + out[i * W::kPoints + j]);
        }
      }
    }
  }
}

template <typename N>
inline void clear(N* numbers, std::int64_t count) {
  for (std::int64_t i = 0; i < count; ++i) numbers[i] = {};
}

// The rows of inputs of one image and panel that `tile_rows` rows of tiles from `first` on complete,
// but for those before `start`, which only lead to the first. `carried` keeps, between calls, those
// that the next row of tiles adds to.
template <typename W, typename T>
void finish(const WinogradCall& call, const Panel& panel, std::int64_t image, std::int64_t first,
            std::int64_t tile_rows, std::int64_t start, const Wide<T>* sums, std::int64_t plane,
            Wide<T>* rows, Wide<T>* carried) {
  constexpr int kOverlap = W::kPoints - 2;
  const WinogradShape& shape = call.shape;
  const std::int64_t columns = winograd::input_columns(shape);
  const std::int64_t tiles = winograd::tile_columns(shape), row = columns * kWinogradPanel;
  const std::int64_t above = panel.phase / W::kStride - shape.padding_h;
  if (first == 0 || first < start) clear(carried, kOverlap * row);
  for (std::int64_t i = first; i < first + tile_rows; ++i) {
    FASTGEN_INDEPENDENT
    for (std::int64_t x = 0; x < kOverlap * row; ++x) rows[x] = carried[x];
    clear(rows + kOverlap * row, 2 * row);
    add_inputs<W, T>(sums + (i - first) * tiles * kWinogradPanel, plane, tiles, panel.lanes, rows,
                     columns);
    for (int u = 0; u < 2 && i >= start; ++u) {
      finish_row<W, T>(call, panel,
                       {image, (2 * i + u) * W::kStride + above, rows + u * row, columns});
    }
    FASTGEN_INDEPENDENT
    for (std::int64_t x = 0; x < kOverlap * row; ++x) carried[x] = rows[2 * row + x];
  }
  if (first + tile_rows < winograd::tile_rows(shape)) return;
  for (std::int64_t u = 0;; ++u) {
    const std::int64_t at = (2 * (first + tile_rows) + u) * W::kStride + above;
    if (at >= shape.height) return;
    finish_row<W, T>(call, panel,
                     {image, at, u < kOverlap ? carried + u * row : nullptr, columns});
  }
}

template <typename W, typename T>
void run(const WinogradCall& call, std::int64_t begin, std::int64_t end, void* scratch) {
  using F = Format<T>;
  constexpr int kPoints = W::kPoints * W::kPoints;
  const WinogradShape& shape = call.shape;
  const WinogradPlan& plan = call.plan;
  const std::int64_t depth = shape.filters, row = winograd::padded_row(depth);
  const std::int64_t plane = winograd::padded_plane(plan.tiles * row);
  const std::int64_t sums_plane = winograd::padded_plane(plan.tiles * kWinogradPanel);
  const std::int64_t weight_plane = winograd::padded_plane(depth * kWinogradPanel);
  const std::int64_t all_rows = winograd::tile_rows(shape);
  const std::int64_t columns = winograd::tile_columns(shape);
  const std::int64_t input_row = winograd::input_columns(shape) * kWinogradPanel;
  const std::int64_t carried_rows = winograd::overlap(shape);
  const std::int64_t most_panels = ceil_div(plan.panels, plan.groups);
  Scratch free(shape, scratch);
  auto* zeros = free.take<T>(depth);  // pixels of nothing
  auto* sums = free.take<Wide<T>>(kPoints * sums_plane);
  auto* tiles = free.take<Element<T>>(kPoints * plane);
  auto* rows = free.take<Wide<T>>(
      (most_panels * carried_rows + kWinogradOutputs + carried_rows) * input_row);
  auto* carried = rows + (kWinogradOutputs + carried_rows) * input_row;
  auto* own_panel = free.take<Element<T>>(0);
  clear(zeros, depth);

  for (std::int64_t piece = begin; piece < end; ++piece) {
    const std::int64_t group = piece % plan.groups;
    const std::int64_t segment = piece / plan.groups % plan.segments;
    const std::int64_t block = piece / plan.groups / plan.segments;
    const std::int64_t start = segment * all_rows / plan.segments;
    const std::int64_t stop = (segment + 1) * all_rows / plan.segments;
    const std::int64_t image = block * plan.images;
    const std::int64_t images = winograd::at_most(shape.batch - image, plan.images);
    const std::int64_t first_panel = group * plan.panels / plan.groups;
    const std::int64_t end_panel = (group + 1) * plan.panels / plan.groups;
    for (std::int64_t first = winograd::at_least(start - 1, 0); first < stop; first += plan.rows) {
      const std::int64_t tile_rows = winograd::at_most(stop - first, plan.rows);
      const std::int64_t count = images * tile_rows * columns;
      transform_rows<Transposed<typename W::Output>, T, 1>(
          shape, Tile{image, first, 0}, count, depth,
          [&](Tile tile, int) { return map_of<T>(call, tile, 0, zeros); }, tiles, plane,
          row);
      for (std::int64_t index = first_panel; index < end_panel; ++index) {
        const Panel panel = panel_of(shape, index);
        const Element<T>* weight = own_panel;
        if (call.packed != nullptr) {
          weight = static_cast<const Element<T>*>(call.packed) + index * panel_size<W>(shape);
        } else {
          transform_weight<W, T, false>(call, panel.first, panel.lanes, panel.phase, own_panel);
        }
        for (int p = 0; p < kPoints; ++p) {
          multiply({tiles + p * plane, count, row, 1, 0, depth, F::kElements,
                    weight + p * weight_plane, kWinogradPanel,
                    panel.lanes / kLanes<Wide<T>>, sums + p * sums_plane, kWinogradPanel, false});
        }
        for (std::int64_t n = 0; n < images; ++n) {
          finish<W, T>(call, panel, image + n, first, tile_rows, start,
                       sums + n * tile_rows * columns * kWinogradPanel, sums_plane, rows,
                       carried + (index - first_panel) * carried_rows * input_row);
        }
      }
    }
  }
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
