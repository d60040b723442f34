// The passes behind bias_leaky_relu.h, for host and device, and how the work is cut.
//
// All three operations are bound by memory: 2, 3 and 3 times the tensor's bytes go through. Each
// thread moves 16 bytes at a time (V elements) and holds a few such accesses in flight. Blocks are
// short and many: a multiprocessor that is done early takes another one.
//
// `flat`: no sum is wanted, and the V elements of an access have one shift, or V neighbouring ones,
//   or none. A thread takes a few accesses and is done.
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

// 16-byte accesses of a thread to each tensor in the flat pass, and at a time in the others.
template <bool kMask>
inline constexpr int kFlatUnroll = kMask ? 2 : 1;
inline constexpr int kWalkUnroll = 2;

constexpr std::int64_t kMostVectors = std::int64_t{1} << 30;  // what FastDivide can count

enum class BiasPass { flat, columns, planes };

struct BiasPlan {
  BiasPass pass;
  bool too_large;
  int threads;
  std::int64_t blocks;
  // flat
  std::uint32_t vectors;  // whole ones
  bool across;            // V neighbours have V channels, not one
  FastDivide by_run;      // vectors of one shift
  FastDivide by_groups;   // different shifts
  // flat and columns: elements behind the whole vectors, behind the whole rows
  std::int64_t rest;
  // columns
  std::int64_t period;      // elements
  std::int64_t whole_rows;  // of a period each
  std::int64_t tiles;       // blocks side by side
  int width;                // vectors of a tile
  int rows;                 // of threads in a tile
  FastDivide by_width;
  std::int64_t block_rows;  // of the matrix that a block takes
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

// How many of `steps` steps a block takes, all blocks together: where there are few steps, what
// gives every multiprocessor four blocks, but `least`; where there are many, `usual`; and more
// where otherwise the partial sums became too many.
inline std::int64_t steps_of_block(std::int64_t steps, int multiprocessors, std::int64_t least,
                                   std::int64_t usual) {
  constexpr std::int64_t kMostBlocks = 4096;
  const std::int64_t shared = (ceil_div(steps, std::int64_t{4} * multiprocessors) + 1) / 2 * 2;
  const std::int64_t few = shared < usual ? shared : usual;
  const std::int64_t enough = few > least ? few : least;
  const std::int64_t long_ones = ceil_div(steps, kMostBlocks);
  return enough > long_ones ? enough : long_ones;
}

// `unroll`: accesses of a thread in the flat pass.
inline BiasPlan bias_plan(std::int64_t outer, std::int64_t channels, std::int64_t inner, int V,
                          bool per_channel, bool sum, int multiprocessors, int unroll,
                          bool wide_shift = true) {
  BiasPlan plan{};
  const std::int64_t total = outer * channels * inner;
  const bool aligned_planes = inner % V == 0;
  plan.across = inner == 1 && channels % V == 0 && V > 1;
  plan.threads = kBiasThreads;
  const bool one_shift = !per_channel || aligned_planes || (plan.across && wide_shift);
  if (!sum && one_shift && total / V < kMostVectors) {
    plan.pass = BiasPass::flat;
    plan.vectors = static_cast<std::uint32_t>(total / V);
    plan.rest = total % V;
    if (per_channel) {
      plan.by_run = FastDivide(static_cast<std::uint32_t>(plan.across ? 1 : inner / V));
      plan.by_groups =
          FastDivide(static_cast<std::uint32_t>(plan.across ? channels / V : channels));
    }
    plan.blocks = ceil_div(ceil_div(total, V), std::int64_t{kBiasThreads} * unroll);
    return plan;
  }
  // Planes pay where at most a few percent of the threads meet a plane's ends.
  if (!per_channel || inner < (aligned_planes ? 8 : 32) * V) {
    plan.pass = BiasPass::columns;
    // Without channels to tell apart any period will do: one vector.
    const std::int64_t base = per_channel ? channels * inner : 1;
    const std::int64_t copies = V / common_power(base, V);
    plan.period = base * copies;
    plan.whole_rows = total / plan.period;
    plan.rest = total % plan.period;
    const std::int64_t vectors = plan.period / V;
    plan.tiles = ceil_div(vectors, kBiasThreads);
    plan.width = static_cast<int>(ceil_div(vectors, plan.tiles));
    plan.by_width = FastDivide(static_cast<std::uint32_t>(plan.width));
    plan.rows = plan.tiles == 1 ? kBiasThreads / plan.width : 1;
    plan.threads = static_cast<int>(ceil_div(plan.width * plan.rows, 32) * 32);
    const std::int64_t matrix_rows = ceil_div(total, plan.period);
    const std::int64_t steps = plan.tiles * ceil_div(matrix_rows, plan.rows);
    // The threads of a block that holds one row each write a partial sum for every column.
    const std::int64_t least = sum && plan.tiles > 1 ? 4 : 2;
    plan.block_rows =
        plan.rows * steps_of_block(steps, multiprocessors, least, 8);
    const std::int64_t splits = ceil_div(matrix_rows, plan.block_rows);
    plan.blocks = plan.tiles * splits;
    plan.partial_rows = plan.tiles == 1 ? splits : splits * copies;
    plan.partial_inner = inner;
  } else {
    plan.pass = BiasPass::planes;
    plan.plane_vectors = aligned_planes ? inner / V : inner / V + 2;
    const std::int64_t vectors = outer * plan.plane_vectors;
    if (vectors < kBiasThreads) plan.threads = static_cast<int>(ceil_div(vectors, 32) * 32);
    const std::int64_t steps = channels * ceil_div(vectors, plan.threads);
    plan.chunk =
        plan.threads * steps_of_block(steps, multiprocessors, 2, 4);
    const std::int64_t splits = ceil_div(vectors, plan.chunk);
    plan.blocks = channels * splits;
    plan.partial_rows = splits;
    plan.partial_inner = 1;
    plan.too_large =
        plan.plane_vectors >= kMostVectors || plan.chunk >= kMostVectors / 2;
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
  float values[V], shifts[V], signs[V];
  to_floats<T, V>(input, values);
  to_floats<T, V>(shift, shifts);
  if constexpr (kMask) to_floats<T, V>(output, signs);
  FASTGEN_UNROLL
  for (int v = 0; v < V; ++v) {
    const float y = kMask ? signs[v] : 0.0f;
    values[v] = bias_leaky_relu_element<kMask>(values[v], shifts[v], y, a.slope);
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

// V neighbours with the same shift.
template <typename T, int V>
FASTGEN_HD Pack<T, V> same_shifts(T shift) {
  Pack<T, V> pack;
  FASTGEN_UNROLL
  for (int v = 0; v < V; ++v) pack.values[v] = shift;
  hold_packed<T, V>(pack);
  return pack;
}

// -------------------------------------------------------------------------------------------- flat

// One thread of the `flat` pass, of which U accesses to each tensor are in flight.
template <typename T, int V, bool kMask, int U>
FASTGEN_HD void bias_flat(const BiasArguments<T>& a, std::int64_t block, int thread) {
  const BiasPlan& plan = a.plan;
  const std::uint32_t first = static_cast<std::uint32_t>(block) * (U * kBiasThreads) + thread;
  Pack<T, V> input[U], output[U], shift[U];
  FASTGEN_UNROLL
  for (int u = 0; u < U; ++u) {
    const std::uint32_t n = first + u * kBiasThreads;
    shift[u] = Pack<T, V>{};
    if (n >= plan.vectors) continue;
    const std::int64_t element = static_cast<std::int64_t>(n) * V;
    input[u] = load_pack<T, V>(a.input + element);
    if (kMask) output[u] = load_pack<T, V>(a.output + element);
  }
  if (a.shift != nullptr) {
    FASTGEN_UNROLL
    for (int u = 0; u < U; ++u) {
      const std::uint32_t run = plan.by_run.quotient(first + u * kBiasThreads);
      const std::uint32_t turn = plan.by_groups.quotient(run);
      const std::uint32_t group = run - turn * plan.by_groups.divisor;
      if (plan.across) {
        shift[u] = load_pack<T, V>(a.shift + group * V);
      } else {
        shift[u] = same_shifts<T, V>(a.shift[group]);
      }
    }
  }
  [[maybe_unused]] float sums[V];
  FASTGEN_UNROLL
  for (int u = 0; u < U; ++u) {
    const std::uint32_t n = first + u * kBiasThreads;
    const std::int64_t element = static_cast<std::int64_t>(n) * V;
    if (n >= plan.vectors) continue;
    bias_leaky_relu_vector<T, V, kMask, false>(a, element, input[u], output[u], shift[u], sums);
  }
  // The tensor may end inside a vector where nothing goes by channels: then there are no shifts.
  const std::uint32_t last = plan.vectors - first;
  if (V > 1 && plan.rest != 0 && last % kBiasThreads == 0 && last < U * kBiasThreads) {
    const std::int64_t element = static_cast<std::int64_t>(plan.vectors) * V;
    bias_leaky_relu_edge<T, V, kMask, false>(a, element, element, element + plan.rest,
                                             Pack<T, V>{}, sums);
  }
}

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
  hold_packed<T, V>(shift);
  return shift;
}

// Which columns and rows a block takes.
struct ColumnBlock {
  std::int64_t split;
  std::int64_t tile;
};

FASTGEN_HD ColumnBlock column_block(const BiasPlan& plan, std::int64_t block) {
  if (plan.tiles == 1) return {block, 0};
  const std::uint32_t split =
      static_cast<std::uint32_t>(block) / static_cast<std::uint32_t>(plan.tiles);
  return {split, block - split * plan.tiles};
}

// One thread of the `columns` pass. Its V sums come back in `sums`; false where it has no columns.
template <typename T, int V, bool kMask, bool kSum, int U>
FASTGEN_HD bool bias_columns(const BiasArguments<T>& a, std::int64_t block, int thread,
                             float (&sums)[V]) {
  const BiasPlan& plan = a.plan;
  FASTGEN_UNROLL
  for (int v = 0; v < V; ++v) sums[v] = 0.0f;
  const ColumnBlock at = column_block(plan, block);
  const int lane = static_cast<int>(plan.by_width.quotient(static_cast<std::uint32_t>(thread)));
  const std::int64_t column = (at.tile * plan.width + (thread - lane * plan.width)) * V;
  if (lane >= plan.rows || column >= plan.period) return false;

  // Of these rows all V elements exist.
  const std::int64_t whole = plan.whole_rows + (column + V <= plan.rest ? 1 : 0);
  const std::int64_t begin = at.split * plan.block_rows;
  const std::int64_t end = begin + plan.block_rows < whole ? begin + plan.block_rows : whole;
  const std::int64_t row = begin + lane;
  const std::int64_t stride = plan.rows * plan.period;
  std::int64_t element = row * plan.period + column;

  const Pack<T, V> shift = column_shifts<T, V>(a, column);
  // A block's rows are far below 2^31, even of the largest tensor.
  for (int left = static_cast<int>(end - row); left > 0; left -= U * plan.rows) {
    Pack<T, V> input[U], output[U];
    FASTGEN_UNROLL
    for (int u = 0; u < U; ++u) {
      if (u * plan.rows >= left) continue;
      input[u] = load_pack<T, V>(a.input + element + u * stride);
      if (kMask) output[u] = load_pack<T, V>(a.output + element + u * stride);
    }
    FASTGEN_UNROLL
    for (int u = 0; u < U; ++u) {
      if (u * plan.rows >= left) continue;
      bias_leaky_relu_vector<T, V, kMask, kSum>(a, element + u * stride, input[u], output[u],
                                                shift, sums);
    }
    element += U * stride;
  }
  // The tensor ends inside one vector at most; its columns' first thread takes what is there.
  if (V > 1 && row == 0 && column < plan.rest && column + V > plan.rest) {
    const std::int64_t last = plan.whole_rows * plan.period;
    bias_leaky_relu_edge<T, V, kMask, kSum>(a, last + column, 0, last + plan.rest, shift, sums);
  }
  return true;
}

// Where the sums of a thread stand among those of its block: as the elements stand in memory. Only
// a block that holds whole periods has anything to add up.
template <int V>
FASTGEN_HD void put_columns(float* tree, int thread, const float (&sums)[V]) {
  constexpr int kWide = V < 4 ? V : 4;
  FASTGEN_UNROLL
  for (int v = 0; v < V; v += kWide) {
    float values[kWide];
    FASTGEN_UNROLL
    for (int i = 0; i < kWide; ++i) values[i] = sums[v + i];
    store_shared(tree + thread * V + v, values);
  }
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
  const ColumnBlock at = column_block(a.plan, block);
  const std::int64_t column = (at.tile * a.plan.width + thread) * V;
  constexpr int kWide = V < 4 ? V : 4;
  FASTGEN_UNROLL
  for (int v = 0; v < V; v += kWide) {
    Pack<float, kWide> pack;
    FASTGEN_UNROLL
    for (int i = 0; i < kWide; ++i) pack.values[i] = sums[v + i];
    store_pack<float, kWide>(a.partials + at.split * a.plan.period + column + v, pack);
  }
}

// ------------------------------------------------------------------------------------------ planes

// One thread of the `planes` pass; returns its part of the channel's sum.
template <typename T, int V, bool kMask, bool kSum, int U>
FASTGEN_HD float bias_planes(const BiasArguments<T>& a, std::int64_t block, int thread) {
  const BiasPlan& plan = a.plan;
  const std::uint32_t split =
      static_cast<std::uint32_t>(block) / static_cast<std::uint32_t>(a.channels);
  const std::int64_t channel = block - split * a.channels;
  const Pack<T, V> shift = same_shifts<T, V>(a.shift != nullptr ? a.shift[channel] : T{});
  float sums[V];
  FASTGEN_UNROLL
  for (int v = 0; v < V; ++v) sums[v] = 0.0f;

  // Vectors of this channel are counted through all its planes; inside a block 32 bits suffice.
  const std::int64_t vectors = a.outer * plan.plane_vectors;
  const std::int64_t begin = split * plan.chunk;
  const std::int64_t left = vectors - begin;
  const std::int64_t first_plane = begin / plan.plane_vectors;
  const std::uint32_t skipped =
      static_cast<std::uint32_t>(begin - first_plane * plan.plane_vectors);
  const std::uint32_t end =
      skipped + static_cast<std::uint32_t>(left < plan.chunk ? left : plan.chunk);
  const std::uint32_t step = static_cast<std::uint32_t>(plan.threads);
  const std::int64_t origin = (first_plane * a.channels + channel) * a.inner;
  const std::int64_t stride = a.channels * a.inner;

  if (V == 1 || a.inner % V == 0) {
    for (std::uint32_t n = skipped + thread; n < end; n += U * step) {
      Pack<T, V> input[U], output[U];
      std::int64_t element[U];
      FASTGEN_UNROLL
      for (int u = 0; u < U; ++u) {
        const std::uint32_t planes = plan.by_plane.quotient(n + u * step);
        const std::uint32_t vector = n + u * step - planes * plan.by_plane.divisor;
        element[u] = origin + planes * stride + static_cast<std::int64_t>(vector) * V;
        if (n + u * step >= end) continue;
        input[u] = load_pack<T, V>(a.input + element[u]);
        if (kMask) output[u] = load_pack<T, V>(a.output + element[u]);
      }
      FASTGEN_UNROLL
      for (int u = 0; u < U; ++u) {
        if (n + u * step >= end) continue;
        bias_leaky_relu_vector<T, V, kMask, kSum>(a, element[u], input[u], output[u], shift, sums);
      }
    }
  } else {
    for (std::uint32_t n = skipped + thread; n < end; n += step) {
      const std::uint32_t planes = plan.by_plane.quotient(n);
      const std::uint32_t vector = n - planes * plan.by_plane.divisor;
      // Where the plane begins, and where the vector does: up to V - 1 elements earlier.
      const std::int64_t low = origin + planes * stride;
      const std::int64_t element = low / V * V + static_cast<std::int64_t>(vector) * V;
      if (element >= low && element + V <= low + a.inner) {
        const Pack<T, V> input = load_pack<T, V>(a.input + element);
        Pack<T, V> output;
        if (kMask) output = load_pack<T, V>(a.output + element);
        bias_leaky_relu_vector<T, V, kMask, kSum>(a, element, input, output, shift, sums);
      } else {
        bias_leaky_relu_edge<T, V, kMask, kSum>(a, element, low, low + a.inner, shift, sums);
      }
    }
  }

  float sum = 0.0f;
  FASTGEN_UNROLL
  for (int v = 0; v < V; ++v) sum += sums[v];
  return sum;
}

}  // namespace fastgen::cuda
