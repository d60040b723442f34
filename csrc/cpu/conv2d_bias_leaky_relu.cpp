// The kernel behind conv2d_bias_leaky_relu.h: for each row of the map a product of windows of the
// padded picture and the packed weight, a block of pixels and filters at a time.

#include "cpu/conv2d_bias_leaky_relu.h"

#include "cpu/image_edge_rows.h"

namespace fastgen::cpu::FASTGEN_CPU {
namespace {

template <typename T>
using Element = typename Format<T>::Element;

// Whether the packed picture keeps the channels of a pixel together.
bool interleaved(const ImageEdgeConvCall& call) {
  return call.shape.channels == 1 || call.picture_strides[1] == 1;
}

std::int64_t padded_filters(const ImageEdgeConvCall& call) {
  return ceil_div(call.shape.filters, kMostLanes) * kMostLanes;
}

// The weight as the right side of the product, a column per filter, and behind it the bias.
template <typename T>
void pack(const ImageEdgeConvCall& call) {
  using F = Format<T>;
  const BandRows rows = band_rows(call.shape, interleaved(call));
  const std::int64_t columns = padded_filters(call), steps = steps_of<F>(rows.segment_length);
  const T* weight = static_cast<const T*>(call.weight);
  auto* packed = static_cast<Element<T>*>(call.packed);
  for (std::int64_t i = 0; i < rows.segments * steps * F::kElements * columns; ++i) packed[i] = {};
  for (std::int64_t s = 0; s < rows.segments; ++s) {
    for (std::int64_t e = 0; e < rows.segment_length; ++e) {
      const Tap tap = tap_of(rows, call.shape.channels, s, e);
      const T* from = weight + tap.channel * call.weight_strides[1] +
                      tap.row * call.weight_strides[2] + tap.column * call.weight_strides[3];
      Element<T>* to = packed + packed_index<F>(s * steps, e, 0, columns);
      copy_run(from, call.weight_strides[0], to, F::kElements, call.shape.filters);
    }
  }
  auto* bias = reinterpret_cast<Wide<T>*>(packed + rows.segments * steps * F::kElements * columns);
  for (std::int64_t k = 0; k < columns; ++k) bias[k] = 0;
  if (call.bias == nullptr) return;
  copy_run(static_cast<const T*>(call.bias), 1, bias, 1, call.shape.filters);
}

// A block of sums: `pixels` neighbours of a row of the map by `filters` filters.
template <typename T>
struct Block {
  const Wide<T>* sums;  // kConvBlockFilters apart
  const Wide<T>* bias;  // of the filters
  std::int64_t pixels, filters;
  const T* output;  // of the first pixel and filter, or nullptr
  T* result;
  std::int64_t step;  // elements from pixel to pixel (channels_last) or filter to filter
  Wide<T> slope;
  bool stream;
};

// The block is computed for longer than its lines take to come; without this hint it would wait
// for them afterwards, in a contiguous result above all: its planes are no pattern that the CPU
// foresees. 3->64 64x64 3x3: a fifth less time contiguous, a twentieth less in channels_last.
template <typename T>
void expect(const Block<T>& block, bool channels_last) {
  const std::int64_t runs = channels_last ? block.pixels : block.filters;
  const std::int64_t length = channels_last ? block.filters : block.pixels;
  for (std::int64_t i = 0; i < runs; ++i) {
    for (std::int64_t x = 0; x < length; x += 64 / static_cast<int>(sizeof(T))) {
      if (!block.stream) __builtin_prefetch(block.result + i * block.step + x, 1);
      if (block.output != nullptr) __builtin_prefetch(block.output + i * block.step + x);
    }
  }
}

template <typename T>
void finish_channels_last(const Block<T>& block) {
  constexpr int kWidth = kLanes<Wide<T>>;
  const Vector<Wide<T>> slope = all(block.slope);
  for (std::int64_t m = 0; m < block.pixels; ++m) {
    for (std::int64_t k = 0; k < block.filters; k += kWidth) {
      const int count = static_cast<int>(block.filters - k < kWidth ? block.filters - k : kWidth);
      const std::int64_t at = m * block.step + k;
      const Vector<Wide<T>> sum =
          load(block.sums + m * kConvBlockFilters + k) + load(block.bias + k);
      const auto value =
          block.output == nullptr
              ? leaky_relu_lanes<Wide<T>>(sum, slope)
              : leaky_relu_mask_lanes<Wide<T>>(sum, load(block.output + at, count), slope);
      store(block.result + at, value, count);
    }
  }
}

template <typename T>
void finish_contiguous(const Block<T>& block) {
  constexpr int kWidth = kLanes<Wide<T>>;
  const Vector<Wide<T>> slope = all(block.slope);
  for (std::int64_t k = 0; k < block.filters; k += kWidth) {
    const int filters = static_cast<int>(block.filters - k < kWidth ? block.filters - k : kWidth);
    const Vector<Wide<T>> bias = load(block.bias + k);
    for (std::int64_t m = 0; m < block.pixels; m += kWidth) {
      const int pixels = static_cast<int>(block.pixels - m < kWidth ? block.pixels - m : kWidth);
      Vector<Wide<T>> rows[kWidth];
      for (int i = 0; i < kWidth; ++i) {
        rows[i] = load(block.sums + (m + i) * kConvBlockFilters + k) + bias;
      }
      transpose<Wide<T>>(rows);
      for (int i = 0; i < filters; ++i) {
        const std::int64_t at = (k + i) * block.step + m;
        const auto value =
            block.output == nullptr
                ? leaky_relu_lanes<Wide<T>>(rows[i], slope)
                : leaky_relu_mask_lanes<Wide<T>>(rows[i], load(block.output + at, pixels), slope);
        if (block.stream && pixels == kWidth) {
          stream(block.result + at, value);
        } else {
          store(block.result + at, value, pixels);
        }
      }
    }
  }
}

template <typename T>
void run(const ImageEdgeConvCall& call, std::int64_t begin, std::int64_t end, void* scratch) {
  using F = Format<T>;
  constexpr int kWidth = kLanes<Wide<T>>;
  const ImageEdgeShape& shape = call.shape;
  const BandRows rows = band_rows(shape, interleaved(call));
  const std::int64_t columns = padded_filters(call), plane = shape.map_height * shape.map_width;
  const auto* packed = static_cast<const Element<T>*>(call.packed);
  const std::int64_t steps = rows.segments * steps_of<F>(rows.segment_length);
  const auto* bias =
      reinterpret_cast<const Wide<T>*>(packed + steps * F::kElements * columns);
  // Scratch memory: sums of a block, then the padded rows.
  auto* sums = static_cast<Wide<T>*>(scratch);
  auto* band = reinterpret_cast<Element<T>*>(sums + kConvBlockPixels * kConvBlockFilters);

  for (std::int64_t piece = begin; piece < end; ++piece) {
    const std::int64_t n = piece / call.plan.bands;
    const std::int64_t first = piece % call.plan.bands * call.plan.band;
    const std::int64_t left = shape.map_height - first;
    const std::int64_t count = left < call.plan.band ? left : call.plan.band;
    pack_rows(shape, rows, static_cast<const T*>(call.picture) + n * call.picture_strides[0],
              call.picture_strides, first * shape.stride_h,
              (count - 1) * shape.stride_h + shape.kernel_h, band);

    for (std::int64_t row = 0; row < count; ++row) {
      for (std::int64_t q = 0; q < shape.map_width; q += kConvBlockPixels) {
        const std::int64_t behind = shape.map_width - q;
        const std::int64_t pixels = behind < kConvBlockPixels ? behind : kConvBlockPixels;
        for (std::int64_t k = 0; k < shape.filters; k += kConvBlockFilters) {
          const std::int64_t others = shape.filters - k;
          const std::int64_t filters = others < kConvBlockFilters ? others : kConvBlockFilters;
          const std::int64_t pixel = (first + row) * shape.map_width + q;
          const std::int64_t at = call.channels_last ? (n * plane + pixel) * shape.filters + k
                                                     : (n * shape.filters + k) * plane + pixel;
          const T* output = static_cast<const T*>(call.output);
          const Block<T> block{sums,
                               bias + k,
                               pixels,
                               filters,
                               output == nullptr ? nullptr : output + at,
                               static_cast<T*>(call.result) + at,
                               call.channels_last ? shape.filters : plane,
                               static_cast<Wide<T>>(call.slope),
                               call.stream};
          const Product<F> product{
              band + row * shape.stride_h * rows.pitch + q * rows.pixel_step, pixels,
              rows.pixel_step, rows.segments, rows.segment_step, rows.segment_length, F::kElements,
              packed + k * F::kElements, columns, ceil_div(filters, kWidth), sums,
              kConvBlockFilters, false};
          expect(block, call.channels_last);
          if constexpr (sizeof(T) == sizeof(Element<T>)) {
            if (call.channels_last && filters % kWidth == 0) {
              multiply(product, Finish<F>{block.bias, block.slope, block.output, block.result,
                                          block.step, block.stream});
              continue;
            }
          }
          multiply(product);
          if (call.channels_last) {
            finish_channels_last(block);
          } else {
            finish_contiguous(block);
          }
        }
      }
    }
  }
  if (call.stream) finish_streams();
}

}  // namespace

void image_edge_conv2d_pack(const ImageEdgeConvCall& call) {
  switch (call.shape.dtype) {
    case Dtype::float32: return pack<float>(call);
    case Dtype::float64: return pack<double>(call);
    default: return pack<BFloat16>(call);
  }
}

void image_edge_conv2d(const ImageEdgeConvCall& call, std::int64_t begin, std::int64_t end,
                       void* scratch) {
  switch (call.shape.dtype) {
    case Dtype::float32: return run<float>(call, begin, end, scratch);
    case Dtype::float64: return run<double>(call, begin, end, scratch);
    default: return run<BFloat16>(call, begin, end, scratch);
  }
}

}  // namespace fastgen::cpu::FASTGEN_CPU
