// The image-edge transposed convolution reads its input: from global memory straight into the
// registers of the product, 16 bytes at a time (8 in contiguous memory of 16-bit types).
#pragma once

#include "cuda/conv_transpose2d_bias_leaky_relu_plan.h"

namespace fastgen::cuda {

// The first of the four channels that lane 4 g + t brings into a step: a lane loads 16 bytes at a
// time, which in 16 bits are its four channels of two steps.
template <typename T, bool kChannelsLast>
FASTGEN_HD constexpr int channel_of(int step, int in_group) {
  if (kChannelsLast && sizeof(T) == 2) return step / 2 * 32 + 8 * in_group + step % 2 * 4;
  return step * 16 + 4 * in_group;
}

// Where a lane's pixels of a batch stand in their image: 8 j + g in channels_last, each the start
// of its channels; 4 g + j in contiguous memory, where the four are neighbours in each channel.
struct StripPixels {
  int offsets[4];  // -1: outside
};

// Pixel p of a batch whose first row is `row`, as an offset in its plane; -1 outside of the picture
// and below what the strip needs.
template <typename T>
FASTGEN_HD int offset_of(const StripArguments<T>& a, const Strip& strip, int row, int p) {
  const int y = static_cast<int>(a.plan.by_columns.quotient(p));
  const int x = strip.first_column + p - y * a.plan.columns;
  const bool inside = y < a.plan.batch_rows && row + y >= 0 && row + y < a.height &&
                      row + y < strip.end_group && x < a.width;
  return inside ? (row + y) * a.width + x : -1;
}

template <typename T, bool kChannelsLast>
FASTGEN_HD StripPixels find_pixels(const StripArguments<T>& a, const Strip& strip, int row,
                                   int thread) {
  StripPixels pixels;
  const int warp = thread / 32, group = thread % 32 / 4;
  FASTGEN_UNROLL
  for (int j = 0; j < 4; ++j) {
    const int p = 32 * warp + (kChannelsLast ? 8 * j + group : 4 * group + j);
    const int offset = offset_of(a, strip, row, p);
    pixels.offsets[j] = kChannelsLast && offset > 0 ? offset * a.channels : offset;
  }
  return pixels;
}

// What a lane brings into the products of 32 channels: two steps of four pixels.
template <typename T>
struct StripChunk {
  Quad<T> quads[2][4];
};

template <typename T>
FASTGEN_HD void load_channels_last(const StripArguments<T>& a, const T* image,
                                   const StripPixels& pixels, int chunk, int in_group,
                                   StripChunk<T>& result) {
  FASTGEN_UNROLL
  for (int j = 0; j < 4; ++j) {
    FASTGEN_UNROLL
    for (int s = 0; s < 2; ++s) {
      const int channel = channel_of<T, true>(2 * chunk + s, in_group);
      Quad<T>& quad = result.quads[s][j];
      if (a.wide_input) {
        // One load of 16 bytes: in 16 bits it fills both steps.
        if (sizeof(T) == 2 && s == 1) continue;
        const bool there = pixels.offsets[j] >= 0 && channel < a.channels;
        Pack<std::uint32_t, 4> pack = {};
        if (there) {
          pack = load_pack<std::uint32_t, 4>(
              reinterpret_cast<const std::uint32_t*>(image + pixels.offsets[j] + channel));
        }
        FASTGEN_UNROLL
        for (int w = 0; w < 4; ++w) {
          constexpr int kWords = sizeof(T);
          result.quads[s + w / kWords][j].words[w % kWords] = pack.values[w];
        }
      } else {
        T values[4] = {};
        FASTGEN_UNROLL
        for (int c = 0; c < 4; ++c) {
          if (pixels.offsets[j] >= 0 && channel + c < a.channels) {
            values[c] = image[pixels.offsets[j] + channel + c];
          }
        }
        quad = quad_of(values);
      }
    }
  }
}

template <typename T>
FASTGEN_HD void load_contiguous(const StripArguments<T>& a, const T* image,
                                const StripPixels& pixels, int chunk, int in_group,
                                StripChunk<T>& result) {
  const int plane = a.height * a.width;
  FASTGEN_UNROLL
  for (int s = 0; s < 2; ++s) {
    const int channel = channel_of<T, false>(2 * chunk + s, in_group);
    Pack<T, 4> packs[4] = {};  // [channel][pixel]
    FASTGEN_UNROLL
    for (int c = 0; c < 4; ++c) {
      if (channel + c >= a.channels) continue;
      const T* at = image + (channel + c) * plane;
      if (a.wide_input) {
        if (pixels.offsets[0] >= 0) packs[c] = load_pack<T, 4>(at + pixels.offsets[0]);
      } else {
        FASTGEN_UNROLL
        for (int j = 0; j < 4; ++j) {
          if (pixels.offsets[j] >= 0) packs[c].values[j] = at[pixels.offsets[j]];
        }
      }
    }
    FASTGEN_UNROLL
    for (int j = 0; j < 4; ++j) {
      const T values[4] = {packs[0].values[j], packs[1].values[j], packs[2].values[j],
                           packs[3].values[j]};
      result.quads[s][j] = quad_of(values);
    }
  }
}

template <typename T, bool kChannelsLast>
FASTGEN_HD void load_chunk(const StripArguments<T>& a, const Strip& strip,
                           const StripPixels& pixels, int chunk, int in_group,
                           StripChunk<T>& result) {
  const T* image =
      a.input + strip.image * a.channels * static_cast<std::int64_t>(a.height) * a.width;
  if constexpr (kChannelsLast) {
    load_channels_last(a, image, pixels, chunk, in_group, result);
  } else {
    load_contiguous(a, image, pixels, chunk, in_group, result);
  }
}

}  // namespace fastgen::cuda
