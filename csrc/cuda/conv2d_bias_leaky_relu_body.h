// The image-edge convolution: 1 to 4 channels in, any number out. This is the general kernel; what
// is small enough goes to that of conv2d_bias_leaky_relu_rows_body.h.
//
// Bound. An output element costs C R S multiply-adds and 4 or 2 bytes of memory traffic (8 or 4
// with a mask), the input C / K of that. On a device of 132 multiprocessors at 1.75 GHz and 4.3
// TB/s, an element of float32 has 27 multiply-adds of time before memory waits for arithmetic (128
// per cycle and multiprocessor), one of bfloat16 13. So a kernel of 3 channels and 3x3 taps, 27,
// just balances in exact float32, and everything else goes to the tensor cores.
//
// A warp computes a tile of pixels by channels. Channels are padded to 4: so a pixel of one tap is
// one quad (tensor_core.h), four taps are one product of 16 terms, and the taps need no unrolled
// code, their places in the staged patch stand in a table. What is contiguous in the result (the
// channels of channels_last, the pixels of contiguous memory) are the columns of the product, dealt
// to the lanes such that a lane holds runs of 16 bytes and stores them straight from its registers.
#pragma once

#include "cuda/conv2d_bias_leaky_relu_plan.h"

namespace fastgen::cuda {

// ------------------------------------------------------------------------- who holds which element

// A thread holds kRows rows by 8 columns. Rows are pixels and columns channels in channels_last,
// and the other way round in contiguous memory.
template <typename T, bool kTensorCore, bool kChannelsLast>
struct EdgeTile : EdgeTileShape<kTensorCore, kChannelsLast> {
  using Shape = EdgeTileShape<kTensorCore, kChannelsLast>;
  static constexpr int kRun = kWideExtent<T>;
  static constexpr int kRuns = 8 / kRun;
  // How many pixels a thread reads of each tap.
  static constexpr int kSlots = kTensorCore ? 4 : 8;
  // How many rows are stored at a time; registers hold as much of the mask.
  static constexpr int kStored = kTensorCore ? 4 : kChannelsLast ? 2 : 1;

  int group, in_group;  // lane = 4 group + in_group
  int pixel, channel;   // of the warp, within the block's tile

  FASTGEN_HD EdgeTile(const EdgeConvPlan& plan, int thread)
      : group(thread % 32 / 4),
        in_group(thread % 4),
        pixel((thread / 32 >> plan.log_channel_warps) * Shape::kPixels),
        channel((thread / 32 & ((1 << plan.log_channel_warps) - 1)) * Shape::kChannels) {}

  FASTGEN_HD int row(int q) const {
    // Without tensor cores, the four neighbours of a row of channels come in one load.
    if (!kTensorCore && !kChannelsLast) return q / 4 * 32 + 4 * group + q % 4;
    return 8 * q + group;
  }
  // Lanes of a group are neighbours, each with a run.
  FASTGEN_HD static int column(int v, int in_group) {
    return v / kRun * 4 * kRun + in_group * kRun + v % kRun;
  }
  // The column that a lane brings into product j: there lane 4 g + t brings column g, and is given
  // columns 2 t and 2 t + 1.
  FASTGEN_HD static int brought_column(int j, int group) {
    return column(2 * j + group % 2, group / 2);
  }

  FASTGEN_HD int slot_pixel(int q) const {
    if (kChannelsLast) return pixel + row(q);
    return pixel + (kTensorCore ? brought_column(q, group) : column(q, in_group));
  }
  // Of the tensor cores' weights, quad 8 q + g of a warp's 32 rows is what lane 4 g + t brings.
  FASTGEN_HD static int stored_channel(int index) {
    return kChannelsLast ? brought_column(index / 8, index % 8) : index;
  }
};

// --------------------------------------------------------------------------------------- staging

// What stays for the whole block: weights, bias and the places of the taps.
template <typename T, bool kTensorCore, bool kChannelsLast>
FASTGEN_HD void stage_constants(const EdgeConvArguments<T>& a, int chunk, int thread,
                                const EdgeConvShared<T>& shared) {
  const EdgeConvPlan& plan = a.plan;
  const int first = chunk * plan.chunk_channels;
  const auto weight = [&](int channel, int tap, int c) {
    if (first + channel >= a.filters || tap >= plan.taps || c >= a.channels) return T{};
    return a.weight[(first + channel) * a.weight_strides[0] + c * a.weight_strides[1] +
                    tap / a.kernel_w * a.weight_strides[2] +
                    tap % a.kernel_w * a.weight_strides[3]];
  };
  if constexpr (kTensorCore) {  // [channel][tap], a quad each
    using Tile = EdgeTile<T, kTensorCore, kChannelsLast>;
    for (int i = thread; i < plan.chunk_channels * plan.weight_pitch; i += kEdgeThreads) {
      const int index = i / plan.weight_pitch, tap = i % plan.weight_pitch;
      const int channel = index / 32 * 32 + Tile::stored_channel(index % 32);
      const T values[4] = {weight(channel, tap, 0), weight(channel, tap, 1),
                           weight(channel, tap, 2), weight(channel, tap, 3)};
      store_shared(shared.weights[i].words, round_quad(quad_of(values)).words);
    }
  } else {  // [tap][c][channel], four channels a quad
    const int quads = plan.chunk_channels / 4;
    for (int i = thread; i < plan.taps * a.channels * quads; i += kEdgeThreads) {
      const int channel = i % quads * 4, tap = i / quads / a.channels, c = i / quads % a.channels;
      const T values[4] = {weight(channel, tap, c), weight(channel + 1, tap, c),
                           weight(channel + 2, tap, c), weight(channel + 3, tap, c)};
      store_shared(shared.weights[i].words, quad_of(values).words);
    }
  }
  for (int i = thread; i < 4 * plan.steps; i += kEdgeThreads) {
    // A tap that only fills up a step has weights of 0; so that 0 * infinity spoils no pixel from
    // outside the window, it looks at the window's first.
    shared.taps[i] = i < plan.taps ? i / a.kernel_w * plan.pitch + i % a.kernel_w : 0;
  }
  for (int i = thread; i < plan.chunk_channels; i += kEdgeThreads) {
    const bool there = a.bias != nullptr && first + i < a.filters;
    shared.bias[i] = there ? to_float(a.bias[first + i]) : 0.0f;
  }
}

// Pixel i of the patch that a tile looks at.
template <typename T, bool kTensorCore>
FASTGEN_HD Quad<T> fetch_pixel(const EdgeConvArguments<T>& a, const EdgePlace& place, int i) {
  const int patch_y = static_cast<int>(a.plan.by_patch_width.quotient(i));
  const int patch_x = i - patch_y * static_cast<int>(a.plan.by_patch_width.divisor);
  const int y = place.y * a.stride_h - a.padding_h + patch_y;
  const int x = place.x * a.stride_w - a.padding_w + patch_x;
  T values[4] = {};
  if (y >= 0 && y < a.height && x >= 0 && x < a.width) {
    const T* pixel = a.input + place.image * a.image_stride + y * a.row_stride +
                     x * a.column_stride;
    FASTGEN_UNROLL
    for (int c = 0; c < 4; ++c) {
      if (c < a.channels) values[c] = pixel[c * a.channel_stride];
    }
  }
  const Quad<T> quad = quad_of(values);
  return kTensorCore ? round_quad(quad) : quad;
}

template <typename T>
FASTGEN_HD void put_pixel(const EdgeConvArguments<T>& a, Quad<T>* patch, int i,
                          const Quad<T>& quad) {
  const int y = static_cast<int>(a.plan.by_patch_width.quotient(i));
  const int x = i - y * static_cast<int>(a.plan.by_patch_width.divisor);
  store_shared(patch[y * a.plan.pitch + x].words, quad.words);
}

template <typename T, bool kTensorCore>
FASTGEN_HD void stage_patch(const EdgeConvArguments<T>& a, std::uint32_t tile, int first,
                            Quad<T>* patch) {
  const EdgePlace place = place_of(a.plan, tile);
  for (int i = first; i < a.plan.patch_pixels; i += kEdgeThreads) {
    put_pixel(a, patch, i, fetch_pixel<T, kTensorCore>(a, place, i));
  }
}

// A thread's first pixels of the next patch wait in registers while this tile is computed.
inline constexpr int kHeldPixels = 2;

template <typename T, bool kTensorCore>
FASTGEN_HD void fetch_held(const EdgeConvArguments<T>& a, std::uint32_t tile, int thread,
                           Quad<T> (&held)[kHeldPixels]) {
  const EdgePlace place = place_of(a.plan, tile);
  FASTGEN_UNROLL
  for (int h = 0; h < kHeldPixels; ++h) {
    const int i = thread + h * kEdgeThreads;
    if (i < a.plan.patch_pixels) held[h] = fetch_pixel<T, kTensorCore>(a, place, i);
  }
}

template <typename T, bool kTensorCore>
FASTGEN_HD void stage_held(const EdgeConvArguments<T>& a, std::uint32_t tile, int thread,
                           const Quad<T> (&held)[kHeldPixels], Quad<T>* patch) {
  FASTGEN_UNROLL
  for (int h = 0; h < kHeldPixels; ++h) {
    const int i = thread + h * kEdgeThreads;
    if (i < a.plan.patch_pixels) put_pixel(a, patch, i, held[h]);
  }
  stage_patch<T, kTensorCore>(a, tile, thread + kHeldPixels * kEdgeThreads, patch);
}

// ------------------------------------------------------------------------------------- arithmetic

template <typename T, typename Tile>
FASTGEN_HD void start_sums(const Tile& tile, const EdgeConvShared<T>& shared,
                           float (&sums)[Tile::kRows][8]) {
  FASTGEN_UNROLL
  for (int q = 0; q < Tile::kRows; ++q) {
    FASTGEN_UNROLL
    for (int v = 0; v < 8; ++v) {
      const int channel = Tile::kIsChannelsLast ? Tile::column(v, tile.in_group) : tile.row(q);
      sums[q][v] = shared.bias[tile.channel + channel];
    }
  }
}

// Where the window of each of a thread's pixels begins in the patch.
template <typename T, typename Tile>
FASTGEN_HD void find_windows(const EdgeConvArguments<T>& a, const Tile& tile,
                             int (&windows)[Tile::kSlots]) {
  FASTGEN_UNROLL
  for (int q = 0; q < Tile::kSlots; ++q) {
    const int pixel = tile.slot_pixel(q);
    const int y = pixel >> a.plan.log_tile_width;
    const int x = pixel - (y << a.plan.log_tile_width);
    windows[q] = y * a.stride_h * a.plan.pitch + x * a.stride_w;
  }
}

// The quads that a lane brings into the products of step `step`: taps 4 step ... 4 step + 3.
template <typename T, typename Tile>
FASTGEN_HD void load_step(const EdgeConvArguments<T>& a, const Tile& tile,
                          const EdgeConvShared<T>& shared, const Quad<T>* patch,
                          const int (&windows)[4], int step, Quad<T> (&rows)[4],
                          Quad<T> (&columns)[4]) {
  const int tap = 4 * step + tile.in_group;
  const Quad<T>* pixels = patch + shared.taps[tap];
  const Quad<T>* weights =
      shared.weights + (tile.channel + tile.group) * a.plan.weight_pitch + tap;
  FASTGEN_UNROLL
  for (int q = 0; q < 4; ++q) {
    const Quad<T> pixel = load_quad<T>(pixels + windows[q]);
    const Quad<T> weight = load_quad<T>(weights + 8 * q * a.plan.weight_pitch);
    rows[q] = Tile::kIsChannelsLast ? pixel : weight;
    columns[q] = Tile::kIsChannelsLast ? weight : pixel;
  }
}

struct Pair {
  float first, second;
};

// Values v and v + 1 of a quad in shared memory; v is even.
FASTGEN_HD Pair load_pair(const Quad<float>* quad, int v) {
#if defined(__CUDA_ARCH__)
  const float2 pair = *reinterpret_cast<const float2*>(quad->words + v);
  return {pair.x, pair.y};
#else
  return load_whole<Pair>(quad->words + v);
#endif
}

// One tap by multiply-adds in float32.
template <typename Tile>
FASTGEN_HD void add_tap(const EdgeConvArguments<float>& a, const Tile& tile,
                        const EdgeConvShared<float>& shared, const Quad<float>* patch,
                        const int (&windows)[8], int tap, float (&sums)[8][8]) {
  const Quad<float>* pixels = patch + shared.taps[tap];
  const int quads = a.plan.chunk_channels / 4;
  const Quad<float>* weights =
      shared.weights + tap * a.channels * quads +
      (tile.channel + (Tile::kIsChannelsLast ? 4 * tile.in_group : 4 * tile.group)) / 4;
  FASTGEN_UNROLL
  for (int first = 0; first < 4; first += 2) {
    // Two channels at a time: eight whole quads would take the last registers.
    if (first >= a.channels) break;
    Pair pixel[8];
    FASTGEN_UNROLL
    for (int q = 0; q < 8; ++q) pixel[q] = load_pair(pixels + windows[q], first);
    FASTGEN_UNROLL
    for (int c = first; c < first + 2; ++c) {
      if (c >= a.channels) break;
      // The second four channels are behind those of the other lanes.
      const Quad<float>* of_channel = weights + c * quads;
      const Quad<float> weight[2] = {
          load_quad<float>(of_channel),
          load_quad<float>(of_channel + (Tile::kIsChannelsLast ? 4 : 8))};
      FASTGEN_UNROLL
      for (int q = 0; q < 8; ++q) {
        FASTGEN_UNROLL
        for (int v = 0; v < 8; ++v) {
          const int k = Tile::kIsChannelsLast ? v : q, p = Tile::kIsChannelsLast ? q : v;
          sums[q][v] = fmaf(c == first ? pixel[p].first : pixel[p].second,
                            quad_value(weight[k / 4], k % 4), sums[q][v]);
        }
      }
    }
  }
}

// ---------------------------------------------------------------------------------------- storing

// A run of the result: where it begins within its image, and how many elements of it there are.
struct EdgeRun {
  int offset;
  int count;
};

template <typename T, typename Tile>
FASTGEN_HD EdgeRun run_of(const EdgeConvArguments<T>& a, const Tile& tile, const EdgePlace& place,
                          int chunk, int q, int run) {
  const int row = tile.row(q), column = Tile::column(run * Tile::kRun, tile.in_group);
  const int pixel = tile.pixel + (Tile::kIsChannelsLast ? row : column);
  const int channel = chunk * a.plan.chunk_channels + tile.channel +
                      (Tile::kIsChannelsLast ? column : row);
  const int tile_y = pixel >> a.plan.log_tile_width;
  const int y = place.y + tile_y;
  const int x = place.x + pixel - (tile_y << a.plan.log_tile_width);
  if (y >= a.out_height || x >= a.out_width || channel >= a.filters) return {0, 0};
  const int at = y * a.out_width + x;
  if (Tile::kIsChannelsLast) return {at * a.filters + channel, a.filters - channel};
  return {channel * a.out_height * a.out_width + at, a.out_width - x};
}

// Activation, or the mask, and out: rows first ... first + kStored - 1.
template <typename T, typename Tile>
FASTGEN_HD void store_rows(const EdgeConvArguments<T>& a, const Tile& tile, const EdgePlace& place,
                           int chunk, int first, float (&sums)[Tile::kRows][8]) {
  constexpr int V = Tile::kRun;
  const std::int64_t image =
      place.image * a.out_height * static_cast<std::int64_t>(a.out_width) * a.filters;
  T* result = a.result + image;
  const T* output = a.output + (a.output == nullptr ? 0 : image);
  FASTGEN_UNROLL
  for (int r = 0; r < Tile::kRuns; ++r) {
    EdgeRun runs[Tile::kStored];
    FASTGEN_UNROLL
    for (int q = 0; q < Tile::kStored; ++q) runs[q] = run_of(a, tile, place, chunk, first + q, r);
    if (!a.wide) {
      FASTGEN_UNROLL
      for (int q = 0; q < Tile::kStored; ++q) {
        FASTGEN_UNROLL
        for (int v = 0; v < V; ++v) {
          if (v >= runs[q].count) continue;
          const float sum = sums[first + q][r * V + v];
          const float value =
              a.output == nullptr
                  ? leaky_relu(sum, a.slope)
                  : leaky_relu_mask(sum, to_float(output[runs[q].offset + v]), a.slope);
          result[runs[q].offset + v] = from_float<T>(value);
        }
      }
      continue;
    }
    // All loads of the mask are on their way before the first store.
    Pack<T, V> masks[Tile::kStored];
    if (a.output != nullptr) {
      FASTGEN_UNROLL
      for (int q = 0; q < Tile::kStored; ++q) {
        if (runs[q].count > 0) masks[q] = load_pack<T, V>(output + runs[q].offset);
      }
    }
    FASTGEN_UNROLL
    for (int q = 0; q < Tile::kStored; ++q) {
      if (runs[q].count <= 0) continue;
      float values[V];
      FASTGEN_UNROLL
      for (int v = 0; v < V; ++v) {
        const float sum = sums[first + q][r * V + v];
        values[v] = a.output == nullptr
                        ? leaky_relu(sum, a.slope)
                        : leaky_relu_mask(sum, to_float(masks[q].values[v]), a.slope);
      }
      store_pack<T, V>(result + runs[q].offset, values);
    }
  }
}

}  // namespace fastgen::cuda
