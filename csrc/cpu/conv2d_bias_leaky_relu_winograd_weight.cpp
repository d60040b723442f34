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

// Sums of a panel at the points, kWinogradPanel a row, into the weight gradient. What is not finite
// is computed as it is defined, over all tiles, or left for the sum of all segments to do.
template <typename W, typename T, typename To>
void finish(const WinogradCall& call, const Place<To>& place, std::int64_t first_channel,
            std::int64_t channels, std::int64_t panel, const Wide<T>* sums, std::int64_t plane) {
  constexpr int kWidth = kLanes<Wide<T>>, kPoints = W::kPoints * W::kPoints;
  constexpr int kTaps = W::kTaps * W::kTaps, kPhases = W::kStride * W::kStride;
  const std::int64_t first = panel * kWinogradPanel;
  const std::int64_t lanes = winograd::at_most(call.shape.filters - first, kWinogradPanel);
  for (std::int64_t l = 0; l < lanes; l += kWidth) {
    for (std::int64_t c = 0; c < channels; c += kWidth) {
      Vector<Wide<T>> taps[kWidth * kPhases * kTaps];
      for (int d = 0; d < kWidth; ++d) {
        for (int phase = 0; phase < kPhases; ++phase) {
          const Wide<T>* from = sums + (phase * call.plan.block_channels + c + d) * kWinogradPanel;
          Vector<Wide<T>> in[kPoints], out[kTaps];
          FASTGEN_UNROLLED
          for (int p = 0; p < kPoints; ++p) in[p] = load(from + p * plane + l);
          transform<Transposed<typename W::Weight>>(in, out);
          Vector<Wide<T>>* to = taps + (d * kPhases + phase) * kTaps;
          Finite<Wide<T>> finite;
          for (int tap = 0; tap < kTaps; ++tap) {
            to[tap] = out[tap];
            finite.see(out[tap]);
          }
          const bool exactly = call.plan.segments == 1 && !finite.all_were();
          for (int tap = 0; tap < kTaps && exactly; ++tap) {
            const int i = phase / W::kStride + tap / W::kTaps * W::kStride;
            const int j = phase % W::kStride + tap % W::kTaps * W::kStride;
            to[tap] = with_exact<Wide<T>>(out[tap], [&](int lane) {
              return defined<W, T>(call, first + l + lane, first_channel + c + d, i, j);
            });
          }
        }
      }
      store_taps<W, To>(taps, place.strides,
                        place.weight + (first + l) * place.strides[0] +
                            (first_channel + c) * place.strides[1]);
    }
  }
}

template <typename W, typename T>
void run(const WinogradCall& call, std::int64_t begin, std::int64_t end, void* scratch) {
  using F = Format<T>;
  constexpr int kPhases = W::kStride * W::kStride, kPoints = W::kPoints * W::kPoints;
  constexpr int kElements = F::kElements;
  const WinogradShape& shape = call.shape;
  const WinogradPlan& plan = call.plan;
  const std::int64_t all = shape.batch * winograd::tile_rows(shape) * winograd::tile_columns(shape);
  const std::int64_t numbers = kPhases * plan.block_channels;
  const std::int64_t most_panels = ceil_div(plan.panels, plan.groups);
  const std::int64_t input_plane = winograd::padded_plane(plan.tiles * numbers);
  const std::int64_t panel_size = plan.tiles * kWinogradPanel;
  const std::int64_t map_plane = winograd::padded_plane(most_panels * panel_size);
  const std::int64_t sums_panel = numbers * kWinogradPanel;
  const std::int64_t sums_plane = winograd::padded_plane(most_panels * sums_panel);
  const std::int64_t most_channels = winograd::at_least(shape.channels, shape.filters);
  Scratch free(shape, scratch);
  auto* zeros = free.take<T>(most_channels);  // pixels of nothing
  auto* sums = free.take<Wide<T>>(kPoints * sums_plane);
  auto* inputs = free.take<Element<T>>(kPoints * input_plane);
  auto* maps = free.take<Element<T>>(kPoints * map_plane);
  for (std::int64_t c = 0; c < most_channels; ++c) zeros[c] = T{};

  for (std::int64_t piece = begin; piece < end; ++piece) {
    const std::int64_t group = piece % plan.groups;
    const std::int64_t block = piece / plan.groups % plan.blocks;
    const std::int64_t segment = piece / plan.groups / plan.blocks;
    const std::int64_t steps = ceil_div(all, plan.tiles);
    const std::int64_t start = segment * steps / plan.segments * plan.tiles;
    const std::int64_t stop =
        winograd::at_most((segment + 1) * steps / plan.segments * plan.tiles, all);
    const std::int64_t channel = block * plan.block_channels;
    const std::int64_t channels = winograd::at_most(shape.channels - channel, plan.block_channels);
    const std::int64_t first_panel = group * plan.panels / plan.groups;
    const std::int64_t panels = (group + 1) * plan.panels / plan.groups - first_panel;
    const std::int64_t filter = first_panel * kWinogradPanel;
    const std::int64_t filters =
        winograd::at_most(shape.filters - filter, panels * kWinogradPanel);
    for (std::int64_t first = start; first < stop; first += plan.tiles) {
      const std::int64_t count = winograd::at_most(stop - first, plan.tiles);
      const Tile tile = tile_of(shape, first);
      transform_steps<typename W::Input, T, kPhases>(
          shape, tile, count, channels,
          [&](Tile one, int phase) { return inputs_of<W, T>(call, one, phase, channel, zeros); },
          inputs, input_plane, numbers, plan.block_channels, 0);
      transform_steps<Transposed<typename W::Output>, T, 1>(
          shape, tile, count, filters,
          [&](Tile one, int) { return map_of<T>(call, one, filter, zeros); }, maps, map_plane,
          kWinogradPanel, 0, panel_size);
      for (int p = 0; p < kPoints; ++p) {
        for (std::int64_t panel = 0; panel < panels; ++panel) {
          const std::int64_t lanes =
              winograd::at_most(filters - panel * kWinogradPanel, kWinogradPanel);
          multiply({inputs + p * input_plane, numbers, kElements, 1, 0, count,
                    numbers * kElements, maps + p * map_plane + panel * panel_size, kWinogradPanel,
                    lanes / kLanes<Wide<T>>, sums + p * sums_plane + panel * sums_panel,
                    kWinogradPanel, first > start});
        }
      }
    }
    for (std::int64_t panel = 0; panel < panels; ++panel) {
      const Wide<T>* from = sums + panel * sums_panel;
      if (plan.segments > 1) {
        finish<W, T>(call, part_of<T>(call, segment), channel, channels, first_panel + panel, from,
                     sums_plane);
      } else {
        const std::int64_t(&strides)[4] = call.result_strides;
        const Place<T> whole{static_cast<T*>(call.result),
                             {strides[0], strides[1], strides[2], strides[3]}};
        finish<W, T>(call, whole, channel, channels, first_panel + panel, from, sums_plane);
      }
    }
  }
}

template <typename W, typename T>
void sum(const WinogradCall& call, std::int64_t begin, std::int64_t end) {
  constexpr int kWidth = kLanes<Wide<T>>, kKernel = W::kStride * W::kTaps;
  const std::int64_t(&strides)[4] = call.result_strides;
  const Place<Wide<T>> first = part_of<T>(call, 0), second = part_of<T>(call, 1);
  const std::int64_t apart = second.weight - first.weight;
  for (std::int64_t filter = begin; filter < end; ++filter) {
    for (int tap = 0; tap < kKernel * kKernel; ++tap) {
      const int i = tap / kKernel, j = tap % kKernel;
      const Wide<T>* from = first.weight + filter * first.strides[0] + i * first.strides[2] +
                            j * first.strides[3];
      T* to = static_cast<T*>(call.result) + filter * strides[0] + i * strides[2] + j * strides[3];
      for (std::int64_t c = 0; c < call.shape.channels; c += kWidth) {
        Vector<Wide<T>> total = load(from + c);
        for (std::int64_t s = 1; s < call.plan.segments; ++s) total += load(from + s * apart + c);
        Finite<Wide<T>> finite;
        finite.see(total);
        if (!finite.all_were()) {
          total = with_exact<Wide<T>>(
              total, [&](int lane) { return defined<W, T>(call, filter, c + lane, i, j); });
        }
        if (strides[1] == 1) {
          store(to + c, total);
        } else {
          for (int lane = 0; lane < kWidth; ++lane) {
            to[(c + lane) * strides[1]] = narrow<T>(total[lane]);
          }
        }
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
