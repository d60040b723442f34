// Tiles of inputs and of the map: where their pixels lie, and how they become sides of the products.
#pragma once

#include "cpu/winograd_method.h"

FASTGEN_BEGIN

template <typename N>
inline void clear(N* numbers, std::int64_t count) {
  for (std::int64_t i = 0; i < count; ++i) numbers[i] = {};
}

// Where a tile begins in the map.
struct Corner {
  std::int64_t image, row, column;
};

// Of tile `index` of those of one size, image by image and row by row.
inline Corner corner_of(const winograd::Tiles& tiles, std::int64_t index) {
  return {index / (tiles.columns * tiles.rows),
          tiles.row + index / tiles.columns % tiles.rows * tiles.height,
          tiles.column + index % tiles.columns * tiles.width};
}

inline Corner next_corner(const winograd::Tiles& tiles, Corner corner) {
  corner.column += tiles.width;
  if (corner.column == tiles.column + tiles.columns * tiles.width) {
    corner.column = tiles.column;
    corner.row += tiles.height;
    if (corner.row == tiles.row + tiles.rows * tiles.height) {
      corner.row = tiles.row;
      ++corner.image;
    }
  }
  return corner;
}

// Where the pixels lie that a transform reads, at most kRows x kColumns, from (row, column) on in
// steps of `stride`, in a dense channels_last image; those outside of it are `zeros`.
template <int kRows, int kColumns, typename T>
struct Pixels {
  const T* at[kRows * kColumns];

  // do(n, address of the n-th) for all that transform S reads.
  template <typename S, typename Do>
  FASTGEN_INLINE void every(const Do& run) const {
    constexpr int kDown = S::Rows::kColumns, kRight = S::Columns::kColumns;
    FASTGEN_UNROLLED
    for (int i = 0; i < kDown; ++i) {
      FASTGEN_UNROLLED
      for (int j = 0; j < kRight; ++j) run(i * kRight + j, at[i * kColumns + j]);
    }
  }
  // Asks for them before they are read: the CPU cannot guess them.
  template <typename S>
  FASTGEN_INLINE void ask_for(std::int64_t channel) const {
    every<S>([&](int, const T* pixel) __attribute__((always_inline)) {
      __builtin_prefetch(pixel + channel);
    });
  }
};

template <int kRows, int kColumns, typename T>
FASTGEN_INLINE Pixels<kRows, kColumns, T> pixels_of(const T* image, std::int64_t height,
                                                    std::int64_t width, std::int64_t channels,
                                                    std::int64_t row, std::int64_t column,
                                                    std::int64_t stride, const T* zeros) {
  Pixels<kRows, kColumns, T> pixels;
  const T* first = image + (row * width + column) * channels;
  const std::int64_t down = stride * width * channels, right = stride * channels;
  const bool all_inside = row >= 0 && column >= 0 && row + (kRows - 1) * stride < height &&
                          column + (kColumns - 1) * stride < width;
  for (int i = 0; i < kRows; ++i) {
    for (int j = 0; j < kColumns; ++j) {
      const std::int64_t h = row + i * stride, w = column + j * stride;
      const bool inside = all_inside || (h >= 0 && h < height && w >= 0 && w < width);
      pixels.at[i * kColumns + j] = inside ? first + i * down + j * right : zeros;
    }
  }
  return pixels;
}

// What is transformed: the inputs of a tile in every phase, channels `first_channel` on.
template <typename W, typename T, typename Tile>
struct Inputs {
  static constexpr int kPhases = W::kPhases;
  const cpu::WinogradCall& call;
  std::int64_t first_channel;
  const T* zeros;

  FASTGEN_INLINE auto operator()(Corner corner, int phase) const {
    const cpu::WinogradShape& shape = call.shape;
    return pixels_of<Tile::kRows, Tile::kColumns>(
        static_cast<const T*>(call.input) + first_channel +
            corner.image * shape.height * shape.width * shape.channels,
        shape.height, shape.width, shape.channels,
        corner.row * W::kStride + W::row_of(phase) - shape.padding_h,
        corner.column * W::kStride + W::column_of(phase) - shape.padding_w, W::kStride, zeros);
  }
  // run(transform) for that of a phase.
  template <typename Run>
  void by_transform(int phase, const Run& run) const {
    by_phase<W>(phase, [&](auto taps) {
      run(typename Tile::template Input<decltype(taps)>{});
    });
  }
};

// The pixels of the map that a tile is, filters `first_filter` on.
template <typename T, typename Tile>
struct Map {
  static constexpr int kPhases = 1;
  const cpu::WinogradCall& call;
  std::int64_t first_filter;
  const T* zeros;

  FASTGEN_INLINE auto operator()(Corner corner, int) const {
    const cpu::WinogradShape& shape = call.shape;
    return pixels_of<Tile::kHeight, Tile::kWidth>(
        static_cast<const T*>(call.map) + first_filter +
            corner.image * shape.map_height * shape.map_width * shape.filters,
        shape.map_height, shape.map_width, shape.filters, corner.row, corner.column, 1, zeros);
  }
  template <typename Run>
  void by_transform(int, const Run& run) const {
    run(typename Tile::Map{});
  }
};

template <typename S, int kSide, typename T, typename Which, typename Pixels>
FASTGEN_INLINE void transform_pixels(const Pixels& pixels, std::int64_t channel,
                                     Vector<Wide<T>>* out) {
  Vector<Wide<T>> in[S::Rows::kColumns * S::Columns::kColumns];
  pixels.template every<S>([&](int i, const T* pixel) __attribute__((always_inline)) {
    in[i] = Which::template load_from<T>(pixel + channel);
  });
  transform<S, S::Columns::kColumns, kSide>(in, out);
}

// Walks over tiles of one size, kTogether at a time, and is one step ahead.
template <typename Source, int kTogether>
class Walk {
 public:
  using Pixels = decltype(std::declval<const Source&>()(Corner{}, 0));

  FASTGEN_INLINE Walk(const winograd::Tiles& tiles, Corner first, std::int64_t count,
                      const Source& source)
      : tiles_(tiles), source_(source), next_(first), left_(count) {
    look_ahead();
  }

  // Whether there is a tile; it is number 0 then, and others that it `has` are its neighbours.
  FASTGEN_INLINE bool step() {
    if (ahead_ == 0) return false;
    now_ = ahead_;
    place_ ^= 1;
    look_ahead();
    return true;
  }

  FASTGEN_INLINE bool has(int tile) const { return tile < now_; }
  FASTGEN_INLINE const Pixels& pixels(int tile, int phase) const {
    return pixels_[place_][tile][phase];
  }
  // Of the next step; behind the last, pixels that were there before.
  FASTGEN_INLINE const Pixels& next(int tile, int phase) const {
    return pixels_[tile < ahead_ ? place_ ^ 1 : place_][tile < ahead_ ? tile : 0][phase];
  }

 private:
  FASTGEN_INLINE void look_ahead() {
    for (ahead_ = 0; ahead_ < kTogether && left_ > 0; ++ahead_, --left_) {
      for (int phase = 0; phase < Source::kPhases; ++phase) {
        pixels_[place_ ^ 1][ahead_][phase] = source_(next_, phase);
      }
      next_ = next_corner(tiles_, next_);
    }
  }

  const winograd::Tiles& tiles_;
  const Source& source_;
  Corner next_;
  std::int64_t left_;  // tiles not yet seen
  int ahead_ = 0, now_ = 0, place_ = 1;
  Pixels pixels_[2][kTogether][Source::kPhases];
};

// Transforms the pixels of a tile by S: point p of channel c lies at to + p * plane + c. Asks for the
// `next` ones on the way.
template <typename W, typename T, typename S, typename Pixels>
inline void transform_row(const Pixels& pixels, const Pixels& next, std::int64_t channels,
                          typename Format<T>::Element* to, std::int64_t plane) {
  constexpr std::int64_t kWidth = kLanes<Wide<T>>;
  std::int64_t c = 0;
  if constexpr (Format<T>::kElements == 2) {
    for (; c + 2 * kWidth <= channels; c += 2 * kWidth) {
      Vector<Wide<T>> out[2][W::kPoints];
      next.template ask_for<S>(c);
      transform_pixels<S, W::kSide, T, EverySecond<0>>(pixels, c, out[0]);
      transform_pixels<S, W::kSide, T, EverySecond<1>>(pixels, c, out[1]);
      every_point<S, W::kSide>([&](int p) __attribute__((always_inline)) {
        const Vector<Wide<T>> both[2] = {out[0][p], out[1][p]};
        store_step(to + c + p * plane, both);
      });
    }
  }
  for (; c < channels; c += kWidth) {
    Vector<Wide<T>> out[W::kPoints];
    next.template ask_for<S>(c);
    transform_pixels<S, W::kSide, T, Neighbours>(pixels, c, out);
    every_point<S, W::kSide>(
        [&](int p) __attribute__((always_inline)) { store(to + c + p * plane, out[p]); });
  }
}

// The pixels of `count` tiles of one size from `first` on, a row each: point p of channel c of the
// t-th, in phase f, lies at to + p * plane + t * row + f * channels + c.
template <typename W, typename T, typename Source>
inline void transform_rows(const winograd::Tiles& tiles, Corner first, std::int64_t count,
                           std::int64_t channels, const Source& source,
                           typename Format<T>::Element* to, std::int64_t plane, std::int64_t row) {
  for (Walk<Source, 1> walk(tiles, first, count, source); walk.step(); to += row) {
    for (int phase = 0; phase < Source::kPhases; ++phase) {
      source.by_transform(phase, [&](auto transform) {
        transform_row<W, T, decltype(transform)>(walk.pixels(0, phase), walk.next(0, phase),
                                                 channels, to + phase * channels, plane);
      });
    }
  }
}

// How products that add up over tiles lie in memory: kElements neighbouring tiles make a step, and c
// of step t lies at p * plane + (t * row + f * phase_step + c) * kElements. With `panel_step` > 0 the
// columns lie in panels of kWinogradPanel, so many elements apart.
struct Steps {
  std::int64_t plane, row, phase_step, panel_step;
};

// The tiles of one step in one phase, by S. Behind the last of an odd number of tiles is 0.
template <typename W, typename T, typename S, typename Walk>
inline void transform_step(const Walk& walk, int phase, std::int64_t channels, const Steps& steps,
                           typename Format<T>::Element* to) {
  constexpr int kElements = Format<T>::kElements;
  constexpr std::int64_t kPanel = cpu::kWinogradPanel;
  for (std::int64_t c = 0; c < channels; c += kLanes<Wide<T>>) {
    const std::int64_t column = phase * steps.phase_step + c;
    auto* place = to + (steps.panel_step > 0 ? column / kPanel * steps.panel_step +
                                                   column % kPanel * kElements
                                             : column * kElements);
    Vector<Wide<T>> out[kElements][W::kPoints] = {};
    FASTGEN_UNROLLED
    for (int e = 0; e < kElements; ++e) {
      walk.next(e, phase).template ask_for<S>(c);
      if (walk.has(e)) {
        transform_pixels<S, W::kSide, T, Neighbours>(walk.pixels(e, phase), c, out[e]);
      }
    }
    every_point<S, W::kSide>([&](int p) __attribute__((always_inline)) {
      Vector<Wide<T>> step[kElements];
      for (int e = 0; e < kElements; ++e) step[e] = out[e][p];
      store_step(place + p * steps.plane, step);
    });
  }
}

// The same of `count` tiles of one size from `first` on.
template <typename W, typename T, typename Source>
inline void transform_steps(const winograd::Tiles& tiles, Corner first, std::int64_t count,
                            std::int64_t channels, const Source& source, const Steps& steps,
                            typename Format<T>::Element* to) {
  constexpr int kElements = Format<T>::kElements;
  Walk<Source, kElements> walk(tiles, first, count, source);
  for (; walk.step(); to += steps.row * kElements) {
    for (int phase = 0; phase < Source::kPhases; ++phase) {
      source.by_transform(phase, [&](auto transform) {
        transform_step<W, T, decltype(transform)>(walk, phase, channels, steps, to);
      });
    }
  }
}

FASTGEN_END
