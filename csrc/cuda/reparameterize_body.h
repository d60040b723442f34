// The passes behind reparameterize.h, for host and device, and how the work is cut.
//
// Bytes per element: 3 times its size forward, 5 times backward. In 16 bits that leaves a GPU 40 to
// 80 instructions for it, so what is the same for all units of a thread is computed once, and the
// results' precision decides which formulas make the noise. Four neighbours in row-major order
// share a counter of the generator, so a thread always takes whole groups of four:
//
// `rows`: every sample is one stretch of memory, of whole vectors. A thread takes 16 bytes of it at
//   a time, one or two groups. Samples that follow each other are cut as if they were one, but where
//   a sum over each is wanted.
// `cut_rows`: the same with samples of any length. Groups count from the first sample; the vector
//   that two of them share is taken once for each, element by element.
// `tiles`: anything else, channels_last above all, where the four numbers of a group stand a pixel
//   apart. A thread takes a group for each of V neighbouring channels, so that its four accesses
//   are V elements wide; V = 1 takes any strides and any alignment.
//
// A sample is shared by `lanes` threads of a block, and by `splits` blocks; a block takes several
// samples where they are short.
#pragma once

#include <type_traits>

#include "cuda/reparameterize.h"
#include "formulas.h"

namespace fastgen::cuda {

constexpr int kNoiseBits = 7;
constexpr int kNoiseThreads = 1 << kNoiseBits;
constexpr unsigned kWarp = 32;
constexpr int kTileChannels = 4;

enum class NoisePass { rows, cut_rows, wide_tiles, tiles };

struct NoisePlan {
  NoisePass pass;
  bool too_large;
  std::int64_t samples;  // all as one where they follow each other and none is summed up
  std::int64_t units;    // of work in a sample: vectors, or groups of V channels
  std::int64_t splits;   // blocks that share a sample
  std::int64_t blocks;
  int lanes;  // threads of a block that share a sample, a power of two: 2^lane_bits
  int lane_bits;
  FastDivide by_splits;
  // rows
  FastDivide by_sample;  // vectors of a sample
  // tiles
  bool channels_first;  // whether neighbouring threads take neighbouring channels
  FastDivide by_inner;  // the extent of whatever neighbouring threads take
};

template <typename T>
struct NoiseArguments {
  const T* mean;
  const T* logvar;
  const T* grad_z;
  const float* grad_kl;
  std::int64_t grad_kl_stride;
  const std::int64_t* seed;
  T* result;
  T* grad_logvar;
  float* kl;
  float* partials;
  Strides mean_strides, logvar_strides, grad_z_strides, result_strides, grad_logvar_strides;
  std::int64_t samples;
  std::int64_t channels;
  std::int64_t positions;
  NoisePlan plan;
};

// -------------------------------------------------------------------------------------------- plan

// Calls f(pointer, strides) for every tensor of the call that is there, until it says no.
template <typename F>
bool all_tensors(const ReparameterizeCall& call, F f) {
  const bool backward = call.kind == Reparameterization::backward;
  return f(call.mean, call.mean_strides) && f(call.logvar, call.logvar_strides) &&
         f(call.result, call.result_strides) &&
         (call.grad_z == nullptr || f(call.grad_z, call.grad_z_strides)) &&
         (!backward || f(call.grad_logvar, call.grad_logvar_strides));
}

inline NoisePass noise_pass(const ReparameterizeCall& call, int element_size) {
  const std::int64_t row = call.channels * call.positions;
  if (row == 0) return NoisePass::rows;
  const int V = 16 / element_size;
  const bool rows = all_tensors(call, [&](const void* pointer, const Strides& s) {
    const bool stretch = (call.positions == 1 || s.position == 1) &&
                         (call.channels == 1 || s.channel == call.positions);
    // From sample to sample memory and the count of elements must move by whole vectors apart.
    const bool in_step = call.samples == 1 || (s.sample - row) % V == 0;
    return stretch && in_step && is_aligned(pointer, 16);
  });
  if (rows) {
    // Groups and vectors of 32 bits.
    constexpr std::int64_t kHalf = std::int64_t{1} << 31;
    const bool countable =
        call.samples < kHalf && row / 4 < kHalf && call.samples * (row / 4) < 2 * kHalf;
    return row % V == 0 && countable ? NoisePass::rows : NoisePass::cut_rows;
  }

  const bool wide = call.channels % kTileChannels == 0 && call.positions % 4 == 0 &&
                    all_tensors(call, [&](const void* pointer, const Strides& s) {
                      return s.channel == 1 && s.position % kTileChannels == 0 &&
                             (call.samples == 1 || s.sample % kTileChannels == 0) &&
                             is_aligned(pointer, kTileChannels * element_size);
                    });
  return wide ? NoisePass::wide_tiles : NoisePass::tiles;
}

inline NoisePlan noise_plan(const ReparameterizeCall& call, int element_size,
                            int multiprocessors) {
  NoisePlan plan{};
  plan.pass = noise_pass(call, element_size);
  const int V = 16 / element_size;
  const std::int64_t row = call.channels * call.positions;
  plan.samples = call.samples;
  if (plan.pass == NoisePass::rows) {
    plan.units = row / V;
    plan.by_sample = FastDivide(static_cast<std::uint32_t>(plan.units > 0 ? plan.units : 1));
    const bool dense = all_tensors(call, [&](const void*, const Strides& s) {
      return call.samples == 1 || s.sample == row;
    });
    if (dense && call.kind != Reparameterization::sample_kl &&
        call.samples * plan.units < std::int64_t{1} << 31) {
      plan.units *= call.samples;
      plan.samples = 1;
    }
  } else if (plan.pass == NoisePass::cut_rows) {
    plan.units = row % V == 0 || call.samples == 1 ? ceil_div(row, V) : row / V + 2;
  } else {
    const bool wide = plan.pass == NoisePass::wide_tiles;
    const std::int64_t columns = call.channels / (wide ? kTileChannels : 1);
    const std::int64_t groups =
        call.positions % 4 == 0 ? call.positions / 4 : call.positions / 4 + 2;
    plan.channels_first = call.positions == 1 || call.result_strides.position != 1;
    plan.units = columns * groups;
    plan.too_large = plan.units >= std::int64_t{1} << 31;
    const std::int64_t inner = plan.channels_first ? columns : groups;
    if (!plan.too_large) plan.by_inner = FastDivide(static_cast<std::uint32_t>(inner));
  }

  // Short samples: as few lanes as keep the chip full, so that few are idle, but 8 for whole
  // sectors of memory.
  const std::int64_t resident = static_cast<std::int64_t>(multiprocessors) * 2048;
  while (plan.lane_bits < kNoiseBits && (1 << plan.lane_bits) < plan.units) ++plan.lane_bits;
  while (plan.lane_bits > 3 && (plan.samples << (plan.lane_bits - 1)) >= resident) {
    --plan.lane_bits;
  }
  plan.lanes = 1 << plan.lane_bits;
  // Long ones: all threads of as many blocks as keep it full. For a divergence only about half
  // full, which is what its registers allow, and longer steps, as another kernel adds what several
  // blocks leave.
  plan.splits = 1;
  if (plan.lanes == kNoiseThreads) {
    const bool divergence = call.kind == Reparameterization::sample_kl;
    const std::int64_t steps = ceil_div(plan.units, plan.lanes);
    const std::int64_t room = resident / kNoiseThreads / (divergence ? 2 : 1);
    const std::int64_t wanted = divergence ? (room + plan.samples / 2) / plan.samples
                                           : ceil_div(room, plan.samples);
    const std::int64_t least = ceil_div(steps, divergence ? 64 : 8);
    plan.splits = wanted > least ? (wanted < steps ? wanted : steps) : least;
  }
  plan.blocks = ceil_div(plan.samples, kNoiseThreads >> plan.lane_bits) * plan.splits;
  plan.too_large = plan.too_large || plan.blocks >= std::int64_t{1} << 31;
  if (!plan.too_large) plan.by_splits = FastDivide(static_cast<std::uint32_t>(plan.splits));
  return plan;
}

// ---------------------------------------------------------------------------------------- element

// Whether results of T are so short that the special function unit makes their noise.
template <typename T>
inline constexpr bool kCoarseNoise = !std::is_same_v<T, float>;

// V neighbours in memory at an offset, or those of them from `begin` until `end`; zeros elsewhere.
template <typename T, int V>
FASTGEN_HD Pack<T, V> noise_load(const T* tensor, std::int64_t offset, int begin, int end) {
  if (begin <= 0 && end >= V) return load_pack<T, V>(tensor + offset);
  Pack<T, V> pack{};
  FASTGEN_UNROLL
  for (int v = 0; v < V; ++v) {
    if (v >= begin && v < end) pack.values[v] = tensor[offset + v];
  }
  return pack;
}

template <typename T, int V>
FASTGEN_HD void noise_store(T* tensor, std::int64_t offset, int begin, int end,
                            const float (&values)[V]) {
  if (begin <= 0 && end >= V) return store_pack<T, V>(tensor + offset, values);
  FASTGEN_UNROLL
  for (int v = 0; v < V; ++v) {
    if (v >= begin && v < end) tensor[offset + v] = from_float<T>(values[v]);
  }
}

// Which gradients a backward pass takes in.
enum class Through { both, z, kl };

// Whether the noise is asked for.
FASTGEN_HD constexpr bool takes_noise(Through through) { return through != Through::kl; }

// V elements that are neighbours in every tensor.
template <typename T, int V>
struct NoiseOperands {
  Pack<T, V> mean, logvar, grad_z;
};

// Those of them that the pass asks for. `at` gives the offset of the first one in a tensor; of the
// elements [begin, end) are the sample's.
template <typename T, int V, Reparameterization kKind, Through kThrough, typename Offset>
FASTGEN_HD NoiseOperands<T, V> noise_operands(const NoiseArguments<T>& a, Offset at, int begin,
                                              int end) {
  constexpr bool kBackward = kKind == Reparameterization::backward;
  NoiseOperands<T, V> o{};
  o.logvar = noise_load<T, V>(a.logvar, at(a.logvar_strides), begin, end);
  if constexpr (!kBackward || kThrough != Through::z) {
    o.mean = noise_load<T, V>(a.mean, at(a.mean_strides), begin, end);
  }
  if constexpr (kBackward && takes_noise(kThrough)) {
    o.grad_z = noise_load<T, V>(a.grad_z, at(a.grad_z_strides), begin, end);
  }
  return o;
}

// Their results. Returns kl and the elements' terms of the divergence.
template <typename T, int V, Reparameterization kKind, Through kThrough, typename Offset>
FASTGEN_HD float noise_results(const NoiseArguments<T>& a, Offset at, int begin, int end,
                               const NoiseOperands<T, V>& o, float grad_kl, const float (&eps)[V],
                               float kl) {
  float mean[V], logvar[V], grad_z[V];
  unpack(o.mean, mean);
  unpack(o.logvar, logvar);
  unpack(o.grad_z, grad_z);
  float result[V], grad_logvar[V];
  FASTGEN_UNROLL
  for (int v = 0; v < V; ++v) {
    const NoiseElement<float> element = noise_element<kKind, float, kCoarseNoise<T>>(
        mean[v], logvar[v], grad_z[v], grad_kl, kThrough != Through::z, eps[v],
        takes_noise(kThrough));
    result[v] = element.result;
    grad_logvar[v] = element.grad_logvar;
    kl += element.kl;
  }
  if constexpr (kKind == Reparameterization::sample_kl && kCoarseNoise<T>) {
    kl += coarse_kl_terms(mean, logvar, begin, end);
  }
  noise_store<T, V>(a.result, at(a.result_strides), begin, end, result);
  if constexpr (kKind == Reparameterization::backward) {
    noise_store<T, V>(a.grad_logvar, at(a.grad_logvar_strides), begin, end, grad_logvar);
  }
  return kl;
}

// The noise of `Groups` groups of four; zeros where nothing asks for it. The generator saves where
// groups are counted in 32 bits.
template <typename T, int Groups, Through kThrough, typename Count>
FASTGEN_HD void noise_groups(const PhiloxKeys& keys, Count group, float (&eps)[4 * Groups]) {
  FASTGEN_UNROLL
  for (int g = 0; g < Groups; ++g) {
    float values[4] = {0.0f, 0.0f, 0.0f, 0.0f};
    if constexpr (takes_noise(kThrough)) {
      normals<kCoarseNoise<T>>(keys, static_cast<Count>(group + g), values);
    }
    FASTGEN_UNROLL
    for (int k = 0; k < 4; ++k) eps[4 * g + k] = values[k];
  }
}

// ------------------------------------------------------------------------------------------- units

// One vector of a sample of whole ones, whose first element the tensors of `a` begin with; `group`
// is its first one. Returns kl and what its elements add to that.
template <typename T, Reparameterization kKind, Through kThrough>
FASTGEN_HD float noise_row_unit(const NoiseArguments<T>& a, const PhiloxKeys& keys,
                                std::uint32_t unit, std::uint32_t group, float grad_kl,
                                float kl) {
  constexpr int V = kWideExtent<T>;
  const auto at = [&](const Strides&) { return static_cast<std::int64_t>(unit) * V; };
  const auto operands = noise_operands<T, V, kKind, kThrough>(a, at, 0, V);
  float eps[V];
  noise_groups<T, V / 4, kThrough, std::uint32_t>(keys, group, eps);
  return noise_results<T, V, kKind, kThrough>(a, at, 0, V, operands, grad_kl, eps, kl);
}

// One vector of a sample that is one stretch of memory, and may share its first and last vector.
template <typename T, Reparameterization kKind, Through kThrough>
FASTGEN_HD float noise_cut_row_unit(const NoiseArguments<T>& a, const PhiloxKeys& keys,
                                    std::int64_t sample, std::int64_t unit, float grad_kl,
                                    float kl) {
  constexpr int V = kWideExtent<T>;
  const std::int64_t row = a.channels * a.positions;
  const std::int64_t start = sample * row;
  const std::int64_t vector = start / V + unit;
  const std::int64_t place = vector * V - start;  // in the sample; below 0 where it begins later
  const std::int64_t left = row - place;
  if (left <= 0) return kl;
  const int begin = place < 0 ? static_cast<int>(-place) : 0;
  const int end = left < V ? static_cast<int>(left) : V;

  const auto at = [&](const Strides& strides) { return sample * strides.sample + place; };
  const auto operands = noise_operands<T, V, kKind, kThrough>(a, at, begin, end);
  float eps[V];
  noise_groups<T, V / 4, kThrough, std::int64_t>(keys, vector * (V / 4), eps);
  return noise_results<T, V, kKind, kThrough>(a, at, begin, end, operands, grad_kl, eps, kl);
}

// A group of four positions for each of V neighbouring channels.
template <typename T, int V, Reparameterization kKind, Through kThrough>
FASTGEN_HD float noise_tile_unit(const NoiseArguments<T>& a, const PhiloxKeys& keys,
                                 std::int64_t sample, std::int64_t unit, float grad_kl,
                                 float kl) {
  const std::uint32_t outer = a.plan.by_inner.quotient(static_cast<std::uint32_t>(unit));
  const std::uint32_t inner =
      static_cast<std::uint32_t>(unit) - outer * a.plan.by_inner.divisor;
  const std::int64_t channel = static_cast<std::int64_t>(a.plan.channels_first ? inner : outer) * V;
  const std::int64_t start = (sample * a.channels + channel) * a.positions;
  const std::int64_t group = start / 4 + (a.plan.channels_first ? outer : inner);
  const std::int64_t place = group * 4 - start;  // as above; 0 or more where V > 1

  float eps[4][V];
  FASTGEN_UNROLL
  for (int v = 0; v < V; ++v) {
    float values[4];
    noise_groups<T, 1, kThrough, std::int64_t>(keys, group + v * (a.positions / 4), values);
    FASTGEN_UNROLL
    for (int k = 0; k < 4; ++k) eps[k][v] = values[k];
  }
  FASTGEN_UNROLL
  for (int k = 0; k < 4; ++k) {
    const std::int64_t position = place + k;
    if (position < 0 || position >= a.positions) continue;
    const auto at = [&](const Strides& strides) {
      return sample * strides.sample + channel * strides.channel + position * strides.position;
    };
    const auto operands = noise_operands<T, V, kKind, kThrough>(a, at, 0, V);
    kl = noise_results<T, V, kKind, kThrough>(a, at, 0, V, operands, grad_kl, eps[k], kl);
  }
  return kl;
}

// ----------------------------------------------------------------------------------------- threads

// Where a thread works: the sample, which may lie behind the last one, and its first unit there.
struct NoisePlace {
  std::int64_t sample;
  std::uint32_t split;
  int lane;
};

template <typename T>
FASTGEN_HD NoisePlace noise_place(const NoiseArguments<T>& a, std::int64_t block, int thread) {
  const NoisePlan& plan = a.plan;
  const std::uint32_t batch = plan.by_splits.quotient(static_cast<std::uint32_t>(block));
  const std::uint32_t split =
      static_cast<std::uint32_t>(block) - batch * plan.by_splits.divisor;
  const std::int64_t sample = (static_cast<std::int64_t>(batch) << (kNoiseBits - plan.lane_bits)) +
                              (thread >> plan.lane_bits);
  return {sample, split, thread & (plan.lanes - 1)};
}

// Moves a pointer on, once: nvcc would do it at every access again.
template <typename T>
FASTGEN_HD void move_on(T*& pointer, std::int64_t count) {
  pointer += count;
#if defined(__CUDA_ARCH__)
  std::size_t address = __cvta_generic_to_global(pointer);
  asm("" : "+l"(address));
  pointer = static_cast<T*>(__cvta_global_to_generic(address));
#endif
}

// The tensors from the first element of a sample on.
template <typename T, Reparameterization kKind, Through kThrough>
FASTGEN_HD NoiseArguments<T> from_sample(NoiseArguments<T> a, std::uint32_t sample) {
  move_on(a.logvar, sample * a.logvar_strides.sample);
  move_on(a.result, sample * a.result_strides.sample);
  if constexpr (kKind == Reparameterization::backward) {
    move_on(a.grad_logvar, sample * a.grad_logvar_strides.sample);
    if (takes_noise(kThrough)) move_on(a.grad_z, sample * a.grad_z_strides.sample);
    if (kThrough == Through::z) return a;
  }
  move_on(a.mean, sample * a.mean_strides.sample);
  return a;
}

// All units of a thread. Returns its part of the sum behind the divergence.
template <typename T, NoisePass kPass, Reparameterization kKind, Through kThrough>
FASTGEN_HD float noise_units(const NoiseArguments<T>& a, const NoisePlace& place,
                             const PhiloxKeys& keys) {
  constexpr bool kThroughKl =
      kKind == Reparameterization::backward && kThrough != Through::z;
  const std::int64_t sample = place.sample;
  const auto grad_kl_of = [&](std::int64_t index) {
    return kThroughKl ? a.grad_kl[index * a.grad_kl_stride] : 0.0f;
  };
  float kl = 0.0f;
  if constexpr (kPass == NoisePass::rows) {
    constexpr std::uint32_t kGroups = kWideExtent<T> / 4;
    const std::uint32_t index = static_cast<std::uint32_t>(sample);
    const NoiseArguments<T> here = from_sample<T, kKind, kThrough>(a, index);
    const std::uint32_t units = static_cast<std::uint32_t>(a.plan.units);
    const std::uint32_t step = static_cast<std::uint32_t>(a.plan.splits) << a.plan.lane_bits;
    std::uint32_t unit = (place.split << a.plan.lane_bits) + place.lane;
    std::uint32_t group = (index * units + unit) * kGroups;
    for (; unit < units; unit += step, group += step * kGroups) {
      const float grad_kl = grad_kl_of(index + a.plan.by_sample.quotient(unit));
      kl = noise_row_unit<T, kKind, kThrough>(here, keys, unit, group, grad_kl, kl);
    }
  } else {
    const float grad_kl = grad_kl_of(sample);
    const std::int64_t step = a.plan.splits << a.plan.lane_bits;
    for (std::int64_t unit =
             (static_cast<std::int64_t>(place.split) << a.plan.lane_bits) + place.lane;
         unit < a.plan.units; unit += step) {
      if constexpr (kPass == NoisePass::cut_rows) {
        kl = noise_cut_row_unit<T, kKind, kThrough>(a, keys, sample, unit, grad_kl, kl);
      } else {
        constexpr int V = kPass == NoisePass::wide_tiles ? kTileChannels : 1;
        kl = noise_tile_unit<T, V, kKind, kThrough>(a, keys, sample, unit, grad_kl, kl);
      }
    }
  }
  return kl;
}

template <typename T, NoisePass kPass, Reparameterization kKind>
FASTGEN_HD float noise_thread(const NoiseArguments<T>& a, std::int64_t block, int thread) {
  const PhiloxKeys keys = philox_keys(*a.seed);
  const NoisePlace place = noise_place(a, block, thread);
  if (place.sample >= a.samples) return 0.0f;
  if constexpr (kKind == Reparameterization::backward) {
    if (a.grad_kl == nullptr) return noise_units<T, kPass, kKind, Through::z>(a, place, keys);
    if (a.grad_z == nullptr) return noise_units<T, kPass, kKind, Through::kl>(a, place, keys);
  }
  return noise_units<T, kPass, kKind, Through::both>(a, place, keys);
}

// The sum over a sample's lanes, given by its first one: half of it is the divergence.
template <typename T>
FASTGEN_HD void write_divergence(const NoiseArguments<T>& a, float sum, std::int64_t block,
                                 int thread) {
  const NoisePlace place = noise_place(a, block, thread);
  if (place.lane != 0 || place.sample >= a.samples) return;
  if (a.plan.splits == 1) {
    a.kl[place.sample] = 0.5f * sum;
  } else {
    a.partials[place.split * a.samples + place.sample] = sum;
  }
}

// The arguments of a call, for elements of type T.
template <typename T>
NoiseArguments<T> noise_arguments(const ReparameterizeCall& call, const NoisePlan& plan) {
  return {static_cast<const T*>(call.mean),
          static_cast<const T*>(call.logvar),
          static_cast<const T*>(call.grad_z),
          call.grad_kl,
          call.grad_kl_stride,
          call.seed,
          static_cast<T*>(call.result),
          static_cast<T*>(call.grad_logvar),
          call.kl,
          call.partials,
          call.mean_strides,
          call.logvar_strides,
          call.grad_z_strides,
          call.result_strides,
          call.grad_logvar_strides,
          plan.samples,
          call.channels,
          call.positions,
          plan};
}

}  // namespace fastgen::cuda
