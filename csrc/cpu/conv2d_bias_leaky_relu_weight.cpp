// The kernel behind conv2d_bias_leaky_relu_weight.h: products of the map, a row per filter, and the
// windows of the picture, a row per pixel, over blocks of pixels.

#include "cpu/conv2d_bias_leaky_relu_weight.h"

#include "cpu/image_edge_rows.h"

namespace fastgen::cpu::FASTGEN_CPU {
namespace {

inline std::int64_t padded(std::int64_t count) {
  return ceil_div(count, kMostLanes) * kMostLanes;
}

inline std::int64_t taps(const ImageEdgeShape& shape) {
  return shape.channels * shape.kernel_h * shape.kernel_w;
}

bool interleaved(const ImageEdgeWeightCall& call) {
  return call.shape.channels == 1 || call.picture_strides[1] == 1;
}

template <typename T>
using Element = typename Format<T>::Element;

// A pixel of a band of the map.
struct Place {
  std::int64_t row, column;
};

// Its window, one tap behind the other; returns the place of the next. Whole vectors are copied:
// what is too much is overwritten by the next segment, or lies behind the taps.
template <typename E>
Place copy_window(const ImageEdgeShape& shape, const BandRows& rows, const E* band, Place place,
                  E* to) {
  const E* window = band + place.row * shape.stride_h * rows.pitch + place.column * rows.pixel_step;
  for (std::int64_t s = 0; s < rows.segments; ++s) {
    const E* from = window + s * rows.segment_step;
    E* at = to + s * rows.segment_length;
    if (rows.segment_length <= 4) {
      __builtin_memcpy(at, from, 4 * sizeof(E));
    } else {
      for (std::int64_t e = 0; e < rows.segment_length; e += kMostLanes) {
        __builtin_memcpy(at + e, from + e, kMostLanes * sizeof(E));
      }
    }
  }
  return place.column + 1 < shape.map_width ? Place{place.row, place.column + 1}
                                            : Place{place.row + 1, 0};
}

// Number x of one and number x of the other side by side.
inline void pair_up(const BFloat16* first, const BFloat16* second, std::int64_t count,
                    BFloat16* to) {
  FASTGEN_INDEPENDENT
  for (std::int64_t x = 0; x < count; ++x) {
    const std::uint32_t word =
        first[x].bits | static_cast<std::uint32_t>(second == nullptr ? 0 : second[x].bits) << 16;
    __builtin_memcpy(to + 2 * x, &word, sizeof(word));
  }
}

// The windows of `count` pixels from `place` on as the right side of the product.
template <typename F>
void pack_windows(const ImageEdgeShape& shape, const BandRows& rows,
                  const typename F::Element* band, Place place, std::int64_t count,
                  std::int64_t columns, typename F::Element* space, typename F::Element* to) {
  if constexpr (F::kElements == 1) {
    for (std::int64_t m = 0; m < count; ++m) {
      place = copy_window(shape, rows, band, place, to + m * columns);
    }
  } else {
    for (std::int64_t m = 0; m < count; m += 2) {
      place = copy_window(shape, rows, band, place, space);
      const bool alone = m + 1 == count;
      if (!alone) place = copy_window(shape, rows, band, place, space + columns + kMostLanes);
      pair_up(space, alone ? nullptr : space + columns + kMostLanes, columns, to + m * columns);
    }
  }
}

// A block of the map as the left side of the product: pixels from `first` on.
template <typename T>
void set_left(const ImageEdgeWeightCall& call, std::int64_t n, std::int64_t first,
              Element<T>* space, Product<Format<T>>* product) {
  constexpr int kElements = Format<T>::kElements;
  const std::int64_t filters = call.shape.filters, count = product->length;
  const std::int64_t plane = call.shape.map_height * call.shape.map_width;
  const T* map = static_cast<const T*>(call.map);
  map += call.map_channels_last ? (n * plane + first) * filters : n * filters * plane + first;
  if (call.map_channels_last) {
    product->row_step = kElements, product->step = kElements * filters;
    if constexpr (kElements == 2) {
      for (std::int64_t m = 0; m < count; m += 2) {
        const T* pixel = map + m * filters;
        pair_up(pixel, m + 1 == count ? nullptr : pixel + filters, filters, space + m * filters);
      }
      product->a = space;
      product->length = ceil_div(count, 2) * 2;
    } else if constexpr (sizeof(T) == sizeof(Element<T>)) {
      product->a = map;
    } else {
      copy_run(map, 1, space, 1, count * filters);
      product->a = space;
    }
  } else if constexpr (sizeof(T) == sizeof(Element<T>)) {
    product->row_step = plane, product->step = kElements;
    product->a = map;
  } else {
    for (std::int64_t k = 0; k < filters; ++k) {
      copy_run(map + k * plane, 1, space + k * count, 1, count);
    }
    product->row_step = count, product->step = 1;
    product->a = space;
  }
}

template <typename T>
void run(const ImageEdgeWeightCall& call, std::int64_t begin, std::int64_t end, void* scratch) {
  using F = Format<T>;
  using S = Wide<T>;
  constexpr int kWidth = kLanes<S>;
  const ImageEdgeShape& shape = call.shape;
  const BandRows rows = band_rows(shape, interleaved(call));
  const std::int64_t columns = padded(taps(shape)), block = weight_block(columns);
  // Scratch memory: windows, two of them alone, a block of the map, the padded rows.
  auto* windows = static_cast<Element<T>*>(scratch);
  Element<T>* single = windows + block * columns + kMostLanes;
  Element<T>* space = single + 2 * (columns + kMostLanes);
  Element<T>* band = space + block * padded(shape.filters);

  const std::int64_t bands = shape.batch * call.plan.bands;
  for (std::int64_t piece = begin; piece < end; ++piece) {
    S* sums = static_cast<S*>(call.packed) + piece * shape.filters * columns;
    for (std::int64_t i = 0; i < shape.filters * columns; ++i) sums[i] = 0;
    for (std::int64_t b = bands * piece / call.plan.pieces;
         b < bands * (piece + 1) / call.plan.pieces; ++b) {
      const std::int64_t n = b / call.plan.bands, first = b % call.plan.bands * call.plan.band;
      const std::int64_t left = shape.map_height - first;
      const std::int64_t count = left < call.plan.band ? left : call.plan.band;
      pack_rows(shape, rows, static_cast<const T*>(call.picture) + n * call.picture_strides[0],
                call.picture_strides, first * shape.stride_h,
                (count - 1) * shape.stride_h + shape.kernel_h, band);
      for (std::int64_t m = 0; m < count * shape.map_width; m += block) {
        const std::int64_t behind = count * shape.map_width - m;
        const std::int64_t pixels = behind < block ? behind : block;
        pack_windows<F>(shape, rows, band, {m / shape.map_width, m % shape.map_width}, pixels,
                        columns, single, windows);
        Product<F> product{nullptr, shape.filters, 0, 1, 0, pixels, 0, windows, columns,
                           ceil_div(taps(shape), kWidth), sums, columns, true};
        set_left<T>(call, n, first * shape.map_width + m, space, &product);
        multiply(product);
      }
    }
  }
}

template <typename T>
void add_up(const ImageEdgeWeightCall& call) {
  using S = Wide<T>;
  const ImageEdgeShape& shape = call.shape;
  const BandRows rows = band_rows(shape, interleaved(call));
  const std::int64_t columns = padded(taps(shape));
  for (std::int64_t k = 0; k < shape.filters; ++k) {
    for (std::int64_t r = 0; r < taps(shape); ++r) {
      const S* sums = static_cast<const S*>(call.packed) + k * columns + r;
      S total = 0;
      for (std::int64_t piece = 0; piece < call.plan.pieces; ++piece) {
        total += sums[piece * shape.filters * columns];
      }
      const Tap tap =
          tap_of(rows, shape.channels, r / rows.segment_length, r % rows.segment_length);
      static_cast<T*>(call.result)[k * call.result_strides[0] +
                                   tap.channel * call.result_strides[1] +
                                   tap.row * call.result_strides[2] +
                                   tap.column * call.result_strides[3]] = narrow<T>(total);
    }
  }
}

}  // namespace

void image_edge_conv2d_weight(const ImageEdgeWeightCall& call, std::int64_t begin,
                              std::int64_t end, void* scratch) {
  switch (call.shape.dtype) {
    case Dtype::float32: return run<float>(call, begin, end, scratch);
    case Dtype::float64: return run<double>(call, begin, end, scratch);
    default: return run<BFloat16>(call, begin, end, scratch);
  }
}

void image_edge_conv2d_weight_sum(const ImageEdgeWeightCall& call) {
  switch (call.shape.dtype) {
    case Dtype::float32: return add_up<float>(call);
    case Dtype::float64: return add_up<double>(call);
    default: return add_up<BFloat16>(call);
  }
}

}  // namespace fastgen::cpu::FASTGEN_CPU
