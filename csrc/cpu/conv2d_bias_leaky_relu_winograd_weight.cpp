// The kernel behind conv2d_bias_leaky_relu_winograd_weight.h: transformed inputs, a column per tile,
// times transformed tiles of the map, a row each, at each point.

#include "cpu/conv2d_bias_leaky_relu_winograd_weight.h"

#include "cpu/winograd_finite.h"
#include "cpu/winograd_tiles.h"
#include "cpu/winograd_weight.h"

namespace fastgen::cpu::FASTGEN_CPU {
namespace {

template <typename T>
using Element = typename Format<T>::Element;

// The weight gradient as it is defined, of one tap, for what is not finite otherwise. A NaN cannot
// become anything else.
template <typename W, typename T>
Wide<T> defined(const WinogradCall& call, std::int64_t filter, std::int64_t channel, int i, int j) {
  const WinogradShape& shape = call.shape;
  const T* input = static_cast<const T*>(call.input) + channel;
  const T* map = static_cast<const T*>(call.map) + filter;
  Wide<T> sum = 0;
  for (std::int64_t n = 0; n < shape.batch; ++n) {
    for (std::int64_t p = 0; p < shape.map_height && sum == sum; ++p) {
      const std::int64_t h = p * W::kStride + i - shape.padding_h;
      if (h < 0 || h >= shape.height) continue;
      for (std::int64_t q = 0; q < shape.map_width; ++q) {
        const std::int64_t w = q * W::kStride + j - shape.padding_w;
        if (w < 0 || w >= shape.width) continue;
        sum += widen<T>(input[((n * shape.height + h) * shape.width + w) * shape.channels]) *
               widen<T>(map[((n * shape.map_height + p) * shape.map_width + q) * shape.filters]);
      }
    }
  }
  return sum;
}

// Where a weight gradient goes, or one segment's part of it.
template <typename To>
struct Place {
  To* weight;
  std::int64_t strides[4];
};

template <typename T>
Place<Wide<T>> part_of(const WinogradCall& call, std::int64_t segment) {
  const std::int64_t channels = call.shape.channels, kernel = call.shape.kernel;
  const std::int64_t filter = kernel * kernel * channels;
  return {static_cast<Wide<T>*>(call.packed) + segment * call.shape.filters * filter,
          {filter, 1, kernel * channels, channels}};
}

// The taps of a phase from its sums at the points, `plane` apart.
template <typename W, typename Sum>
inline void finish_phase(int phase, const Sum* sums, std::int64_t plane, Vector<Sum>* taps,
                         Finite<Sum>& finite) {
  by_phase<W>(phase, [&](auto of_phase) __attribute__((always_inline)) {
    using P = decltype(of_phase);
    Vector<Sum> in[W::kPoints], out[P::kCount];
    every_point<typename W::template Weight<P>, W::kSide>(
        [&](int p) __attribute__((always_inline)) { in[p] = load(sums + p * plane); });
    transform<typename W::template Gradient<P>, W::kSide, P::kRight>(in, out);
    FASTGEN_UNROLLED
    for (int i = 0; i < P::kCount; ++i) {
      taps[W::first_of(phase) + W::template place_of<P>(i)] = out[i];
      finite.see(out[i]);
    }
  });
}

// Sums of a panel at the points, kWinogradPanel a row, into the weight gradient. What is not finite
// is computed as it is defined, over all tiles, or left for the sum of all segments to do.
template <typename W, typename T, typename To>
void finish(const WinogradCall& call, const Place<To>& place, std::int64_t first_channel,
            std::int64_t channels, std::int64_t panel, const Wide<T>* sums, std::int64_t plane) {
  constexpr int kWidth = kLanes<Wide<T>>;
  const std::int64_t first = panel * kWinogradPanel;
  const std::int64_t lanes = winograd::at_most(call.shape.filters - first, kWinogradPanel);
  for (std::int64_t l = 0; l < lanes; l += kWidth) {
    for (std::int64_t c = 0; c < channels; c += kWidth) {
      Vector<Wide<T>> taps[kWidth * W::kTaps];
      for (int d = 0; d < kWidth; ++d) {
        Vector<Wide<T>>* step = taps + d * W::kTaps;
        Finite<Wide<T>> finite;
        for (int phase = 0; phase < W::kPhases; ++phase) {
          const Wide<T>* from = sums + (phase * channels + c + d) * kWinogradPanel + l;
          finish_phase<W, Wide<T>>(phase, from, plane, step, finite);
        }
        const bool exactly = call.plan.segments == 1 && !finite.all_were();
        for (int tap = 0; tap < W::kTaps && exactly; ++tap) {
          step[tap] = with_exact<Wide<T>>(step[tap], [&](int lane) {
            return defined<W, T>(call, first + l + lane, first_channel + c + d, tap / W::kKernel,
                                 tap % W::kKernel);
          });
        }
      }
      store_taps<W, To>(taps, place.strides,
                        place.weight + (first + l) * place.strides[0] +
                            (first_channel + c) * place.strides[1]);
    }
  }
}

// Memory of a thread, and how far apart the numbers of points lie in it.
template <typename T>
struct Memory {
  T* zeros;  // pixels of nothing
  Wide<T>* sums;
  Element<T>* inputs;
  Element<T>* maps;
  std::int64_t numbers, panel_size, sums_panel;  // of a tile's inputs, of a panel's tiles and sums
  std::int64_t input_plane, map_plane, sums_plane;
};

// Of each point and phase, whether its sums hold something.
template <typename W>
using Started = bool[W::kPoints][W::kPhases];

// What of a weight gradient is computed together.
struct Part {
  std::int64_t channel, channels, filter, filters, panels;
};

// Adds `count` tiles of one size, from `first` on.
template <typename W, typename Tile, typename T>
void add_step(const WinogradCall& call, const Memory<T>& memory, const Part& part,
              const winograd::Tiles& tiles, std::int64_t first, std::int64_t count,
              Started<W>& started) {
  constexpr int kElements = Format<T>::kElements;
  const Corner corner = corner_of(tiles, first);
  transform_steps<W, T>(tiles, corner, count, part.channels,
                        Inputs<W, T, Tile>{call, part.channel, memory.zeros},
                        {memory.input_plane, memory.numbers, part.channels, 0}, memory.inputs);
  transform_steps<W, T>(tiles, corner, count, part.filters,
                        Map<T, Tile>{call, part.filter, memory.zeros},
                        {memory.map_plane, kWinogradPanel, 0, memory.panel_size}, memory.maps);
  const auto multiply_phases = [&](int p, Phases phases, bool add) {
    const std::int64_t row = phases.first * part.channels;
    const std::int64_t rows = (phases.stop - phases.first) * part.channels;
    for (std::int64_t panel = 0; panel < part.panels; ++panel) {
      const std::int64_t lanes =
          winograd::at_most(part.filters - panel * kWinogradPanel, kWinogradPanel);
      multiply({memory.inputs + p * memory.input_plane + row * kElements, rows, kElements, 1, 0,
                count, memory.numbers * kElements,
                memory.maps + p * memory.map_plane + panel * memory.panel_size, kWinogradPanel,
                lanes / kLanes<Wide<T>>,
                memory.sums + p * memory.sums_plane + panel * memory.sums_panel +
                    row * kWinogradPanel,
                kWinogradPanel, add});
    }
  };
  each_point<W>(Tile::kRows, Tile::kColumns, [&](int p) {
    // Tiles of other sizes may have begun with fewer phases.
    const Phases all = Tile::phases_at(p);
    for (int phase = all.first, next; phase < all.stop; phase = next) {
      const bool add = started[p][phase];
      for (next = phase; next < all.stop && started[p][next] == add; ++next) {}
      multiply_phases(p, {phase, next}, add);
    }
    for (int phase = all.first; phase < all.stop; ++phase) started[p][phase] = true;
  });
}

// Sums to which no tile was added: of a point of a phase that only tiles of three have, or all.
template <typename W, typename T>
void clear_others(const Memory<T>& memory, const Started<W>& started, const Part& part) {
  const std::int64_t size = part.channels * kWinogradPanel;
  for (int phase = 0; phase < W::kPhases; ++phase) {
    const int rows = W::points_from(W::row_of(phase));
    each_point<W>(rows, W::points_from(W::column_of(phase)), [&](int p) {
      Wide<T>* sums = memory.sums + p * memory.sums_plane + phase * size;
      for (std::int64_t panel = 0; panel < part.panels && !started[p][phase]; ++panel) {
        clear(sums + panel * memory.sums_panel, size);
      }
    });
  }
}

template <typename W, typename T>
void run(const WinogradCall& call, std::int64_t begin, std::int64_t end, void* scratch) {
  const WinogradShape& shape = call.shape;
  const WinogradPlan& plan = call.plan;
  const std::int64_t most_panels = ceil_div(plan.panels, plan.groups);
  const std::int64_t most_channels = winograd::at_least(shape.channels, shape.filters);
  Memory<T> memory;
  memory.numbers = W::kPhases * plan.block_channels;
  memory.panel_size = plan.tiles * kWinogradPanel;
  memory.sums_panel = memory.numbers * kWinogradPanel;
  memory.input_plane = winograd::padded_plane(plan.tiles * memory.numbers);
  memory.map_plane = winograd::padded_plane(most_panels * memory.panel_size);
  memory.sums_plane = winograd::padded_plane(most_panels * memory.sums_panel);
  Scratch free(shape, scratch);
  memory.zeros = free.take<T>(most_channels);
  memory.sums = free.take<Wide<T>>(W::kPoints * memory.sums_plane);
  memory.inputs = free.take<Element<T>>(W::kPoints * memory.input_plane);
  memory.maps = free.take<Element<T>>(W::kPoints * memory.map_plane);
  clear(memory.zeros, most_channels);

  for (std::int64_t piece = begin; piece < end; ++piece) {
    const std::int64_t group = piece % plan.groups;
    const std::int64_t block = piece / plan.groups % plan.blocks;
    const std::int64_t segment = piece / plan.groups / plan.blocks;
    const std::int64_t channel = block * plan.block_channels;
    const std::int64_t channels = winograd::at_most(shape.channels - channel, plan.block_channels);
    const std::int64_t first_panel = group * plan.panels / plan.groups;
    const std::int64_t panels = (group + 1) * plan.panels / plan.groups - first_panel;
    const std::int64_t filter = first_panel * kWinogradPanel;
    const Part part{channel, channels, filter,
                    winograd::at_most(shape.filters - filter, panels * kWinogradPanel), panels};
    const std::int64_t steps = winograd::steps_of_tiles(plan);
    Started<W> started = {};
    std::int64_t step = segment * steps / plan.segments;
    std::int64_t before = 0;  // steps of the sizes before
    for (int kind = 0; kind < kWinogradKinds; before += plan.kind_blocks[kind++]) {
      const std::int64_t stop =
          winograd::at_most((segment + 1) * steps / plan.segments, before + plan.kind_blocks[kind]);
      if (step >= stop) continue;
      const winograd::Tiles tiles = winograd::tiles_of_kind(shape, kind);
      const std::int64_t all = tiles.in(shape.batch);
      by_tile<W>(tiles.height, tiles.width, [&](auto tile) {
        for (; step < stop; ++step) {
          const std::int64_t first = (step - before) * plan.tiles;
          add_step<W, decltype(tile), T>(call, memory, part, tiles, first,
                                         winograd::at_most(all - first, plan.tiles), started);
        }
      });
    }
    clear_others<W>(memory, started, part);
    for (std::int64_t panel = 0; panel < panels; ++panel) {
      const Wide<T>* from = memory.sums + panel * memory.sums_panel;
      if (plan.segments > 1) {
        finish<W, T>(call, part_of<T>(call, segment), channel, channels, first_panel + panel, from,
                     memory.sums_plane);
      } else {
        const std::int64_t(&strides)[4] = call.result_strides;
        const Place<T> whole{static_cast<T*>(call.result),
                             {strides[0], strides[1], strides[2], strides[3]}};
        finish<W, T>(call, whole, channel, channels, first_panel + panel, from,
                     memory.sums_plane);
      }
    }
  }
}

template <typename W, typename T>
void sum(const WinogradCall& call, std::int64_t begin, std::int64_t end) {
  constexpr int kWidth = kLanes<Wide<T>>, kKernel = W::kKernel;
  const std::int64_t(&strides)[4] = call.result_strides;
  const Place<Wide<T>> first = part_of<T>(call, 0), second = part_of<T>(call, 1);
  const std::int64_t apart = second.weight - first.weight;
  // Of one tap, kWidth channels from c on.
  const auto total_of = [&](std::int64_t filter, std::int64_t c, int tap) {
    const int i = tap / kKernel, j = tap % kKernel;
    const Wide<T>* from = first.weight + filter * first.strides[0] + i * first.strides[2] +
                          j * first.strides[3] + c;
    Vector<Wide<T>> total = load(from);
    for (std::int64_t s = 1; s < call.plan.segments; ++s) total += load(from + s * apart);
    return with_exact<Wide<T>>(
        total, [&](int lane) { return defined<W, T>(call, filter, c + lane, i, j); });
  };
  for (std::int64_t filter = begin; filter < end; ++filter) {
    T* to = static_cast<T*>(call.result) + filter * strides[0];
    if (strides[1] != 1) {  // contiguous
      for (std::int64_t c = 0; c < call.shape.channels; c += kWidth) {
        const auto at = [&](int tap) { return total_of(filter, c, tap); };
        store_neighbours<W, T>(at, strides[1], to + c * strides[1]);
      }
      continue;
    }
    for (int tap = 0; tap < W::kTaps; ++tap) {
      T* place = to + tap / kKernel * strides[2] + tap % kKernel * strides[3];
      for (std::int64_t c = 0; c < call.shape.channels; c += kWidth) {
        store(place + c, total_of(filter, c, tap));
      }
    }
  }
}

}  // namespace

void winograd_conv2d_weight_sum(const WinogradCall& call, std::int64_t begin, std::int64_t end) {
  by_method(call.shape, [&](auto method, auto number) {
    sum<decltype(method), decltype(number)>(call, begin, end);
  });
}

void winograd_conv2d_weight(const WinogradCall& call, std::int64_t begin, std::int64_t end,
                            void* scratch) {
  by_method(call.shape, [&](auto method, auto number) {
    run<decltype(method), decltype(number)>(call, begin, end, scratch);
  });
}

}  // namespace fastgen::cpu::FASTGEN_CPU
