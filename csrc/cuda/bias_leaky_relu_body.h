// The two passes behind bias_leaky_relu.h, for host and device, and how the work is cut.
//
// All three operations are bound by memory: 2, 3 and 3 times the tensor's bytes go through. Each
// thread moves 16 bytes at a time (V elements) and holds a few such accesses in flight.
//
// `columns`: memory as a matrix whose rows repeat every `period` elements, a multiple of both
//   channels * inner and V. A thread keeps its V columns and walks down the rows, so the channels
//   of its elements never change: shifts and sums stay in registers, and nothing is divided in the
//   loop. For channels_last (inner = 1) and small planes, of any odd extent.
// `planes`: a block takes one channel and walks over its planes of `inner` neighbours. Where a
//   plane does not start or end on a 16-byte boundary, its first and last vector are shared with
//   the neighbouring planes and go element by element.
#pragma once

#include "cuda/partial_sums_body.h"
#include "formulas.h"

namespace fastgen::cuda {

constexpr int kBiasThreads = 256;

// Blocks that a multiprocessor holds at once: 85 or 64 registers a thread. Either way 768 threads
// or more with 64 bytes in flight each, 48 KiB, hide the latency of memory.
constexpr int bias_resident(bool sum) { return sum ? 3 : 4; }

constexpr std::int64_t kMostVectors = std::int64_t{1} << 30;  // what FastDivide can count

struct BiasPlan {
  bool columns;
  bool too_large;
  int threads;
  std::int64_t splits;  // blocks that share the same columns, or the same channel
  std::int64_t blocks;
  // columns
  std::int64_t period;      // elements
  std::int64_t whole_rows;  // of a period each
  std::int64_t rest;        // elements behind them
  std::int64_t tiles;    // blocks side by side
  int width;             // vectors of a tile
  int rows;              // of threads in a tile
  // planes
  std::int64_t plane_vectors;  // that touch a plane
  std::int64_t chunk;          // vectors of one channel that a block takes
  FastDivide by_plane;
  // the partial sums, as sum_partials takes them
  std::int64_t partial_rows;
  std::int64_t partial_inner;
};

template <typename T>
struct BiasArguments {
  const T* input;
  const T* shift;
  const T* output;
  T* result;
  float* partials;
  std::int64_t outer;
  std::int64_t channels;
  std::int64_t inner;
  float slope;
  BiasPlan plan;
};

// Greatest common divisor of an extent and a vector width, which is a power of two.
inline std::int64_t common_power(std::int64_t extent, int width) {
  std::int64_t common = width;
  while (extent % common != 0) common /= 2;
  return common;
}

// How many blocks share one piece of work of `steps` steps per thread, when there are `pieces` such
// pieces: enough to fill the chip, and beyond that none shorter than `longest`, `shortest` steps.
inline std::int64_t split_count(std::int64_t pieces, std::int64_t steps, std::int64_t fill,
                                std::int64_t shortest, std::int64_t longest) {
  const std::int64_t wanted = ceil_div(fill, pieces);
  const std::int64_t most = ceil_div(steps, shortest);
  const std::int64_t splits = wanted < most ? wanted : most;
  const std::int64_t least = ceil_div(steps, longest);
  return splits > least ? splits : (least > 1 ? least : 1);
}

inline BiasPlan bias_plan(std::int64_t outer, std::int64_t channels, std::int64_t inner, int V,
                          bool per_channel, bool sum, int multiprocessors) {
  BiasPlan plan{};
  // Without channels to tell apart any period will do: one vector.
  const std::int64_t base = per_channel ? channels * inner : 1;
  const std::int64_t fill = static_cast<std::int64_t>(multiprocessors) * bias_resident(sum);
  const bool aligned_planes = inner % V == 0;
  // Planes pay where at most a few percent of the threads meet a plane's ends.
  plan.columns = !per_channel || inner < (aligned_planes ? 8 : 32) * V;
  if (plan.columns) {
    const std::int64_t copies = V / common_power(base, V);
    const std::int64_t total = outer * channels * inner;
    plan.period = base * copies;
    plan.whole_rows = total / plan.period;
    plan.rest = total % plan.period;
    const std::int64_t vectors = plan.period / V;
    plan.tiles = ceil_div(vectors, kBiasThreads);
    plan.width = static_cast<int>(ceil_div(vectors, plan.tiles));
    plan.rows = plan.tiles == 1 ? kBiasThreads / plan.width : 1;
    plan.threads = static_cast<int>(ceil_div(plan.width * plan.rows, 32) * 32);
    const std::int64_t steps = ceil_div(ceil_div(total, plan.period), plan.rows);
    // A block that sums writes its columns once more: let it read at least 8 rows for that.
    plan.splits = split_count(plan.tiles, steps, fill, sum ? 8 : 1, 32);
    plan.blocks = plan.tiles * plan.splits;
    plan.partial_rows = plan.tiles == 1 ? plan.splits : plan.splits * copies;
    plan.partial_inner = inner;
  } else {
    plan.plane_vectors = aligned_planes ? inner / V : inner / V + 2;
    const std::int64_t vectors = outer * plan.plane_vectors;
    plan.threads = vectors >= kBiasThreads ? kBiasThreads
                                           : static_cast<int>(ceil_div(vectors, 32) * 32);
    const std::int64_t steps = ceil_div(vectors, plan.threads);
    plan.splits = split_count(channels, steps, fill, 1, 32);
    plan.chunk = ceil_div(vectors, plan.splits);
    plan.blocks = channels * plan.splits;
    plan.partial_rows = plan.splits;
    plan.partial_inner = 1;
    plan.too_large = plan.plane_vectors >= kMostVectors;
    if (!plan.too_large) {
      plan.by_plane = FastDivide(static_cast<std::uint32_t>(plan.plane_vectors));
    }
  }
  plan.too_large = plan.too_large || plan.blocks >= std::int64_t{1} << 31;
  return plan;
}

// The element itself; also what the sum adds, before it is rounded.
template <bool kMask>
FASTGEN_HD float bias_leaky_relu_element(float x, float shift, float y, float slope) {
  return kMask ? leaky_relu_mask(x + shift, y, slope) : leaky_relu(x + shift, slope);
}

// V neighbours whose channels have the shifts given; adds what it wrote to `sums`.
template <typename T, int V, bool kMask, bool kSum>
FASTGEN_HD void bias_leaky_relu_vector(const BiasArguments<T>& a, std::int64_t element,
                                       const Pack<T, V>& input, const Pack<T, V>& output,
                                       const Pack<T, V>& shift, float (&sums)[V]) {
  float values[V];
  FASTGEN_UNROLL
  for (int v = 0; v < V; ++v) {
    const float y = kMask ? to_float(output.values[v]) : 0.0f;
    values[v] =
        bias_leaky_relu_element<kMask>(to_float(input.values[v]), to_float(shift.values[v]), y,
                                       a.slope);
    if (kSum) sums[v] += values[v];
  }
  store_pack<T, V>(a.result + element, values);
}

// The elements of [begin, end) among the V from `element` on, one by one.
template <typename T, int V, bool kMask, bool kSum>
FASTGEN_HD void bias_leaky_relu_edge(const BiasArguments<T>& a, std::int64_t element,
                                     std::int64_t begin, std::int64_t end,
                                     const Pack<T, V>& shift, float (&sums)[V]) {
  FASTGEN_UNROLL
  for (int v = 0; v < V; ++v) {
    const std::int64_t e = element + v;
    if (e < begin || e >= end) continue;
    const float y = kMask ? to_float(a.output[e]) : 0.0f;
    const float value = bias_leaky_relu_element<kMask>(
        to_float(a.input[e]), to_float(shift.values[v]), y, a.slope);
    if (kSum) sums[v] += value;
    a.result[e] = from_float<T>(value);
  }
}

// Accesses in flight per thread: four of 16 bytes, over one or two tensors.
template <bool kMask>
inline constexpr int kBiasUnroll = kMask ? 2 : 4;

// ----------------------------------------------------------------------------------------- columns

// The shifts of V neighbouring columns; zeros where there is none.
template <typename T, int V>
FASTGEN_HD Pack<T, V> column_shifts(const BiasArguments<T>& a, std::int64_t column) {
  Pack<T, V> shift{};
  if (a.shift == nullptr) return shift;
  // 64-bit divisions are long: most columns need none.
  const std::int64_t turn = a.inner == 1 ? column : column / a.inner;
  std::int64_t place = column - turn * a.inner;
  std::int64_t channel = turn < a.channels ? turn : turn % a.channels;
  FASTGEN_UNROLL
  for (int v = 0; v < V; ++v) {
    shift.values[v] = a.shift[channel];
    if (++place < a.inner) continue;
    place = 0;
    if (++channel == a.channels) channel = 0;
  }
  return shift;
}

// One thread of the `columns` pass. Its V sums come back in `sums`; false where it has no columns.
template <typename T, int V, bool kMask, bool kSum>
FASTGEN_HD bool bias_columns(const BiasArguments<T>& a, std::int64_t block, int thread,
                             float (&sums)[V]) {
  constexpr int U = kBiasUnroll<kMask>;
  const BiasPlan& plan = a.plan;
  FASTGEN_UNROLL
  for (int v = 0; v < V; ++v) sums[v] = 0.0f;
  const std::uint32_t split =
      static_cast<std::uint32_t>(block) / static_cast<std::uint32_t>(plan.tiles);
  const std::int64_t tile = block - split * plan.tiles;
  const int lane = thread / plan.width;
  const std::int64_t column = (tile * plan.width + (thread - lane * plan.width)) * V;
  if (lane >= plan.rows || column >= plan.period) return false;

  const Pack<T, V> shift = column_shifts<T, V>(a, column);

  // Of these rows all V elements exist.
  const std::int64_t whole = plan.whole_rows + (column + V <= plan.rest ? 1 : 0);
  const std::int64_t step = plan.splits * plan.rows;
  const std::int64_t stride = step * plan.period;
  std::int64_t row = static_cast<std::int64_t>(split) * plan.rows + lane;
  std::int64_t element = row * plan.period + column;
  const bool first = row == 0;
  for (; row < whole; row += U * step, element += U * stride) {
    Pack<T, V> input[U], output[U];
    FASTGEN_UNROLL
    for (int u = 0; u < U; ++u) {
      if (row + u * step >= whole) continue;
      input[u] = load_pack<T, V>(a.input + element + u * stride);
      if (kMask) output[u] = load_pack<T, V>(a.output + element + u * stride);
    }
    FASTGEN_UNROLL
    for (int u = 0; u < U; ++u) {
      if (row + u * step >= whole) continue;
      bias_leaky_relu_vector<T, V, kMask, kSum>(a, element + u * stride, input[u], output[u],
                                                shift, sums);
    }
  }
  // The tensor ends inside one vector at most; its columns' first thread takes what is there.
  if (V > 1 && first && column < plan.rest && column + V > plan.rest) {
    const std::int64_t last = plan.whole_rows * plan.period;
    bias_leaky_relu_edge<T, V, kMask, kSum>(a, last + column, 0, last + plan.rest, shift, sums);
  }
  return true;
}

// Where the sums of a thread stand among those of its block: as the elements stand in memory. Only
// a block that holds whole periods has anything to add up.
template <int V>
FASTGEN_HD void put_columns(float* tree, int thread, const float (&sums)[V]) {
  FASTGEN_UNROLL
  for (int v = 0; v < V; ++v) tree[thread * V + v] = sums[v];
}

template <typename T>
FASTGEN_HD int column_base(const BiasArguments<T>& a) {
  return static_cast<int>(a.channels * a.inner);
}

template <typename T, int V>
FASTGEN_HD int column_copies(const BiasArguments<T>& a) {
  return a.plan.width * a.plan.rows * V / column_base(a);
}

template <typename T>
FASTGEN_HD void write_tree_columns(const BiasArguments<T>& a, const float* tree,
                                   std::int64_t block, int thread) {
  const int base = column_base(a);
  for (int i = thread; i < base; i += a.plan.threads) a.partials[block * base + i] = tree[i];
}

template <typename T, int V>
FASTGEN_HD void write_tile_columns(const BiasArguments<T>& a, std::int64_t block, int thread,
                                   const float (&sums)[V]) {
  const std::int64_t split = block / a.plan.tiles;
  const std::int64_t column =
      ((block - split * a.plan.tiles) * a.plan.width + thread) * V;
  FASTGEN_UNROLL
  for (int v = 0; v < V; ++v) a.partials[split * a.plan.period + column + v] = sums[v];
}

// ------------------------------------------------------------------------------------------ planes

// One thread of the `planes` pass; returns its part of the channel's sum.
template <typename T, int V, bool kMask, bool kSum>
FASTGEN_HD float bias_planes(const BiasArguments<T>& a, std::int64_t block, int thread) {
  constexpr int U = kBiasUnroll<kMask>;
  const BiasPlan& plan = a.plan;
  const std::uint32_t split =
      static_cast<std::uint32_t>(block) / static_cast<std::uint32_t>(a.channels);
  const std::int64_t channel = block - split * a.channels;

  const T bias = a.shift != nullptr ? a.shift[channel] : T{};
  Pack<T, V> shift;
  float sums[V];
  FASTGEN_UNROLL
  for (int v = 0; v < V; ++v) {
    shift.values[v] = bias;
    sums[v] = 0.0f;
  }

  // Vectors of this channel are counted through all its planes; inside a block 32 bits suffice.
  const std::int64_t vectors = a.outer * plan.plane_vectors;
  const std::int64_t begin = split * plan.chunk;
  if (begin >= vectors) return 0.0f;
  const std::int64_t left = vectors - begin;
  const std::int64_t first_plane = begin / plan.plane_vectors;
  const std::uint32_t skipped =
      static_cast<std::uint32_t>(begin - first_plane * plan.plane_vectors);
  const std::uint32_t end =
      skipped + static_cast<std::uint32_t>(left < plan.chunk ? left : plan.chunk);
  const std::uint32_t step = static_cast<std::uint32_t>(plan.threads);

  [[maybe_unused]] const bool aligned = a.inner % V == 0;
  // Where the plane of a vector begins, and where the vector does: up to V - 1 elements earlier.
  const auto find = [&](std::uint32_t count, std::int64_t& element) {
    const std::uint32_t planes = plan.by_plane.quotient(count);
    const std::uint32_t vector = count - planes * plan.by_plane.divisor;
    const std::int64_t low = ((first_plane + planes) * a.channels + channel) * a.inner;
    element = low / V * V + static_cast<std::int64_t>(vector) * V;
    return low;
  };

  for (std::uint32_t n = skipped + thread; n < end; n += U * step) {
    Pack<T, V> input[U], output[U];
    std::int64_t element[U];
    bool whole[U];
    FASTGEN_UNROLL
    for (int u = 0; u < U; ++u) {
      const std::int64_t low = find(n + u * step, element[u]);
      whole[u] = n + u * step < end && element[u] >= low && element[u] + V <= low + a.inner;
      if (!whole[u]) continue;
      input[u] = load_pack<T, V>(a.input + element[u]);
      if (kMask) output[u] = load_pack<T, V>(a.output + element[u]);
    }
    FASTGEN_UNROLL
    for (int u = 0; u < U; ++u) {
      if (!whole[u]) continue;
      bias_leaky_relu_vector<T, V, kMask, kSum>(a, element[u], input[u], output[u], shift, sums);
    }
    if constexpr (V > 1) {
      if (aligned) continue;
      for (int u = 0; u < U && n + u * step < end; ++u) {  // found again: few threads come here
        std::int64_t start;
        const std::int64_t low = find(n + u * step, start);
        if (start >= low && start + V <= low + a.inner) continue;
        bias_leaky_relu_edge<T, V, kMask, kSum>(a, start, low, low + a.inner, shift, sums);
      }
    }
  }

  float sum = 0.0f;
  FASTGEN_UNROLL
  for (int v = 0; v < V; ++v) sum += sums[v];
  return sum;
}

}  // namespace fastgen::cuda
