// The kernel behind conv_transpose2d_bias_leaky_relu.h: for each row of the map the product of its
// pixels and the packed weight, every pixel's contribution to every tap; for each row of the
// picture the sum of those that reach it.

#include "cpu/conv_transpose2d_bias_leaky_relu.h"

#include "cpu/product.h"
#include "cpu/image_edge_rows.h"

namespace fastgen::cpu::FASTGEN_CPU {
namespace {

template <typename T>
using Element = typename Format<T>::Element;

// The weight as the right side of the product: a row per channel of the map, a column per tap.
template <typename T>
void pack(const ImageEdgeTransposeCall& call) {
  using F = Format<T>;
  const ImageEdgeShape& shape = call.shape;
  const TransposeRows rows = transpose_rows(shape);
  const std::int64_t steps = steps_of<F>(shape.filters);
  const T* weight = static_cast<const T*>(call.weight);
  auto* packed = static_cast<Element<T>*>(call.packed);
  for (std::int64_t i = 0; i < steps * F::kElements * rows.columns; ++i) packed[i] = {};
  const std::int64_t(&strides)[4] = call.weight_strides;
  for (std::int64_t k = 0; k < shape.filters; ++k) {
    for (std::int64_t c = 0; c < shape.channels; ++c) {
      for (std::int64_t i = 0; i < shape.kernel_h; ++i) {
        Element<T>* to =
            packed + packed_index<F>(0, k, i * rows.row + c, rows.columns);
        copy_run(weight + k * strides[0] + c * strides[1] + i * strides[2], strides[3], to,
                 shape.channels * F::kElements, shape.kernel_w);
      }
    }
  }
}

// ------------------------------------------------------------------------------ a row of the map

// A step's worth of channels of neighbouring pixels, one pixel in a lane.
template <typename T>
inline Vector<Wide<T>> load_step(const T* map, std::int64_t plane, bool alone, int pixels) {
  if constexpr (Format<T>::kElements == 1) {
    return load(map, pixels);
  } else {
    return pair_lanes(load(map, pixels), alone ? Vector<float>{} : load(map + plane, pixels));
  }
}

// Pixels of a contiguous map, which has them one channel apart by a plane: neighbouring channels.
// In squares of one channel, or a pair of them, to a row.
template <typename T, bool kWhole>
inline void gather_square(const T* map, std::int64_t plane, int pixels, std::int64_t left,
                          std::int64_t channels, Element<T>* to) {
  using S = Wide<T>;
  constexpr int kWidth = kLanes<S>, kElements = Format<T>::kElements;
  Vector<S> square[kWidth];
  FASTGEN_UNROLLED
  for (int i = 0; i < kWidth; ++i) {
    square[i] = kWhole || i * kElements < left
                    ? load_step(map + i * kElements * plane, plane,
                                !kWhole && (i + 1) * kElements > left, kWhole ? kWidth : pixels)
                    : Vector<S>{};
  }
  transpose<S>(square);
  for (int i = 0; i < kWidth; ++i) {
    if (kWhole) {
      __builtin_memcpy(to + i * channels, &square[i], sizeof(square[i]));
    } else if (i < pixels) {
      const std::int64_t bytes = left * static_cast<std::int64_t>(sizeof(Element<T>));
      const auto size = static_cast<std::int64_t>(sizeof(square[i]));
      __builtin_memcpy(to + i * channels, &square[i],
                       static_cast<std::size_t>(bytes < size ? bytes : size));
    }
  }
}

template <typename T>
void gather_row(const T* map, std::int64_t plane, std::int64_t pixels, std::int64_t channels,
                Element<T>* to) {
  constexpr std::int64_t kWidth = kLanes<Wide<T>>, kChannels = kWidth * Format<T>::kElements;
  for (std::int64_t k = 0; k < channels; k += kChannels) {
    for (std::int64_t q = 0; q < pixels; q += kWidth) {
      const int count = static_cast<int>(plan::at_most(pixels - q, kWidth));
      const T* from = map + k * plane + q;
      if (count == kWidth && channels - k >= kChannels) {
        gather_square<T, true>(from, plane, count, kChannels, channels, to + q * channels + k);
      } else {
        gather_square<T, false>(from, plane, count, channels - k, channels, to + q * channels + k);
      }
    }
  }
}

// Fetches the next row of a contiguous map while this one is multiplied: a few neighbours of each
// plane are no pattern that the CPU foresees.
template <typename T>
void expect_row(const T* map, std::int64_t plane, std::int64_t pixels, std::int64_t channels) {
  for (std::int64_t k = 0; k < channels; ++k) {
    for (std::int64_t q = 0; q < pixels; q += 64 / static_cast<int>(sizeof(T))) {
      __builtin_prefetch(map + k * plane + q, 0, 2);
    }
  }
}

// The pixels of row `p` of picture `n`, one behind the other, in the type of left sides.
template <typename T>
const Element<T>* map_row(const ImageEdgeTransposeCall& call, std::int64_t n, std::int64_t p,
                          Element<T>* space) {
  const ImageEdgeShape& shape = call.shape;
  const std::int64_t plane = shape.map_height * shape.map_width, first = p * shape.map_width;
  const T* map = static_cast<const T*>(call.map);
  if (!call.map_channels_last) {
    const T* row = map + n * shape.filters * plane + first;
    gather_row<T>(row, plane, shape.map_width, shape.filters, space);
    expect_row(row + shape.map_width, plane, shape.map_width, shape.filters);
    return space;
  }
  const T* row = map + (n * plane + first) * shape.filters;
  if constexpr (sizeof(T) == sizeof(Element<T>)) {
    return row;
  } else {
    copy_run(row, 1, space, 1, shape.map_width * shape.filters);
    return space;
  }
}

// ----------------------------------------------------------------------------- into the picture

template <typename S, int kCount>
struct Few {
  typedef S type __attribute__((vector_size(kCount * sizeof(S))));
};

// What a row of the picture sums up: each a kernel row of the contributions of a row of the map.
template <typename S>
struct Sources {
  const S* from[kMostKernel];  // of the first pixel
  std::int64_t count;
};

// A row of the picture. The contributions have groups - 1 pixels of zeros before and behind them.
// What is known of a kernel's size when this is compiled (0: nothing) is not looped over.
template <typename S, int kCount, int kSources, int kGroups>
void sum_row(const TransposeRows& rows, const Sources<S>& sources, std::int64_t map_width,
             S* line) {
  using Part = typename Few<S, kCount>::type;
  Part lane{}, none{};
  for (int l = 0; l < kCount; ++l) lane[l] = static_cast<S>(l);
  const std::int64_t count = kSources > 0 ? kSources : sources.count;
  const std::int64_t last = (kGroups > 0 ? kGroups : rows.groups) - 1;
  const std::int64_t back = rows.columns - rows.step, rest = rows.row - last * rows.step;
  // A part reaches behind its group, or the group's last taps: those numbers are overwritten by the
  // next part and at the end by zeros, or left out.
  const bool whole = rest == rows.step;
  for (std::int64_t q = 0; q < map_width + last; ++q) {
    for (std::int64_t at = 0; at < rows.step; at += kCount) {
      const Part left = static_cast<S>(rest - at) - none;
      Part total = none, part;
      FASTGEN_UNROLLED
      for (std::int64_t source = 0; source < count; ++source) {
        const S* from = sources.from[source] + q * rows.columns + at;
        FASTGEN_UNROLLED
        for (std::int64_t g = 0; g < last; ++g, from -= back) {
          __builtin_memcpy(&part, from, sizeof(part));
          total += part;
        }
        __builtin_memcpy(&part, from, sizeof(part));
        total += whole ? part : lane < left ? part : none;
      }
      __builtin_memcpy(line + q * rows.step + at, &total, sizeof(total));
    }
  }
  __builtin_memcpy(line + (map_width + last) * rows.step, &none, sizeof(none));
}

template <typename S>
using SumRow = void (*)(const TransposeRows&, const Sources<S>&, std::int64_t, S*);

// For `count` sources.
template <typename S, int kCount>
SumRow<S> sum_row_of(const TransposeRows& rows, std::int64_t count) {
  if (count == 2 && rows.groups == 2) return sum_row<S, kCount, 2, 2>;
  if (count == 3 && rows.groups == 3) return sum_row<S, kCount, 3, 3>;
  return sum_row<S, kCount, 0, 0>;
}

template <typename S>
SumRow<S> sum_row_for(const TransposeRows& rows, std::int64_t count) {
  return rows.step <= 4   ? sum_row_of<S, 4>(rows, count)
         : rows.step <= 8 ? sum_row_of<S, 8>(rows, count)
                          : sum_row_of<S, 16>(rows, count);
}

// ------------------------------------------------------------------------------------- epilogue

// tanh a = (e^2a - 1) / (e^2a + 1), from e^2a - 1 without cancellation where a is small. Off by 2
// units in the last place.
inline float tanh_of(float a) {
  const float growth = exponentials(4.0f * a).growth;
  return __builtin_copysignf(growth / (growth + 2.0f), a);
}
inline double tanh_of(double a) { return __builtin_tanh(a); }

template <typename S, bool kTanh>
inline S activated(S a, S slope) {
  return kTanh ? tanh_of(a) : leaky_relu(a, slope);
}

template <typename T, bool kTanh>
void finish_pixels(const Wide<T>* sums, const Wide<T>* bias, std::int64_t count, Wide<T> slope,
                   T* result) {
  FASTGEN_INDEPENDENT
  for (std::int64_t x = 0; x < count; ++x) {
    result[x] = narrow<T>(activated<Wide<T>, kTanh>(sums[x] + bias[x], slope));
  }
}

// plane[w] = row[w * channels] for `count` pixels.
template <typename S>
inline void take_channel(const S* row, std::int64_t channels, std::int64_t count, S* plane) {
  for (std::int64_t w = 0; w < count; ++w) plane[w] = row[w * channels];
}

#if defined(__AVX512F__)
// Of 16 pixels, lane l is number l * kChannels % 16 of vector l * kChannels / 16.
template <int kChannels>
struct Places {
  std::int32_t number[16];
  __mmask16 vector[kChannels];
};

template <int kChannels>
constexpr Places<kChannels> places_of() {
  Places<kChannels> places{};
  for (int l = 0; l < 16; ++l) {
    places.number[l] = l * kChannels % 16;
    places.vector[l * kChannels / 16] |= static_cast<__mmask16>(1 << l);
  }
  return places;
}

// Whole vectors are read and written.
template <int kChannels>
void take_channel(const float* row, std::int64_t count, float* plane) {
  static constexpr Places<kChannels> kPlaces = places_of<kChannels>();
  const __m512i number = _mm512_loadu_si512(kPlaces.number);
  for (std::int64_t w = 0; w < count; w += 16, row += 16 * kChannels) {
    __m512 lanes = _mm512_permutexvar_ps(number, _mm512_loadu_ps(row));
    FASTGEN_UNROLLED
    for (int v = 1; v < kChannels; ++v) {
      lanes = _mm512_mask_permutexvar_ps(lanes, kPlaces.vector[v], number,
                                         _mm512_loadu_ps(row + 16 * v));
    }
    _mm512_storeu_ps(plane + w, lanes);
  }
}

inline void take_channel(const float* row, std::int64_t channels, std::int64_t count,
                         float* plane) {
  switch (channels) {
    case 2: return take_channel<2>(row, count, plane);
    case 3: return take_channel<3>(row, count, plane);
    case 4: return take_channel<4>(row, count, plane);
    default: return take_channel<float>(row, channels, count, plane);
  }
}
#endif

// Whether a pixel's channels are neighbours in the result.
bool interleaved(const ImageEdgeTransposeCall& call) {
  return call.channels_last || call.shape.channels == 1;
}

// `plane` is room for a channel of a row.
template <typename T, bool kTanh>
void finish_row(const ImageEdgeTransposeCall& call, std::int64_t n, std::int64_t h,
                const Wide<T>* sums, const Wide<T>* bias, Wide<T>* plane) {
  const ImageEdgeShape& shape = call.shape;
  const Wide<T> slope = static_cast<Wide<T>>(call.slope);
  T* result = static_cast<T*>(call.result);
  if (interleaved(call)) {
    const std::int64_t count = shape.width * shape.channels;
    return finish_pixels<T, kTanh>(sums, bias, count, slope,
                                   result + (n * shape.height + h) * count);
  }
  for (std::int64_t c = 0; c < shape.channels; ++c) {
    take_channel(sums + c, shape.channels, shape.width, plane);
    finish_pixels<T, kTanh>(plane, bias + c * shape.width, shape.width, slope,
                            result + ((n * shape.channels + c) * shape.height + h) * shape.width);
  }
}

// ------------------------------------------------------------------------------------ everything

// Scratch memory: the contributions of the last rows of the map that a row of the picture sees, in
// turn; a row of the picture; its bias; a row of the map.
template <typename T>
struct Space {
  Wide<T>* sums;
  Wide<T>* line;
  Wide<T>* bias;  // of every number of a row of the result, or of its channels one after the other
  Wide<T>* plane;  // a channel of a row
  Element<T>* row;
};

template <typename T>
Space<T> prepared(const ImageEdgeTransposeCall& call, const TransposeRows& rows, void* scratch) {
  const ImageEdgeShape& shape = call.shape;
  Space<T> space{};
  space.sums = static_cast<Wide<T>*>(scratch);
  space.line = space.sums + rows.turn * rows.depth;
  space.bias = space.line + rows.line;
  space.plane = space.bias + rows.line;
  space.row = reinterpret_cast<Element<T>*>(space.plane + rows.line);
  for (std::int64_t i = 0; i < rows.turn * rows.depth; ++i) space.sums[i] = 0;
  for (std::int64_t x = 0; x < rows.line; ++x) space.line[x] = 0;
  for (std::int64_t x = 0; x < rows.line; ++x) space.bias[x] = 0;
  if (call.bias == nullptr) return space;
  for (std::int64_t c = 0; c < shape.channels; ++c) {
    const Wide<T> bias = widen(static_cast<const T*>(call.bias)[c]);
    for (std::int64_t w = 0; w < shape.width; ++w) {
      const std::int64_t at = interleaved(call) ? w * shape.channels + c : c * shape.width + w;
      space.bias[at] = bias;
    }
  }
  return space;
}

template <typename T>
void run(const ImageEdgeTransposeCall& call, std::int64_t begin, std::int64_t end, void* scratch) {
  using F = Format<T>;
  constexpr int kWidth = kLanes<Wide<T>>;
  const ImageEdgeShape& shape = call.shape;
  const TransposeRows rows = transpose_rows(shape);
  const Space<T> space = prepared<T>(call, rows, scratch);
  const auto sums_of = [&](std::int64_t p) {
    return space.sums + p % rows.depth * rows.turn + (rows.groups - 1) * rows.columns;
  };

  for (std::int64_t piece = begin; piece < end; ++piece) {
    const std::int64_t n = piece / call.plan.bands;
    const std::int64_t first = piece % call.plan.bands * call.plan.band;
    const std::int64_t left = shape.height - first;
    const std::int64_t count = left < call.plan.band ? left : call.plan.band;
    std::int64_t known = -1;  // the last row of the map whose contributions are there
    for (std::int64_t h = first; h < first + count; ++h) {
      // Kernel row i brings row p of the map to row p * stride - padding + i.
      const std::int64_t nearest = (h + shape.padding_h) / shape.stride_h;
      const std::int64_t furthest = nearest - rows.depth + 1;
      std::int64_t p = known + 1 > furthest ? known + 1 : furthest;
      for (; p <= nearest && p < shape.map_height; ++p) {
        multiply(Product<F>{map_row<T>(call, n, p, space.row), shape.map_width, shape.filters, 1, 0,
                            shape.filters, F::kElements,
                            static_cast<const Element<T>*>(call.packed),
                            rows.columns, ceil_div(rows.taps, kWidth), sums_of(p), rows.columns,
                            false});
        known = p;
      }
      Sources<Wide<T>> sources{};
      for (std::int64_t i = (h + shape.padding_h) % shape.stride_h; i < shape.kernel_h;
           i += shape.stride_h) {
        p = nearest - i / shape.stride_h;
        if (p < 0 || p >= shape.map_height) continue;
        sources.from[sources.count++] = sums_of(p) + i * rows.row;
      }
      sum_row_for<Wide<T>>(rows, sources.count)(rows, sources, shape.map_width, space.line);
      const Wide<T>* sums = space.line + shape.padding_w * shape.channels;
      if (call.tanh) {
        finish_row<T, true>(call, n, h, sums, space.bias, space.plane);
      } else {
        finish_row<T, false>(call, n, h, sums, space.bias, space.plane);
      }
    }
  }
}

}  // namespace

void image_edge_conv_transpose2d_pack(const ImageEdgeTransposeCall& call) {
  switch (call.shape.dtype) {
    case Dtype::float32: return pack<float>(call);
    case Dtype::float64: return pack<double>(call);
    default: return pack<BFloat16>(call);
  }
}

void image_edge_conv_transpose2d(const ImageEdgeTransposeCall& call, std::int64_t begin,
                                 std::int64_t end, void* scratch) {
  switch (call.shape.dtype) {
    case Dtype::float32: return run<float>(call, begin, end, scratch);
    case Dtype::float64: return run<double>(call, begin, end, scratch);
    default: return run<BFloat16>(call, begin, end, scratch);
  }
}

}  // namespace fastgen::cpu::FASTGEN_CPU
