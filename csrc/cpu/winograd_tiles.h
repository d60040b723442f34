// Tiles of inputs and of the map: where their pixels lie, and how they become sides of the products.
#pragma once

#include "cpu/winograd_method.h"

FASTGEN_BEGIN

struct Tile {
  std::int64_t image, row, column;
};

inline Tile tile_of(const cpu::WinogradShape& shape, std::int64_t index) {
  const std::int64_t columns = winograd::tile_columns(shape), rows = winograd::tile_rows(shape);
  return {index / (columns * rows), index / columns % rows, index % columns};
}

inline Tile next_tile(const cpu::WinogradShape& shape, Tile tile) {
  if (++tile.column == winograd::tile_columns(shape)) {
    tile.column = 0;
    if (++tile.row == winograd::tile_rows(shape)) tile.row = 0, ++tile.image;
  }
  return tile;
}

// The kSide x kSide pixels that a transform reads, from (row, column) on in steps of `stride`, in a
// dense channels_last image; those outside of it are `zeros`.
template <int kSide, typename T>
struct Pixels {
  const T* first;
  std::int64_t down, right;  // elements from one to the next
  bool inside;               // all of them; else `at` says where they are
  const T* at[kSide * kSide];

  template <bool kInside>
  FASTGEN_INLINE Vector<Wide<T>> get(int i, std::int64_t channel) const {
    if constexpr (kInside) {
      return load(first + i / kSide * down + i % kSide * right + channel);
    } else {
      return load(at[i] + channel);
    }
  }
};

template <int kSide, typename T>
FASTGEN_INLINE Pixels<kSide, T> pixels_of(const T* image, std::int64_t height, std::int64_t width,
                                          std::int64_t channels, std::int64_t row,
                                          std::int64_t column, std::int64_t stride,
                                          const T* zeros) {
  Pixels<kSide, T> pixels;
  pixels.first = image + (row * width + column) * channels;
  pixels.down = stride * width * channels, pixels.right = stride * channels;
  const std::int64_t reach = (kSide - 1) * stride;
  pixels.inside = row >= 0 && column >= 0 && row + reach < height && column + reach < width;
  if (pixels.inside) return pixels;
  for (int i = 0; i < kSide; ++i) {
    for (int j = 0; j < kSide; ++j) {
      const std::int64_t h = row + i * stride, w = column + j * stride;
      const bool inside = h >= 0 && h < height && w >= 0 && w < width;
      pixels.at[i * kSide + j] =
          inside ? pixels.first + i * pixels.down + j * pixels.right : zeros;
    }
  }
  return pixels;
}

// The inputs of a tile in one phase, from channel `first` on.
template <typename W, typename T>
FASTGEN_INLINE Pixels<W::kPoints, T> inputs_of(const cpu::WinogradCall& call, Tile tile, int phase,
                                               std::int64_t first, const T* zeros) {
  const cpu::WinogradShape& shape = call.shape;
  constexpr std::int64_t kStep = W::kStride * cpu::kWinogradOutputs;
  return pixels_of<W::kPoints>(
      static_cast<const T*>(call.input) + first +
          tile.image * shape.height * shape.width * shape.channels,
      shape.height, shape.width, shape.channels,
      tile.row * kStep + phase / W::kStride - shape.padding_h,
      tile.column * kStep + phase % W::kStride - shape.padding_w, W::kStride, zeros);
}

// The pixels of the map that a tile is, from filter `first` on.
template <typename T>
FASTGEN_INLINE Pixels<2, T> map_of(const cpu::WinogradCall& call, Tile tile, std::int64_t first,
                                   const T* zeros) {
  const cpu::WinogradShape& shape = call.shape;
  return pixels_of<2>(static_cast<const T*>(call.map) + first +
                          tile.image * shape.map_height * shape.map_width * shape.filters,
                      shape.map_height, shape.map_width, shape.filters, 2 * tile.row,
                      2 * tile.column, 1, zeros);
}

template <typename M, bool kInside, typename T, int kSide>
FASTGEN_INLINE void transform_pixels(const Pixels<kSide, T>& pixels, std::int64_t channel,
                                     Vector<Wide<T>> (&out)[M::kRows * M::kRows]) {
  static_assert(kSide == M::kColumns);
  Vector<Wide<T>> in[kSide * kSide];
  FASTGEN_UNROLLED
  for (int i = 0; i < kSide * kSide; ++i) in[i] = pixels.template get<kInside>(i, channel);
  transform<M>(in, out);
}

template <typename M, bool kInside, typename T, int kSide>
FASTGEN_INLINE void transform_row(const Pixels<kSide, T>& pixels, std::int64_t channels,
                                  typename Format<T>::Element* to, std::int64_t plane) {
  constexpr int kOut = M::kRows * M::kRows;
  for (std::int64_t c = 0; c < channels; c += kLanes<Wide<T>>) {
    Vector<Wide<T>> out[kOut];
    transform_pixels<M, kInside>(pixels, c, out);
    FASTGEN_UNROLLED
    for (int p = 0; p < kOut; ++p) store(to + p * plane + c, out[p]);
  }
}

// Transforms the pixels of `tiles` tiles from `first` on, a row each: point p of channel c of the
// t-th, in phase f, lies at to + p * plane + t * row + f * channels + c. pixels_of(tile, phase) says
// where the pixels are.
template <typename M, typename T, int kPhases, typename PixelsOf>
inline void transform_rows(const cpu::WinogradShape& shape, Tile first, std::int64_t tiles,
                           std::int64_t channels, const PixelsOf& pixels_of,
                           typename Format<T>::Element* to, std::int64_t plane, std::int64_t row) {
  for (std::int64_t t = 0; t < tiles; ++t, first = next_tile(shape, first), to += row) {
    for (int phase = 0; phase < kPhases; ++phase) {
      const auto pixels = pixels_of(first, phase);
      auto* place = to + phase * channels;
      if (pixels.inside) {
        transform_row<M, true>(pixels, channels, place, plane);
      } else {
        transform_row<M, false>(pixels, channels, place, plane);
      }
    }
  }
}

// The same for products that add up over tiles: kElements neighbouring tiles make a step, and c of
// step t lies at to + p * plane + (t * row + f * phase_step + c) * kElements. With `panel_step` > 0
// the columns lie in panels of kWinogradPanel, so many elements apart. Behind the last of an odd
// number of tiles is 0.
template <typename M, typename T, int kPhases, typename PixelsOf>
inline void transform_steps(const cpu::WinogradShape& shape, Tile first, std::int64_t tiles,
                            std::int64_t channels, const PixelsOf& pixels_of,
                            typename Format<T>::Element* to, std::int64_t plane, std::int64_t row,
                            std::int64_t phase_step, std::int64_t panel_step) {
  constexpr int kOut = M::kRows * M::kRows, kElements = Format<T>::kElements;
  constexpr std::int64_t kPanel = cpu::kWinogradPanel;
  const auto one = [&](const auto& pixels, std::int64_t c, Vector<Wide<T>> (&out)[kOut])
                       __attribute__((always_inline)) {
    if (pixels.inside) {
      transform_pixels<M, true>(pixels, c, out);
    } else {
      transform_pixels<M, false>(pixels, c, out);
    }
  };
  for (std::int64_t t = 0; t < tiles; t += kElements, to += row * kElements) {
    const Tile tile = first;
    first = next_tile(shape, first);
    const bool paired = kElements == 2 && t + 1 < tiles;
    const Tile neighbour_tile = paired ? first : tile;
    if (paired) first = next_tile(shape, first);
    for (int phase = 0; phase < kPhases; ++phase) {
      const auto pixels = pixels_of(tile, phase);
      const auto neighbour = pixels_of(neighbour_tile, phase);
      for (std::int64_t c = 0; c < channels; c += kLanes<Wide<T>>) {
        const std::int64_t column = phase * phase_step + c;
        auto* place = to + (panel_step > 0 ? column / kPanel * panel_step + column % kPanel * kElements
                                           : column * kElements);
        Vector<Wide<T>> out[kElements][kOut] = {};
        one(pixels, c, out[0]);
        if constexpr (kElements == 2) {
          if (paired) one(neighbour, c, out[1]);
        }
        FASTGEN_UNROLLED
        for (int p = 0; p < kOut; ++p) {
          Vector<Wide<T>> step[kElements];
          for (int e = 0; e < kElements; ++e) step[e] = out[e][p];
          store_step(place + p * plane, step);
        }
      }
    }
  }
}

FASTGEN_END
