// The kernel behind conv2d_bias_leaky_relu_weight.h: for each kernel row the product of the padded
// picture, a row per tap, and the map, a column per filter, over the pixels of a block of rows.

#include "cpu/conv2d_bias_leaky_relu_weight.h"

#include "cpu/image_edge_rows.h"

namespace fastgen::cpu::FASTGEN_CPU {
namespace {

inline std::int64_t padded(std::int64_t count) {
  return ceil_div(count, kMostLanes) * kMostLanes;
}

template <typename T>
using Element = typename Format<T>::Element;

// --------------------------------------------------------------------------------- the left side

// The padded picture as the product reads it: where a step takes two pixels, every number beside
// its neighbour a pixel of the map further on.
template <typename F>
const typename F::Element* left_of(const BandRows& rows, std::int64_t count,
                                   const typename F::Element* band, typename F::Element* space) {
  if constexpr (F::kElements == 1) {
    return band;
  } else {
    const std::int64_t all = count * rows.pitch;
    const std::int64_t paired = all > rows.pixel_step ? all - rows.pixel_step : 0;
    pair_up(band, band + rows.pixel_step, paired, space);
    pair_up(band + paired, nullptr, all - paired, space + 2 * paired);
    return space;
  }
}

// -------------------------------------------------------------------------------- the right side

// A row of the map, a row per pixel or pair of pixels and a column per filter.
template <typename T>
void set_row_channels_last(const T* map, std::int64_t pixels, std::int64_t filters,
                           std::int64_t columns, Element<T>* to) {
  if constexpr (Format<T>::kElements == 1) {
    for (std::int64_t q = 0; q < pixels; ++q) {
      copy_run(map + q * filters, 1, to + q * columns, 1, filters);
    }
  } else {
    for (std::int64_t q = 0; q < pixels; q += 2) {
      const T* pixel = map + q * filters;
      pair_up(pixel, q + 1 == pixels ? nullptr : pixel + filters, filters, to + q * columns);
    }
  }
}

// The same of a contiguous map: squares of it change rows and columns. What one step takes, a
// number or two neighbours, stays together.
template <typename T>
void set_row_contiguous(const T* map, std::int64_t plane, std::int64_t pixels,
                        std::int64_t filters, std::int64_t ahead, std::int64_t columns,
                        Element<T>* to) {
  using S = Wide<T>;
  constexpr int kWidth = kLanes<S>, kElements = Format<T>::kElements;
  constexpr std::int64_t kPixels = kWidth * kElements;
  for (std::int64_t k = 0; k < filters; k += kWidth) {
    for (std::int64_t q = 0; q < pixels; q += kPixels) {
      const int count = static_cast<int>(pixels - q < kPixels ? pixels - q : kPixels);
      Vector<S> square[kWidth];
      for (int i = 0; i < kWidth; ++i) {
        square[i] = Vector<S>{};
        if (k + i >= filters) continue;
        const T* from = map + (k + i) * plane + q;
        __builtin_prefetch(from + ahead, 0, 2);
        if constexpr (kElements == 1) {
          square[i] = load(from, count);
        } else {
          square[i] = load_bits(from, count);
        }
      }
      transpose<S>(square);
      for (int i = 0; i * kElements < count; ++i) {
        __builtin_memcpy(to + (q + i * kElements) * columns + k * kElements, &square[i],
                         sizeof(square[i]));
      }
    }
  }
}

// Rows of the map from row `p` of picture `n` on: where they lie, if the product can read them so.
template <typename T>
Product<Format<T>> with_right_side(const ImageEdgeWeightCall& call, std::int64_t n, std::int64_t p,
                                   std::int64_t count, Element<T>* space) {
  using F = Format<T>;
  constexpr int kWidth = kLanes<Wide<T>>;
  const std::int64_t filters = call.shape.filters, width = call.shape.map_width;
  const std::int64_t plane = call.shape.map_height * width, columns = padded(filters);
  const T* map = static_cast<const T*>(call.map);
  Product<F> product{};
  product.segments = count, product.length = width;
  product.vectors = ceil_div(filters, kWidth);
  if (call.map_channels_last) {
    map += (n * plane + p * width) * filters;
    if constexpr (sizeof(T) == sizeof(Element<T>) && F::kElements == 1) {
      if (filters % kWidth == 0) {
        product.b = map, product.columns = filters;
        return product;
      }
    }
  } else {
    map += n * filters * plane + p * width;
  }
  product.b = space, product.columns = columns;
  // Rows of whole steps are one long row.
  const bool joined = width % F::kElements == 0;
  const std::int64_t runs = joined ? 1 : count, pixels = joined ? count * width : width;
  for (std::int64_t r = 0; r < runs; ++r) {
    if (call.map_channels_last) {
      set_row_channels_last<T>(map + r * width * filters, pixels, filters, columns, space);
    } else {
      set_row_contiguous<T>(map + r * width, plane, pixels, filters, count * width, columns, space);
    }
    space += steps_of<F>(width) * F::kElements * columns;
  }
  return product;
}

// ------------------------------------------------------------------------------------ everything

template <typename T>
void run(const ImageEdgeWeightCall& call, std::int64_t begin, std::int64_t end, void* scratch) {
  using F = Format<T>;
  using S = Wide<T>;
  constexpr int kWidth = kLanes<S>;
  const ImageEdgeShape& shape = call.shape;
  const BandRows rows = band_rows(shape, true);
  const std::int64_t columns = padded(shape.filters), taps = rows.segments * rows.segment_length;
  const std::int64_t block = weight_rows(shape);
  const std::int64_t most_rows = (call.plan.band - 1) * shape.stride_h + shape.kernel_h;
  // Scratch memory: the padded rows, their pairs, a block of the map.
  auto* band = static_cast<Element<T>*>(scratch);
  Element<T>* pairs = band + padded(most_rows * rows.pitch);
  Element<T>* space = F::kElements == 1 ? pairs : pairs + 2 * padded(most_rows * rows.pitch);
  for (std::int64_t i = 0; i < block * (shape.map_width + 1) * columns; ++i) space[i] = {};

  const std::int64_t bands = shape.batch * call.plan.bands;
  for (std::int64_t piece = begin; piece < end; ++piece) {
    S* sums = static_cast<S*>(call.packed) + piece * taps * columns;
    for (std::int64_t i = 0; i < taps * columns; ++i) sums[i] = 0;
    for (std::int64_t b = bands * piece / call.plan.pieces;
         b < bands * (piece + 1) / call.plan.pieces; ++b) {
      const std::int64_t n = b / call.plan.bands, first = b % call.plan.bands * call.plan.band;
      const std::int64_t left = shape.map_height - first;
      const std::int64_t count = left < call.plan.band ? left : call.plan.band;
      const std::int64_t picture_rows = (count - 1) * shape.stride_h + shape.kernel_h;
      pack_rows(shape, rows, static_cast<const T*>(call.picture) + n * call.picture_strides[0],
                call.picture_strides, first * shape.stride_h, picture_rows, band);
      const Element<T>* a = left_of<F>(rows, picture_rows, band, pairs);
      for (std::int64_t r = 0; r < count; r += block) {
        const std::int64_t few = count - r < block ? count - r : block;
        Product<F> product = with_right_side<T>(call, n, first + r, few, space);
        product.rows = rows.segment_length, product.row_step = F::kElements;
        product.segment_step = shape.stride_h * rows.pitch * F::kElements;
        product.step = rows.pixel_step * F::kElements * F::kElements;
        product.out_step = columns, product.add = true;
        // A few filters at a time: their part of the block stays in the first cache.
        const Product<F> whole = product;
        for (std::int64_t v = 0; v < whole.vectors; v += product.vectors) {
          const std::int64_t behind = whole.vectors - v;
          product.vectors = behind <= 3 ? behind : 2;
          product.b = whole.b + v * kWidth * F::kElements;
          for (std::int64_t i = 0; i < shape.kernel_h; ++i) {
            product.a = a + (r * shape.stride_h + i) * rows.pitch * F::kElements;
            product.out = sums + i * rows.segment_length * columns + v * kWidth;
            multiply(product);
          }
        }
      }
    }
  }
}

template <typename T>
void add_up(const ImageEdgeWeightCall& call) {
  using S = Wide<T>;
  const ImageEdgeShape& shape = call.shape;
  const std::int64_t columns = padded(shape.filters), row = shape.kernel_w * shape.channels;
  const std::int64_t taps = shape.kernel_h * row;
  for (std::int64_t r = 0; r < taps; ++r) {
    const std::int64_t c = r % shape.channels, i = r / row, j = r % row / shape.channels;
    T* result = static_cast<T*>(call.result) + c * call.result_strides[1] +
                i * call.result_strides[2] + j * call.result_strides[3];
    for (std::int64_t k = 0; k < shape.filters; ++k) {
      const S* sums = static_cast<const S*>(call.packed) + r * columns + k;
      S total = 0;
      for (std::int64_t piece = 0; piece < call.plan.pieces; ++piece) {
        total += sums[piece * taps * columns];
      }
      result[k * call.result_strides[0]] = narrow<T>(total);
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
