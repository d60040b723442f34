// The image-edge convolution whose weights fit the registers of a warp, from a picture's rows to
// channels_last.
//
// Bound. Bytes: a pixel of 64 channels is 128 bytes of bfloat16, of which 132 multiprocessors at
// 1.75 GHz write one in 28 instructions of a warp at 4.3 TB/s. So what is the same for all pixels
// stays where it is used: the weights in registers, as the rows of matrix products, and the place
// in the patch of each of a lane's words of a window, too. What is left for 8 pixels (a unit) is a
// load of each word, the products, activation and two stores a lane.
//
// Terms. The rows of a window are runs of words in the patch: (row, word of the row), counted
// through. Word 4 j + t of a window is what the lanes of t bring as word j of a column, and the
// weights' words are dealt alike. Words that only fill up a product have weights of 0; so that
// 0 * infinity spoils no pixel from outside the window, they look at the window's first.
//
// Channels. Lane 4 g + t is given rows g and g + 8 of each product; that these are the neighbours
// g kRun + 2 m and g kRun + 2 m + 1 in product m makes a run of 16 bytes of each of its two pixels.
#pragma once

#include "cuda/async_copy.h"
#include "cuda/conv2d_bias_leaky_relu_rows_plan.h"

namespace fastgen::cuda {

// A number that the compiler shall keep in a register, not work out again in every round of a loop.
FASTGEN_HD int kept_in_register(int value) {
#if defined(__CUDA_ARCH__)
  asm volatile("" : "+r"(value));
#endif
  return value;
}

template <typename T>
struct RowsLane {
  int group, in_group;  // lane = 4 group + in_group
  int channel_warp, pixel_warp;

  FASTGEN_HD RowsLane(const RowsConvPlan& plan, int thread)
      : group(thread % 32 / 4),
        in_group(thread % 4),
        channel_warp(thread / 32 & ((1 << plan.log_channel_warps) - 1)),
        pixel_warp(thread / 32 >> plan.log_channel_warps) {}

  // The first channel of the lane's run.
  FASTGEN_HD int channel(const RowsConvPlan& plan, int chunk) const {
    const int warps = (chunk << plan.log_channel_warps) + channel_warp;
    return (warps * 8 + group) * kWideExtent<T>;
  }
};

// --------------------------------------------------------------------------------------- weights

// Values of a chunk's weights that exist.
template <typename T>
FASTGEN_HD int chunk_values(const RowsConvArguments<T>& a, int chunk) {
  const int filter = a.channels * a.plan.kernel_h * a.kernel_w;
  const int channels = kGroup<T> << a.plan.log_channel_warps;
  const int left = a.filters - chunk * channels;
  return (left < channels ? left : channels) * filter;
}

// On its way until the thread's copies are waited for.
template <typename T>
FASTGEN_HD void copy_raw_weights(const RowsConvArguments<T>& a, int chunk, int thread,
                                 std::uint32_t* raw) {
  constexpr int V = kWideExtent<T>;
  const int filter = a.channels * a.plan.kernel_h * a.kernel_w;
  const T* from = a.weight + static_cast<std::int64_t>(chunk) *
                                 (kGroup<T> << a.plan.log_channel_warps) * filter;
  const int pieces = chunk_values(a, chunk) / V;
  for (int i = thread; i < pieces; i += kRowsThreads) {
    const int run = static_cast<int>(a.plan.by_run.quotient(i));
    const int place = i + run * (a.plan.raw_pitch - static_cast<int>(a.plan.by_run.divisor));
    copy_async<16>(raw + 4 * place, from + i * V, true);
  }
  end_async_group();
}

FASTGEN_HD std::uint32_t word_of(const float (&values)[1]) {
  return bits_of(round_to_tf32(values[0]));
}
template <typename T>
FASTGEN_HD std::uint32_t word_of(const T (&values)[2]) {
  return values[0].bits | static_cast<std::uint32_t>(values[1].bits) << 16;
}

// From values into the words that lanes bring into products.
template <typename T>
FASTGEN_HD void deal_weights(const RowsConvArguments<T>& a, int chunk, int thread,
                             const std::uint32_t* raw, std::uint32_t* weights) {
  constexpr int V = kPerWord<T>, kRun = kWideExtent<T>;
  const RowsConvPlan& plan = a.plan;
  const int slots = 2 * plan.steps;
  // A slot's words lie in the same place of every filter.
  FASTGEN_UNROLL_BY(1)
  for (int i = thread; i < (slots * 32) << plan.log_channel_warps; i += kRowsThreads) {
    const int lane = i % 32, warps = i / 32 / slots, slot = i / 32 - warps * slots;
    const int word = 4 * slot + lane % 4;
    const int row = word / plan.row_words, first = (word - row * plan.row_words) * V;
    int offsets[V];
    bool there[V];
    FASTGEN_UNROLL
    for (int v = 0; v < V; ++v) {
      const int column = (first + v) / plan.kept, c = first + v - column * plan.kept;
      there[v] = word < plan.words && c < a.channels;
      offsets[v] = c * a.weight_strides[1] + row * a.weight_strides[2] +
                   column * a.weight_strides[3];
    }
    const int run = warps * 8 + lane / 4;
    const int channel = chunk * (kGroup<T> << plan.log_channel_warps) + run * kRun;
    const T* from = plan.raw_weights ? reinterpret_cast<const T*>(raw + run * plan.raw_pitch * 4)
                                     : a.weight + channel * a.weight_strides[0];
    std::uint32_t* to = weights + ((warps * kMatrices<T> * plan.steps + slot / 2) * 32 + lane) * 4 +
                        slot % 2 * 2;
    FASTGEN_UNROLL
    for (int e = 0; e < kRun; e += 2) {
      std::uint32_t words[2];
      FASTGEN_UNROLL
      for (int n = 0; n < 2; ++n) {
        T values[V] = {};
        FASTGEN_UNROLL
        for (int v = 0; v < V; ++v) {
          if (there[v] && channel < a.filters) {
            values[v] = from[(e + n) * a.weight_strides[0] + offsets[v]];
          }
        }
        words[n] = word_of(values);
      }
      store_shared(to + e / 2 * plan.steps * 128, words);
    }
  }
}

template <typename T, int kSteps>
FASTGEN_HD void load_weights(const RowsLane<T>& lane, const RowsConvShared& shared,
                             Rows (&weights)[kMatrices<T>][kSteps]) {
  const std::uint32_t* from =
      shared.weights + lane.channel_warp * kMatrices<T> * kSteps * 128 +
      (4 * lane.group + lane.in_group) * 4;
  FASTGEN_UNROLL
  for (int m = 0; m < kMatrices<T>; ++m) {
    FASTGEN_UNROLL
    for (int step = 0; step < kSteps; ++step) {
      const auto words = load_pack<std::uint32_t, 4>(from + (m * kSteps + step) * 128);
      FASTGEN_UNROLL
      for (int w = 0; w < 4; ++w) weights[m][step].words[w] = words.values[w];
    }
  }
}

// What sums begin with: two rows' bias, each for two pixels.
template <typename T>
FASTGEN_HD void stage_bias(const RowsConvArguments<T>& a, int chunk, int thread, float* bias) {
  const int count = (kMatrices<T> * 32) << a.plan.log_channel_warps;
  for (int i = thread; i < count; i += kRowsThreads) {
    const int m = i / 32 % kMatrices<T>, warps = i / 32 / kMatrices<T>;
    const int channel = (((chunk << a.plan.log_channel_warps) + warps) * 8 + i % 32 / 4) *
                            kWideExtent<T> + 2 * m + i % 4 / 2;
    const bool there = a.bias != nullptr && channel < a.filters;
    bias[i] = there ? to_float(a.bias[channel]) : 0.0f;
  }
}

// ----------------------------------------------------------------------------------------- patch

// A piece of the picture on its way into the patch.
struct RowsPiece {
  std::uint32_t words[6];
};
// A thread's first pieces of the next patch wait in registers while this tile is computed.
inline constexpr int kHeldPieces = 2;

struct PiecePlace {
  int row, piece;  // of the patch
};

FASTGEN_HD PiecePlace piece_place(const RowsConvPlan& plan, int i) {
  const int row = static_cast<int>(plan.by_row_pieces.quotient(i));
  return {row, i - row * static_cast<int>(plan.by_row_pieces.divisor)};
}

FASTGEN_HD bool is_within(int i, int extent) {
  return static_cast<std::uint32_t>(i) < static_cast<std::uint32_t>(extent);
}

// Where the patch of a tile begins.
template <typename T>
struct PatchPlace {
  const T* image;
  int y, x;  // in the picture, of the patch's first row and of the tile's first pixel

  FASTGEN_HD PatchPlace(const RowsConvArguments<T>& a, const EdgePlace& place)
      : image(a.input + place.image * a.image_stride),
        y(place.y * a.stride_h - a.padding_h),
        x(place.x * a.stride_w) {}
};

template <RowsInput kInput, typename T>
FASTGEN_HD RowsPiece fetch_piece(const RowsConvArguments<T>& a, const PatchPlace<T>& from, int i) {
  const RowsConvPlan& plan = a.plan;
  const PiecePlace in = piece_place(plan, i);
  const int y = from.y + in.row, row = y * a.row_stride;
  const bool in_rows = is_within(y, a.height);
  RowsPiece piece = {};
  if constexpr (kInput == RowsInput::padded) {
    const int column = from.x + (plan.first_piece + in.piece) * 4;
    if (in_rows && is_within(column, a.width)) {
      const T* pixels = from.image + (row + column * a.channels);
      FASTGEN_UNROLL
      for (int c = 0; c < 3; ++c) {
        if (c >= a.channels) break;
        const Quad<BFloat16> quad = load_quad<BFloat16>(pixels + 4 * c);
        piece.words[2 * c] = quad.words[0], piece.words[2 * c + 1] = quad.words[1];
      }
    }
    return piece;
  }
  const int at = from.x * a.channels + (plan.first_piece + in.piece) * kWideExtent<T>;
  const int row_values = a.width * a.channels;
  const T* values = from.image + (row + at);
  if (in_rows && is_within(at, row_values)) {
    const auto words =
        load_pack<std::uint32_t, 4>(reinterpret_cast<const std::uint32_t*>(values));
    FASTGEN_UNROLL
    for (int w = 0; w < 4; ++w) piece.words[w] = words.values[w];
  }
  if constexpr (sizeof(T) == 2) {
    if (plan.shift != 0 && in_rows && is_within(at - 1, row_values)) {
      piece.words[4] = static_cast<std::uint32_t>(values[-1].bits) << 16;
    }
  }
  return piece;
}

// `high` moved up by 0 or 16 bits, and what that leaves free taken from the end of `low`.
FASTGEN_HD std::uint32_t straddle(std::uint32_t low, std::uint32_t high, int shift) {
#if defined(__CUDA_ARCH__)
  return __funnelshift_l(low, high, shift);
#else
  return static_cast<std::uint32_t>((static_cast<std::uint64_t>(high) << 32 | low) << shift >> 32);
#endif
}

template <RowsInput kInput, typename T>
FASTGEN_HD void put_piece(const RowsConvArguments<T>& a, int i, const RowsPiece& piece,
                          std::uint32_t* patch) {
  const RowsConvPlan& plan = a.plan;
  const PiecePlace in = piece_place(plan, i);
  const std::uint32_t(&w)[6] = piece.words;
  std::uint32_t* to = patch + in.row * plan.pitch;
  if constexpr (sizeof(T) == 4) {
    const auto rounded = [](std::uint32_t word) { return bits_of(round_to_tf32(float_of(word))); };
    store_shared(to + in.piece * 4, {rounded(w[0]), rounded(w[1]), rounded(w[2]), rounded(w[3])});
  } else if constexpr (kInput == RowsInput::dense) {
    store_shared(to + in.piece * 4,
                 {straddle(w[4], w[0], plan.shift), straddle(w[0], w[1], plan.shift),
                  straddle(w[1], w[2], plan.shift), straddle(w[2], w[3], plan.shift)});
  } else if (a.channels == 3) {
    to += in.piece * 8;
    store_shared(to, {w[0], w[1] & 0xffffu, straddle(w[1], w[2], 16), w[2] >> 16});
    store_shared(to + 4, {w[3], w[4] & 0xffffu, straddle(w[4], w[5], 16), w[5] >> 16});
  } else {
    store_shared(to + in.piece * 4, {w[0] & 0xffffu, w[0] >> 16, w[1] & 0xffffu, w[1] >> 16});
  }
}

// Pixel by pixel, from any strides.
template <typename T>
FASTGEN_HD void stage_pixel(const RowsConvArguments<T>& a, const PatchPlace<T>& from, int i,
                            std::uint32_t* patch) {
  const RowsConvPlan& plan = a.plan;
  const PiecePlace in = piece_place(plan, i);
  const int y = from.y + in.row, x = from.x + plan.first_piece + in.piece;
  const bool there = is_within(y, a.height) && is_within(x, a.width);
  const T* pixel = from.image + (y * a.row_stride + x * a.column_stride);
  T* to = reinterpret_cast<T*>(patch + in.row * plan.pitch) + in.piece * plan.kept;
  FASTGEN_UNROLL
  for (int c = 0; c < 4; ++c) {
    if (c >= plan.kept) break;
    T value{};
    if (there && c < a.channels) value = pixel[c * a.channel_stride];
    if constexpr (sizeof(T) == 4) value = round_to_tf32(value);
    to[c] = value;
  }
}

template <RowsInput kInput, typename T>
FASTGEN_HD void fetch_held(const RowsConvArguments<T>& a, const PatchPlace<T>& from, int thread,
                           RowsPiece (&held)[kHeldPieces]) {
  FASTGEN_UNROLL
  for (int h = 0; h < kHeldPieces; ++h) {
    const int i = thread + h * kRowsThreads;
    if (i < a.plan.pieces) held[h] = fetch_piece<kInput>(a, from, i);
  }
}

template <RowsInput kInput, typename T>
FASTGEN_HD void put_held(const RowsConvArguments<T>& a, const PatchPlace<T>& from, int thread,
                         const RowsPiece (&held)[kHeldPieces], std::uint32_t* patch) {
  FASTGEN_UNROLL
  for (int h = 0; h < kHeldPieces; ++h) {
    const int i = thread + h * kRowsThreads;
    if (i < a.plan.pieces) put_piece<kInput>(a, i, held[h], patch);
  }
  FASTGEN_UNROLL_BY(1)
  for (int i = thread + kHeldPieces * kRowsThreads; i < a.plan.pieces; i += kRowsThreads) {
    put_piece<kInput>(a, i, fetch_piece<kInput>(a, from, i), patch);
  }
}

template <typename T>
FASTGEN_HD void fetch_pieces(const RowsConvArguments<T>& a, const EdgePlace& place, int thread,
                             RowsPiece (&held)[kHeldPieces]) {
  const PatchPlace<T> from(a, place);
  if (a.plan.mode == RowsInput::dense) {
    fetch_held<RowsInput::dense>(a, from, thread, held);
  } else if (sizeof(T) == 2 && a.plan.mode == RowsInput::padded) {
    fetch_held<RowsInput::padded>(a, from, thread, held);
  }
}

template <typename T>
FASTGEN_HD void put_pieces(const RowsConvArguments<T>& a, const EdgePlace& place, int thread,
                           const RowsPiece (&held)[kHeldPieces], std::uint32_t* patch) {
  const PatchPlace<T> from(a, place);
  if (a.plan.mode == RowsInput::dense) {
    put_held<RowsInput::dense>(a, from, thread, held, patch);
  } else if (sizeof(T) == 2 && a.plan.mode == RowsInput::padded) {
    put_held<RowsInput::padded>(a, from, thread, held, patch);
  } else {
    FASTGEN_UNROLL_BY(1)
    for (int i = thread; i < a.plan.pieces; i += kRowsThreads) stage_pixel(a, from, i, patch);
  }
}

// ----------------------------------------------------------------------------------------- units

// A warp's units stand one below the other, as far apart as the warps of a block reach.
template <typename T>
struct RowsUnits {
  int y, x;    // within the tile, of the warp's first unit
  int step_y;  // from unit to unit

  FASTGEN_HD RowsUnits(const RowsConvPlan& plan, const RowsLane<T>& lane) {
    const int within = lane.pixel_warp & ((1 << plan.log_spread) - 1);
    const int pixel = (lane.pixel_warp - within) * kUnit + within;
    y = pixel >> plan.log_tile_width;
    x = pixel - (y << plan.log_tile_width);
    step_y = (kRowsWarps * kUnit >> plan.log_channel_warps) >> plan.log_tile_width;
  }

  // How many of them have a place in the result.
  FASTGEN_HD int count(const RowsConvArguments<T>& a, const EdgePlace& place) const {
    const int rows = a.out_height - place.y - y;
    return kept_in_register(place.x + x < a.out_width ? rows : 0);
  }
};

// Where in the patch, in bytes, a lane finds each of its words of the warp's first unit.
template <typename T, int kSteps>
FASTGEN_HD void find_words(const RowsConvArguments<T>& a, const RowsLane<T>& lane,
                           const RowsUnits<T>& units, int (&places)[2 * kSteps]) {
  const RowsConvPlan& plan = a.plan;
  const int row_bytes = 4 * plan.pitch, pixel_bytes = a.stride_w * plan.kept * sizeof(T);
  const int window = units.y * a.stride_h * row_bytes + 4 * plan.lead +
                     (units.x + (lane.group << plan.log_spread)) * pixel_bytes;
  FASTGEN_UNROLL
  for (int j = 0; j < 2 * kSteps; ++j) {
    const int word = 4 * j + lane.in_group, row = word / plan.row_words;
    const int within = row * row_bytes + 4 * (word - row * plan.row_words);
    places[j] = window + (word < plan.words ? within : 0);
  }
}

template <int kSteps>
FASTGEN_HD void load_columns(const std::uint32_t* patches, int offset,
                             const int (&places)[2 * kSteps], Columns (&columns)[kSteps]) {
  const unsigned char* from = reinterpret_cast<const unsigned char*>(patches) + offset;
  FASTGEN_UNROLL
  for (int j = 0; j < 2 * kSteps; ++j) {
    columns[j / 2].words[j % 2] =
        *reinterpret_cast<const std::uint32_t*>(from + places[j]);
  }
}

// A lane's bias, as what its sums begin with.
template <typename T>
FASTGEN_HD void load_bias(const RowsLane<T>& lane, const float* bias,
                          float (&sums)[kMatrices<T>][4]) {
  FASTGEN_UNROLL
  for (int m = 0; m < kMatrices<T>; ++m) {
    const auto row =
        load_pack<float, 4>(bias + ((lane.channel_warp * kMatrices<T> + m) * 8 + lane.group) * 4);
    FASTGEN_UNROLL
    for (int i = 0; i < 4; ++i) sums[m][i] = row.values[i];
  }
}

// Where masks take registers, too, there are none to hold the bias from unit to unit.
template <typename T, bool kMasked>
FASTGEN_HD void start_sums(const RowsConvArguments<T>& a, const RowsLane<T>& lane,
                           const float* shared_bias, const float (&bias)[kMatrices<T>][4],
                           float (&sums)[kMatrices<T>][4]) {
  if (kMasked && a.bias != nullptr) return load_bias(lane, shared_bias, sums);
  FASTGEN_UNROLL
  for (int m = 0; m < kMatrices<T>; ++m) {
    FASTGEN_UNROLL
    for (int i = 0; i < 4; ++i) sums[m][i] = kMasked ? 0.0f : bias[m][i];
  }
}

// A lane's two runs of the warp's first unit: where the first begins, how many exist, and how far
// behind the second is. Those of the next unit are `step` behind.
struct UnitRuns {
  std::int64_t offset;
  int pixels, second, step;
};

template <typename T>
FASTGEN_HD UnitRuns unit_runs(const RowsConvArguments<T>& a, const RowsLane<T>& lane,
                              const RowsUnits<T>& units, int channel, const EdgePlace& place) {
  const std::uint64_t image = static_cast<std::uint64_t>(static_cast<std::uint32_t>(place.image)) *
                              static_cast<std::uint32_t>(a.out_height * a.out_width * a.filters);
  const int log_spread = a.plan.log_spread;
  const int x = place.x + units.x + (2 * lane.in_group << log_spread);
  const int pixel = (place.y + units.y) * a.out_width + x;
  const int pixels = (a.out_width - x + log_spread) >> log_spread;
  return {static_cast<std::int64_t>(image) + (pixel * a.filters + channel),
          kept_in_register(channel < a.filters ? pixels : 0), a.filters << log_spread,
          units.step_y * a.out_width * a.filters};
}

// The masks of both runs, which are asked for before the products.
template <typename T>
FASTGEN_HD void load_masks(const T* output, const UnitRuns& runs,
                           Pack<T, kWideExtent<T>> (&masks)[2]) {
  FASTGEN_UNROLL
  for (int p = 0; p < 2; ++p) {
    if (p < runs.pixels) masks[p] = load_pack<T, kWideExtent<T>>(output + p * runs.second);
  }
}

template <typename T, bool kMasked>
FASTGEN_HD void store_unit(const RowsConvArguments<T>& a, T* result, const UnitRuns& runs,
                           const Pack<T, kWideExtent<T>> (&masks)[2],
                           const float (&sums)[kMatrices<T>][4]) {
  constexpr int V = kWideExtent<T>;
  FASTGEN_UNROLL
  for (int p = 0; p < 2; ++p) {
    if (p >= runs.pixels) break;
    float values[V];
    FASTGEN_UNROLL
    for (int e = 0; e < V; ++e) {
      const float sum = sums[e / 2][e % 2 * 2 + p];
      values[e] = kMasked ? leaky_relu_mask(sum, to_float(masks[p].values[e]), a.slope)
                          : leaky_relu(sum, a.slope);
    }
    store_pack<T, V>(result + p * runs.second, values);
  }
}

}  // namespace fastgen::cuda
