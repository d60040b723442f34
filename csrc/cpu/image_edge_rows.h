// Rows of the picture as the kernels read them: padded, in one piece, in the type of left sides.
#pragma once

#include "cpu/image_edge.h"
#include "cpu/product.h"

FASTGEN_BEGIN

// A band of padded rows. A pixel's channels are neighbours where the picture has them so
// (`interleaved`); else each row holds one channel behind the other. A window of the picture is
// then a few segments of neighbours, equally far apart.
struct BandRows {
  bool interleaved;
  std::int64_t width;           // padded
  std::int64_t pitch;           // elements of a padded row with all its channels
  std::int64_t segments;        // of a window
  std::int64_t segment_step;    // elements between them
  std::int64_t segment_length;  // elements
  std::int64_t pixel_step;      // elements from one window to the next
};

inline BandRows band_rows(const cpu::ImageEdgeShape& shape, bool interleaved) {
  BandRows rows{};
  rows.interleaved = interleaved;
  rows.width = shape.width + 2 * shape.padding_w;
  rows.pitch = rows.width * shape.channels;
  rows.segments = interleaved ? shape.kernel_h : shape.kernel_h * shape.channels;
  rows.segment_step = interleaved ? rows.pitch : rows.width;
  rows.segment_length = interleaved ? shape.kernel_w * shape.channels : shape.kernel_w;
  rows.pixel_step = interleaved ? shape.stride_w * shape.channels : shape.stride_w;
  return rows;
}

// The tap of element `e` of segment `s` of a window.
struct Tap {
  std::int64_t channel, row, column;
};

inline Tap tap_of(const BandRows& rows, std::int64_t channels, std::int64_t s, std::int64_t e) {
  if (rows.interleaved) return {e % channels, s, e / channels};
  return {s % channels, s / channels, e};
}

template <typename To, typename From>
inline To converted(From value) {
  if constexpr (sizeof(To) == sizeof(From)) {
    return value;
  } else {
    return widen<From>(value);
  }
}

template <typename To, typename From>
inline void copy_run(const From* from, std::int64_t step, To* to, std::int64_t to_step,
                     std::int64_t count) {
  if (step == 1 && to_step == 1) {
    FASTGEN_INDEPENDENT
    for (std::int64_t i = 0; i < count; ++i) to[i] = converted<To>(from[i]);
  } else {
    FASTGEN_INDEPENDENT
    for (std::int64_t i = 0; i < count; ++i) to[i * to_step] = converted<To>(from[i * step]);
  }
}

// Number x of one and number x of the other side by side; none of the other is 0.
inline void pair_up(const BFloat16* first, const BFloat16* second, std::int64_t count,
                    BFloat16* to) {
  FASTGEN_INDEPENDENT
  for (std::int64_t x = 0; x < count; ++x) {
    const std::uint32_t word =
        first[x].bits | static_cast<std::uint32_t>(second == nullptr ? 0 : second[x].bits) << 16;
    __builtin_memcpy(to + 2 * x, &word, sizeof(word));
  }
}

// Rows first ... first + count - 1 of the padded picture, whose strides are in elements.
template <typename From, typename To>
void pack_rows(const cpu::ImageEdgeShape& shape, const BandRows& rows, const From* picture,
               const std::int64_t (&strides)[4], std::int64_t first, std::int64_t count, To* to) {
  const std::int64_t channels = shape.channels, pixel = rows.interleaved ? channels : 1;
  const bool whole_pixels = rows.interleaved && strides[1] == 1 && strides[3] == channels;
  for (std::int64_t r = 0; r < count; ++r, to += rows.pitch) {
    const std::int64_t h = first + r - shape.padding_h;
    if (h < 0 || h >= shape.height) {
      for (std::int64_t i = 0; i < rows.pitch; ++i) to[i] = To{};
      continue;
    }
    const From* from = picture + h * strides[2];
    const std::int64_t pieces = whole_pixels ? 1 : channels, copied = whole_pixels ? channels : 1;
    for (std::int64_t c = 0; c < channels; ++c) {
      To* row = to + (rows.interleaved ? c : c * rows.width);
      for (std::int64_t w = 0; w < shape.padding_w; ++w) {
        row[w * pixel] = To{};
        row[(w + shape.padding_w + shape.width) * pixel] = To{};
      }
      if (c >= pieces) continue;
      copy_run(from + c * strides[1], whole_pixels ? 1 : strides[3],
               row + shape.padding_w * pixel, whole_pixels ? 1 : pixel, shape.width * copied);
    }
  }
}

FASTGEN_END
