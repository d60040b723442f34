// The image-edge transposed convolution: many channels in, 1 to 4 out. The common kernels have a
// faster one, in conv_transpose2d_bias_leaky_relu_march_body.h.
//
// Bound. The wide input is nearly all of the traffic; each of its elements takes part in R S C
// multiply-adds: 27 for 3 channels and 3x3 taps, 48 for 4x4. On a device of 132 multiprocessors at
// 1.75 GHz and 4.3 TB/s, a bfloat16 has time for 14 multiply-adds outside the tensor cores and a
// float32 for 28. So exact float32 is bound by arithmetic (at 4x4, 58 % of the bandwidth at best),
// everything else by memory, given tensor cores.
//
// As a product of matrices the input is used once: P = weight^T x has, for each input pixel, one
// row for each (tap, output channel), 27 or 48 of them, and an output pixel is the sum of the few
// entries of P that fall on it. A block marches down a strip of the picture. Per batch of rows it
// computes P from operands that go from global memory straight into the registers of the product,
// puts it into a ring of rows in shared memory, adds up the output rows that are complete, and
// stores them. So no input element is read twice, but for kept_rows at the top of a strip and the
// borders between blocks side by side.
#pragma once

#include "cuda/conv_transpose2d_bias_leaky_relu_input.h"

namespace fastgen::cuda {

// ----------------------------------------------------------------------------------------- weights

// The tap and output channel of a product stand in one number.
template <typename T>
FASTGEN_HD T weight_of(const StripArguments<T>& a, int channel, int product) {
  if (channel >= a.channels || product >= a.plan.products) return T{};
  const int tap = product / a.plan.group, out = a.first_channel + product % a.plan.group;
  return a.weight[channel * a.weight_strides[0] + out * a.weight_strides[1] +
                  tap / a.kernel_w * a.weight_strides[2] + tap % a.kernel_w * a.weight_strides[3]];
}

template <typename T, bool kTensorCore, bool kChannelsLast, int kTiles>
FASTGEN_HD void stage_weights(const StripArguments<T>& a, int thread,
                              const StripShared<T>& shared) {
  const StripPlan& plan = a.plan;
  if constexpr (kTensorCore) {
    for (int i = thread; i < plan.steps * plan.tiles * 32; i += kStripThreads) {
      const int lane = i % 32, tile = i / 32 % plan.tiles, step = i / 32 / plan.tiles;
      const int channel = channel_of<T, kChannelsLast>(step, lane % 4);
      Quad<T> quads[2];
      FASTGEN_UNROLL
      for (int h = 0; h < 2; ++h) {
        const int product = 16 * tile + 8 * h + lane / 4;
        const T values[4] = {weight_of(a, channel, product), weight_of(a, channel + 1, product),
                             weight_of(a, channel + 2, product),
                             weight_of(a, channel + 3, product)};
        quads[h] = round_quad(quad_of(values));
      }
      FASTGEN_UNROLL
      for (int part = 0; part < kParts<T>; ++part) {
        Rows& to = shared.weights[((step * plan.tiles + tile) * kParts<T> + part) * 32 + lane];
        store_shared(to.words, rows_of(quads[0], quads[1], part).words);
      }
    }
  } else {
    float* weights = reinterpret_cast<float*>(shared.weights);
    for (int i = thread; i < plan.steps * 16 * 16 * kTiles; i += kStripThreads) {
      weights[i] = weight_of(a, i / (16 * kTiles), i % (16 * kTiles));
    }
  }
}

// ---------------------------------------------------------------------------------------- products

// Without tensor cores, a lane 4 g + t computes products 4 kTiles t ... 4 kTiles (t + 1) - 1 of the
// four pixels of its g. fetch(s, j, t, c) is channel c of pixel j at step s as lane 4 g + t has it.
template <bool kChannelsLast, int kTiles, typename Fetch>
FASTGEN_HD void add_chunk(const StripShared<float>& shared, int chunk, int in_group,
                          const Fetch& fetch, float (&sums)[4 * kTiles][4]) {
  const float* weights = reinterpret_cast<const float*>(shared.weights) + 4 * kTiles * in_group;
  FASTGEN_UNROLL
  for (int s = 0; s < 2; ++s) {
    FASTGEN_UNROLL_BY(1)
    for (int t = 0; t < 4; ++t) {
      const int channel = channel_of<float, kChannelsLast>(2 * chunk + s, t);
      FASTGEN_UNROLL
      for (int c = 0; c < 4; ++c) {
        float values[4];
        FASTGEN_UNROLL
        for (int j = 0; j < 4; ++j) values[j] = fetch(s, j, t, c);
        FASTGEN_UNROLL
        for (int i = 0; i < kTiles; ++i) {
          const Quad<float> weight =
              load_quad<float>(weights + (channel + c) * 16 * kTiles + 4 * i);
          FASTGEN_UNROLL
          for (int v = 0; v < 4; ++v) {
            FASTGEN_UNROLL
            for (int j = 0; j < 4; ++j) {
              sums[4 * i + v][j] = fmaf(quad_value(weight, v), values[j], sums[4 * i + v][j]);
            }
          }
        }
      }
    }
  }
}

// The place of pixel p of a batch in the ring, whose row `slot` the batch begins at; -1: nowhere.
FASTGEN_HD int position_of(const StripPlan& plan, int slot, int p) {
  const int y = static_cast<int>(plan.by_columns.quotient(p));
  if (y >= plan.batch_rows) return -1;
  const int row = slot + y < plan.ring_rows ? slot + y : slot + y - plan.ring_rows;
  return row * plan.columns + p - y * plan.columns;
}

// Into the ring. Of the tensor cores' results, sums[4 i + j] are products 16 i + g (first two) and
// 16 i + 8 + g (last two) of pixels 8 j + 2 t and 8 j + 2 t + 1 in channels_last, and of pixels
// 8 t + j and 8 t + 4 + j in contiguous memory, where the four j are neighbours. With a pitch of 8,
// or 4, floats beyond whole lines of banks, the lanes of one store are on different banks.
template <bool kTensorCore, bool kChannelsLast, int kTiles>
FASTGEN_HD void store_products(const StripPlan& plan, int slot, int thread,
                               const float (&sums)[4 * kTiles][4], float* products) {
  const int group = thread % 32 / 4, in_group = thread % 4, first = thread / 32 * 32;
  if constexpr (kTensorCore && kChannelsLast) {
    FASTGEN_UNROLL
    for (int j = 0; j < 4; ++j) {
      const int position = position_of(plan, slot, first + 8 * j + 2 * in_group);
      if (position < 0) continue;
      FASTGEN_UNROLL
      for (int h = 0; h < 2 * kTiles; ++h) {
        if (8 * h + group >= plan.products) continue;
        const float (&sum)[4] = sums[h / 2 * 4 + j];
        const float pair[2] = {sum[h % 2 * 2], sum[h % 2 * 2 + 1]};
        store_shared(products + (8 * h + group) * plan.pitch + position, pair);
      }
    }
  } else if constexpr (kTensorCore) {
    FASTGEN_UNROLL
    for (int e = 0; e < 2; ++e) {
      const int position = position_of(plan, slot, first + 8 * in_group + 4 * e);
      if (position < 0) continue;
      FASTGEN_UNROLL
      for (int h = 0; h < 2 * kTiles; ++h) {
        if (8 * h + group >= plan.products) continue;
        float values[4];
        FASTGEN_UNROLL
        for (int j = 0; j < 4; ++j) values[j] = sums[h / 2 * 4 + j][h % 2 * 2 + e];
        store_shared(products + (8 * h + group) * plan.pitch + position, values);
      }
    }
  } else {
    int positions[4];
    FASTGEN_UNROLL
    for (int j = 0; j < 4; ++j) {
      positions[j] =
          position_of(plan, slot, first + (kChannelsLast ? 8 * j + group : 4 * group + j));
    }
    FASTGEN_UNROLL
    for (int i = 0; i < 4 * kTiles; ++i) {
      const int product = 4 * kTiles * in_group + i;
      if (product >= plan.products) continue;
      float* at = products + product * plan.pitch;
      if constexpr (kChannelsLast) {
        FASTGEN_UNROLL
        for (int j = 0; j < 4; ++j) {
          if (positions[j] >= 0) at[positions[j]] = sums[i][j];
        }
      } else {
        if (positions[0] >= 0) store_shared(at + positions[0], sums[i]);
      }
    }
  }
}

// ------------------------------------------------------------------------------------------ result

// Row groups that a batch completes.
struct Complete {
  int first, end;
};

FASTGEN_HD Complete complete_groups(const StripPlan& plan, const Strip& strip, int row) {
  const int end = row + plan.batch_rows;
  return {row > strip.first_group ? row : strip.first_group,
          end < strip.end_group ? end : strip.end_group};
}

// Adds up the output pixels of the row groups that the batch at `row` completes.
template <typename T>
FASTGEN_HD void add_products(const StripArguments<T>& a, const Strip& strip, int row, int slot,
                             int thread, const StripShared<T>& shared) {
  const StripPlan& plan = a.plan;
  const Complete groups = complete_groups(plan, strip, row);
  const int count =
      (groups.end - groups.first) * a.stride_h * a.stride_w * plan.column_groups;
  const int first_v = (strip.first_out + a.padding_w) / a.stride_w;
  for (int i = thread; i < count; i += kStripThreads) {
    // Lanes side by side take neighbouring column groups of one phase: neighbours in the ring.
    const int phases = static_cast<int>(plan.by_column_groups.quotient(i));
    const int v = first_v + i - phases * plan.column_groups;
    const int rows = static_cast<int>(plan.by_stride_w.quotient(phases));
    const int sigma = phases - rows * a.stride_w;
    const int from_first = static_cast<int>(plan.by_stride_h.quotient(rows));
    const int rho = rows - from_first * a.stride_h;
    const int u = groups.first + from_first;
    const int y = u * a.stride_h - a.padding_h + rho, x = v * a.stride_w - a.padding_w + sigma;
    if (y < 0 || y >= a.out_height || x < strip.first_out || x >= strip.end_out) continue;

    float sums[4] = {};
    int back = slot + u - row;  // the ring's row of input row u, then of those before it
    if (back >= plan.ring_rows) back -= plan.ring_rows;
    for (int r = rho; r < a.kernel_h; r += a.stride_h) {
      int column = v;
      for (int s = sigma; s < a.kernel_w; s += a.stride_w, --column) {
        if (column < 0 || column >= a.width) continue;
        const float* at = shared.products + (r * a.kernel_w + s) * plan.group * plan.pitch +
                          back * plan.columns + column - strip.first_column;
        FASTGEN_UNROLL
        for (int c = 0; c < 4; ++c) {
          if (c < plan.group) sums[c] += at[c * plan.pitch];
        }
      }
      back = back > 0 ? back - 1 : plan.ring_rows - 1;
    }

    T* result = shared.result + rows * plan.span * plan.group;
    FASTGEN_UNROLL
    for (int c = 0; c < 4; ++c) {
      if (c >= plan.group) break;
      const float sum =
          sums[c] + (a.bias == nullptr ? 0.0f : to_float(a.bias[a.first_channel + c]));
      const T value = from_float<T>(a.tanh ? hyperbolic_tangent(sum) : leaky_relu(sum, a.slope));
      result[a.channels_last ? (x - strip.first_out) * plan.group + c
                             : c * plan.span + x - strip.first_out] = value;
    }
  }
}

// The completed rows from shared to global memory.
template <typename T>
FASTGEN_HD void store_result(const StripArguments<T>& a, const Strip& strip, int row, int thread,
                             const StripShared<T>& shared) {
  const StripPlan& plan = a.plan;
  const Complete groups = complete_groups(plan, strip, row);
  const int rows = (groups.end - groups.first) * a.stride_h;
  const int first_y = groups.first * a.stride_h - a.padding_h;
  const int columns = strip.end_out - strip.first_out;
  T* image = a.result +
             strip.image * a.out_channels * static_cast<std::int64_t>(a.out_height) * a.out_width;
  if (a.wide_result) {
    constexpr int V = kWideExtent<T>;
    // A segment is contiguous in memory: a row, or a row of one channel.
    const int segments = a.channels_last ? 1 : plan.group;
    const int packs = (a.channels_last ? columns * plan.group : columns) / V;
    for (int i = thread; i < rows * segments * packs; i += kStripThreads) {
      const int segment = i / packs, pack = i - segment * packs;
      const int from = segment / segments, c = segment - from * segments, y = first_y + from;
      if (y < 0 || y >= a.out_height) continue;
      const int at =
          a.channels_last
              ? (y * a.out_width + strip.first_out) * a.out_channels
              : ((a.first_channel + c) * a.out_height + y) * a.out_width + strip.first_out;
      const T* staged = shared.result + (from * plan.group + c) * plan.span + pack * V;
      store_pack<T, V>(image + at + pack * V, load_pack<T, V>(staged));
    }
    return;
  }
  for (int i = thread; i < rows * columns * plan.group; i += kStripThreads) {
    // In the order of the result's memory.
    const int line = i / columns, x = i - line * columns;
    int from, c, column;
    if (a.channels_last) {
      from = i / (columns * plan.group);
      column = (i - from * columns * plan.group) / plan.group;
      c = i % plan.group;
    } else {
      from = line / plan.group, c = line % plan.group, column = x;
    }
    const int y = first_y + from;
    if (y < 0 || y >= a.out_height) continue;
    const int out = a.first_channel + c, out_x = strip.first_out + column;
    const int at = a.channels_last ? (y * a.out_width + out_x) * a.out_channels + out
                                   : (out * a.out_height + y) * a.out_width + out_x;
    image[at] = shared.result[from * plan.span * plan.group +
                              (a.channels_last ? column * plan.group + c : c * plan.span + column)];
  }
}

}  // namespace fastgen::cuda
