// The transforms between tiles and the points at which Winograd's convolution multiplies.
//
// Two neighbouring outputs of a one-dimensional convolution with r taps are coefficients of a
// product of polynomials; they follow from its values at r + 1 points (Winograd 1980; Lavin and
// Gray, arXiv:1509.09308):
//
//   y = A^T ((G g) * (B^T d)),   y: 2 outputs, g: r taps, d: r + 1 inputs, *: number by number
//
// In two dimensions each transform is applied to rows and columns: (r + 1)^2 products a tile instead
// of 4 r^2. A convolution of stride s with s * r taps is the sum of s phases, each with every s-th
// input and tap; the phases are added up before A^T.
//
// 1, -1 and infinity are the points for r = 2, with 0 for r = 3: among all small ones these have the
// least rounding errors. Relative to PyTorch's own, root mean squares over normal numbers, 128
// channels: 1.1 (r = 2) and 1.0 (r = 3) in float32, 2.4 and 2.5 in bfloat16.
#pragma once

#include "cpu/product.h"
#include "cpu/winograd_plan.h"

#define FASTGEN_INLINE inline __attribute__((always_inline))

FASTGEN_BEGIN

// 4x4, stride 2.
struct Winograd4x4 {
  static constexpr int kStride = 2, kTaps = 2, kPoints = 3;
  struct Input {  // B^T
    static constexpr int kRows = 3, kColumns = 3;
    static constexpr float at(int i, int j) {
      constexpr float m[3][3] = {{1, 1, 0}, {1, -1, 0}, {-1, 0, 1}};
      return m[i][j];
    }
  };
  struct Weight {  // G
    static constexpr int kRows = 3, kColumns = 2;
    static constexpr float at(int i, int j) {
      constexpr float m[3][2] = {{.5f, .5f}, {.5f, -.5f}, {0, 1}};
      return m[i][j];
    }
  };
  struct Output {  // A^T
    static constexpr int kRows = 2, kColumns = 3;
    static constexpr float at(int i, int j) {
      constexpr float m[2][3] = {{1, 1, 0}, {1, -1, 1}};
      return m[i][j];
    }
  };
};

// 3x3, stride 1.
struct Winograd3x3 {
  static constexpr int kStride = 1, kTaps = 3, kPoints = 4;
  struct Input {
    static constexpr int kRows = 4, kColumns = 4;
    static constexpr float at(int i, int j) {
      constexpr float m[4][4] = {{1, 0, -1, 0}, {0, 1, 1, 0}, {0, -1, 1, 0}, {0, -1, 0, 1}};
      return m[i][j];
    }
  };
  struct Weight {
    static constexpr int kRows = 4, kColumns = 3;
    static constexpr float at(int i, int j) {
      constexpr float m[4][3] = {{1, 0, 0}, {.5f, .5f, .5f}, {.5f, -.5f, .5f}, {0, 0, 1}};
      return m[i][j];
    }
  };
  struct Output {
    static constexpr int kRows = 2, kColumns = 4;
    static constexpr float at(int i, int j) {
      constexpr float m[2][4] = {{1, 1, 1, 0}, {0, 1, -1, 1}};
      return m[i][j];
    }
  };
};

template <typename M>
struct Transposed {
  static constexpr int kRows = M::kColumns, kColumns = M::kRows;
  static constexpr float at(int i, int j) { return M::at(j, i); }
};

// Row kRow of M times the column whose numbers lie `step` apart; what is 0 in M is not looked at.
template <typename M, int kRow, int kColumn = 0, bool kStarted = false, typename V>
FASTGEN_INLINE V row_times(const V* column, int step, V sum) {
  if constexpr (kColumn == M::kColumns) {
    return sum;
  } else {
    constexpr float factor = M::at(kRow, kColumn);
    if constexpr (factor == 0) {
      return row_times<M, kRow, kColumn + 1, kStarted>(column, step, sum);
    } else {
      const V number = column[kColumn * step];
      if constexpr (!kStarted) {
        sum = factor == 1 ? number : factor == -1 ? -number : number * factor;
      } else {
        sum = factor == 1 ? sum + number : factor == -1 ? sum - number : sum + number * factor;
      }
      return row_times<M, kRow, kColumn + 1, true>(column, step, sum);
    }
  }
}

template <typename M, typename V, int... kRow>
FASTGEN_INLINE void column_transform(const V* in, int in_step, V* out, int out_step,
                                     std::integer_sequence<int, kRow...>) {
  ((out[kRow * out_step] = row_times<M, kRow>(in, in_step, V{})), ...);
}

// out = M in M^T; both are square, row by row.
template <typename M, typename V>
FASTGEN_INLINE void transform(const V (&in)[M::kColumns * M::kColumns],
                              V (&out)[M::kRows * M::kRows]) {
  constexpr std::make_integer_sequence<int, M::kRows> kEvery{};
  V half[M::kRows * M::kColumns];
  FASTGEN_UNROLLED
  for (int j = 0; j < M::kColumns; ++j) {
    column_transform<M>(in + j, M::kColumns, half + j, M::kColumns, kEvery);
  }
  FASTGEN_UNROLLED
  for (int i = 0; i < M::kRows; ++i) {
    column_transform<M>(half + i * M::kColumns, 1, out + i * M::kRows, 1, kEvery);
  }
}

// run(method, number) for the method of a call and the type of its numbers; both are only types.
template <typename Run>
inline void by_method(const cpu::WinogradShape& shape, const Run& run) {
  const auto by_type = [&](auto method) {
    switch (shape.dtype) {
      case Dtype::float32: return run(method, float{});
      case Dtype::float64: return run(method, double{});
      default: return run(method, BFloat16{});
    }
  };
  return shape.stride == 2 ? by_type(Winograd4x4{}) : by_type(Winograd3x3{});
}

// Scratch memory, from its beginning on.
class Scratch {
 public:
  Scratch(const cpu::WinogradShape& shape, void* memory)
      : shape_(shape), free_(static_cast<char*>(memory)) {}

  // Room for as many numbers, of a type no wider than that of sums.
  template <typename Number>
  Number* take(std::int64_t count) {
    void* taken = free_;
    free_ += winograd::bytes(shape_, count);
    return static_cast<Number*>(taken);
  }

 private:
  const cpu::WinogradShape& shape_;
  char* free_;
};

// --------------------------------------------------------------------------------- tiles and places

struct Tile {
  std::int64_t image, row, column;
};

constexpr int kAhead = 2;  // tiles between asking for memory and using it

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

// Asks for the inputs of a tile that neither the one before nor the one above has, as many channels.
// Only so are they there in time: what is between rows of an image is no pattern that the CPU
// foresees.
template <typename W, typename T>
FASTGEN_INLINE void expect_inputs(const cpu::WinogradCall& call, Tile tile, std::int64_t first,
                                  std::int64_t channels) {
  const cpu::WinogradShape& shape = call.shape;
  constexpr std::int64_t kStep = W::kStride * cpu::kWinogradOutputs;
  constexpr std::int64_t kLine = 64 / static_cast<int>(sizeof(T));
  const std::int64_t row = (tile.row + 1) * kStep + W::kTaps * W::kStride - kStep - shape.padding_h;
  const std::int64_t column =
      (tile.column + 1) * kStep + W::kTaps * W::kStride - kStep - shape.padding_w;
  const T* image = static_cast<const T*>(call.input) + first +
                   tile.image * shape.height * shape.width * shape.channels;
  for (std::int64_t h = row < 0 ? 0 : row; h < row + kStep && h < shape.height; ++h) {
    for (std::int64_t w = column < 0 ? 0 : column; w < column + kStep && w < shape.width; ++w) {
      const T* pixel = image + (h * shape.width + w) * shape.channels;
      for (std::int64_t c = 0; c < channels; c += kLine) __builtin_prefetch(pixel + c);
    }
  }
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

// ------------------------------------------------------------------------- operands of the products

// Numbers of the kElements rows of a right side, or columns of a left one, that one step of a
// product takes: each vector is those of one row.
inline void store_step(float* to, const Vector<float> (&rows)[1]) { store(to, rows[0]); }
inline void store_step(double* to, const Vector<double> (&rows)[1]) { store(to, rows[0]); }
#if defined(__AVX512BF16__)
inline void store_step(BFloat16* to, const Vector<float> (&rows)[2]) {
  const __m512i first = _mm512_cvtepu16_epi32(reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(rows[0])));
  const __m512i second =
      _mm512_cvtepu16_epi32(reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(rows[1])));
  _mm512_storeu_si512(to, _mm512_or_si512(first, _mm512_slli_epi32(second, 16)));
}
#endif

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
template <typename M, typename T, int kPhases, typename PixelsOf, typename Expect>
inline void transform_rows(const cpu::WinogradShape& shape, Tile first, std::int64_t tiles,
                           std::int64_t channels, const PixelsOf& pixels_of,
                           const Expect& expect, typename Format<T>::Element* to,
                           std::int64_t plane, std::int64_t row) {
  Tile ahead = first;
  for (int i = 0; i < kAhead; ++i) ahead = next_tile(shape, ahead);
  for (std::int64_t t = 0; t < tiles; ++t, first = next_tile(shape, first), to += row) {
    if (t + kAhead < tiles) expect(ahead), ahead = next_tile(shape, ahead);
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
template <typename M, typename T, int kPhases, typename PixelsOf, typename Expect>
inline void transform_steps(const cpu::WinogradShape& shape, Tile first, std::int64_t tiles,
                            std::int64_t channels, const PixelsOf& pixels_of,
                            const Expect& expect, typename Format<T>::Element* to,
                            std::int64_t plane, std::int64_t row, std::int64_t phase_step,
                            std::int64_t panel_step) {
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
  Tile ahead = first;
  for (int i = 0; i < kAhead; ++i) ahead = next_tile(shape, ahead);
  for (std::int64_t t = 0; t < tiles; t += kElements, to += row * kElements) {
    for (int e = 0; e < kElements; ++e) {
      if (t + e + kAhead < tiles) expect(ahead), ahead = next_tile(shape, ahead);
    }
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

// ------------------------------------------------------------------------------ the weight and back

// The taps of phases first ... first + count - 1, of kLanes lanes by as many steps along the depth,
// between the weight's memory and taps[step][phase][tap], a vector of lanes each.
template <typename W>
inline std::int64_t tap_offset(const std::int64_t (&strides)[4], int phase, int tap) {
  return (phase / W::kStride + tap / W::kTaps * W::kStride) * strides[2] +
         (phase % W::kStride + tap % W::kTaps * W::kStride) * strides[3];
}

template <typename W, typename T>
inline void load_taps(const T* weight, const std::int64_t (&strides)[4], std::int64_t lane_step,
                      std::int64_t depth_step, int first, int count, Vector<Wide<T>>* taps) {
  constexpr int kWidth = kLanes<Wide<T>>, kTaps = W::kTaps * W::kTaps;
  for (int phase = 0; phase < count; ++phase) {
    for (int tap = 0; tap < kTaps; ++tap) {
      const T* from = weight + tap_offset<W>(strides, first + phase, tap);
      Vector<Wide<T>>* to = taps + phase * kTaps + tap;
      Vector<Wide<T>> rows[kWidth];
      if (lane_step == 1) {
        for (int d = 0; d < kWidth; ++d) {
          rows[d] = load(from + d * depth_step);
          __builtin_prefetch(from + (d + kWidth) * depth_step);
        }
      } else if (depth_step == 1) {
        for (int l = 0; l < kWidth; ++l) {
          rows[l] = load(from + l * lane_step);
          __builtin_prefetch(from + l * lane_step + kWidth);
        }
        transpose<Wide<T>>(rows);
      } else {
        for (int d = 0; d < kWidth; ++d) {
          Wide<T> lanes[kWidth];
          for (int l = 0; l < kWidth; ++l) {
            lanes[l] = widen<T>(from[l * lane_step + d * depth_step]);
          }
          rows[d] = load(lanes);
        }
      }
      for (int d = 0; d < kWidth; ++d) to[d * count * kTaps] = rows[d];
    }
  }
}

// The same back, of every phase, into a weight of T or of the type of sums.
template <typename W, typename T>
inline void store_taps(const Vector<Wide<T>>* taps, const std::int64_t (&strides)[4], T* weight) {
  constexpr int kWidth = kLanes<Wide<T>>, kTaps = W::kTaps * W::kTaps;
  constexpr int kPhases = W::kStride * W::kStride;
  const std::int64_t lane_step = strides[0], depth_step = strides[1];
  for (int phase = 0; phase < kPhases; ++phase) {
    for (int tap = 0; tap < kTaps; ++tap) {
      T* to = weight + tap_offset<W>(strides, phase, tap);
      Vector<Wide<T>> rows[kWidth];
      for (int d = 0; d < kWidth; ++d) rows[d] = taps[(d * kPhases + phase) * kTaps + tap];
      if (depth_step == 1) {
        transpose<Wide<T>>(rows);
        for (int l = 0; l < kWidth; ++l) store(to + l * lane_step, rows[l]);
      } else {
        for (int d = 0; d < kWidth; ++d) {
          for (int l = 0; l < kWidth; ++l) {
            to[l * lane_step + d * depth_step] = narrow<T>(rows[d][l]);
          }
        }
      }
    }
  }
}

// A panel of the transformed weight as the right side of the products: columns are kWinogradPanel
// filters (kFilters) or input channels from `first_lane` on, `lanes` of them, rows the other side's
// channels, for filters those of every phase. A point begins padded_plane(rows * kWinogradPanel)
// behind the other.
template <typename W, typename T, bool kFilters>
inline void transform_weight(const cpu::WinogradCall& call, std::int64_t first_lane,
                             std::int64_t lanes, int phase, typename Format<T>::Element* to) {
  using F = Format<T>;
  constexpr int kWidth = kLanes<Wide<T>>, kTaps = W::kTaps * W::kTaps;
  constexpr int kPoints = W::kPoints * W::kPoints, kElements = F::kElements;
  constexpr int kPhases = kFilters ? W::kStride * W::kStride : 1;
  constexpr std::int64_t kPanel = cpu::kWinogradPanel;
  const std::int64_t depth = kFilters ? call.shape.channels : call.shape.filters;
  const std::int64_t lane_step = call.weight_strides[kFilters ? 0 : 1];
  const std::int64_t depth_step = call.weight_strides[kFilters ? 1 : 0];
  const std::int64_t plane = winograd::padded_plane(kPhases * depth * kPanel);
  for (std::int64_t l = 0; l < lanes; l += kWidth) {
    for (std::int64_t d = 0; d < depth; d += kWidth) {
      Vector<Wide<T>> taps[kWidth * kPhases * kTaps];
      load_taps<W>(static_cast<const T*>(call.weight) + (first_lane + l) * lane_step +
                       d * depth_step,
                   call.weight_strides, lane_step, depth_step, kFilters ? 0 : phase, kPhases, taps);
      for (int step = 0; step < kWidth; step += kElements) {
        for (int f = 0; f < kPhases; ++f) {
          Vector<Wide<T>> out[kPoints][kElements];
          FASTGEN_UNROLLED
          for (int e = 0; e < kElements; ++e) {
            Vector<Wide<T>> in[kTaps], one[kPoints];
            for (int i = 0; i < kTaps; ++i) in[i] = taps[((step + e) * kPhases + f) * kTaps + i];
            transform<typename W::Weight>(in, one);
            FASTGEN_UNROLLED
            for (int p = 0; p < kPoints; ++p) out[p][e] = one[p];
          }
          auto* place = to + (f * depth + d + step) * kPanel + l * kElements;
          for (int p = 0; p < kPoints; ++p) store_step(place + p * plane, out[p]);
        }
      }
    }
  }
}

// ---------------------------------------------------------------------------- what is not finite

// Stays 0 in every lane as long as all numbers are finite.
template <typename T>
struct Finite {
  Vector<T> difference{};

  FASTGEN_INLINE void see(Vector<T> numbers) { difference += numbers - numbers; }
  FASTGEN_INLINE bool all_were() const {
    const auto wrong = difference != difference;
#if defined(__AVX512F__)
    return _mm512_test_epi32_mask(reinterpret_cast<__m512i>(wrong),
                                  reinterpret_cast<__m512i>(wrong)) == 0;
#else
    bool found = false;
    for (int i = 0; i < kLanes<T>; ++i) found |= wrong[i] != 0;
    return !found;
#endif
  }
};

// The vector with exact(lane) in place of what is not finite.
template <typename T, typename Exact>
inline Vector<T> with_exact(Vector<T> numbers, const Exact& exact) {
  T lanes[kLanes<T>];
  store(lanes, numbers);
  for (int i = 0; i < kLanes<T>; ++i) {
    if (lanes[i] - lanes[i] != 0) lanes[i] = exact(i);
  }
  return load(lanes);
}

FASTGEN_END
