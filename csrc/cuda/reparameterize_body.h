// The passes behind reparameterize.h, for host and device, and how the work is cut.
//
// Bytes per element: 3 times its size forward, 5 times backward. Four neighbours in row-major order
// share a counter of the generator, so a thread always takes whole groups of four:
//
// `rows`: every sample is one stretch of memory. A thread takes 16 bytes of it, one or two groups.
//   Groups count from the first sample; where samples are no multiple of a vector long, the vector
//   that two of them share is taken once for each, element by element.
// `tiles`: anything else, channels_last above all, where the four numbers of a group stand a pixel
//   apart. A thread takes a group for each of V neighbouring channels, so that its four accesses
//   are V elements wide; V = 1 takes any strides and any alignment.
//
// A sample is shared by `lanes` threads of a block, and by `splits` blocks; a block takes several
// samples where they are short.
#pragma once

#include "cuda/partial_sums_body.h"
#include "cuda/reparameterize.h"
#include "formulas.h"

namespace fastgen::cuda {

constexpr int kNoiseThreads = 256;
constexpr int kTileChannels = 4;

enum class NoisePass { rows, wide_tiles, tiles };

struct NoisePlan {
  NoisePass pass;
  bool too_large;
  std::int64_t units;   // of work in a sample: vectors, or groups of V channels
  std::int64_t splits;  // blocks that share a sample
  std::int64_t blocks;
  int lanes;  // threads of a block that share a sample, a power of two
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
  if (rows) return NoisePass::rows;

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
  if (plan.pass == NoisePass::rows) {
    const std::int64_t row = call.channels * call.positions;
    const int V = 16 / element_size;
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
  // sectors of memory. Long ones: all threads of as many blocks as it takes.
  const std::int64_t resident = static_cast<std::int64_t>(multiprocessors) * 2048;
  plan.lanes = 1;
  while (plan.lanes < plan.units && plan.lanes < kNoiseThreads) plan.lanes *= 2;
  while (plan.lanes > 8 && call.samples * (plan.lanes / 2) >= resident) plan.lanes /= 2;
  plan.splits = 1;
  if (plan.lanes == kNoiseThreads) {
    const std::int64_t steps = ceil_div(plan.units, plan.lanes);
    const std::int64_t wanted = ceil_div(resident / kNoiseThreads, call.samples);
    const std::int64_t least = ceil_div(steps, 16);  // of 16 steps at most
    plan.splits = wanted > least ? (wanted < steps ? wanted : steps) : least;
  }
  plan.blocks = ceil_div(call.samples, kNoiseThreads / plan.lanes) * plan.splits;
  plan.too_large = plan.too_large || plan.blocks >= std::int64_t{1} << 31;
  return plan;
}

// ---------------------------------------------------------------------------------------- element

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

// V elements that are neighbours in every tensor, of which [begin, end) are the sample's; returns
// their terms of the divergence. `at` gives the offset of the first one in a tensor.
template <typename T, int V, Reparameterization kKind, typename Offset>
FASTGEN_HD float noise_vector(const NoiseArguments<T>& a, Offset at, int begin, int end,
                              float grad_kl, const float (&eps)[V]) {
  constexpr bool kBackward = kKind == Reparameterization::backward;
  Pack<T, V> mean{}, grad_z{};
  const Pack<T, V> logvar =
      noise_load<T, V>(a.logvar, at(a.logvar_strides), begin, end);
  if (!kBackward || a.grad_kl != nullptr) {
    mean = noise_load<T, V>(a.mean, at(a.mean_strides), begin, end);
  }
  if (kBackward && a.grad_z != nullptr) {
    grad_z = noise_load<T, V>(a.grad_z, at(a.grad_z_strides), begin, end);
  }

  float kl = 0.0f;
  float result[V];
  float grad_logvar[V];
  FASTGEN_UNROLL
  for (int v = 0; v < V; ++v) {
    const NoiseElement<float> element =
        noise_element<kKind>(to_float(mean.values[v]), to_float(logvar.values[v]),
                             to_float(grad_z.values[v]), grad_kl, a.grad_kl != nullptr, eps[v]);
    result[v] = element.result;
    grad_logvar[v] = element.grad_logvar;
    kl += element.kl;
  }
  noise_store<T, V>(a.result, at(a.result_strides), begin, end, result);
  if (kBackward) {
    noise_store<T, V>(a.grad_logvar, at(a.grad_logvar_strides), begin, end, grad_logvar);
  }
  return kl;
}

// The noise of `Groups` groups of four; zeros where nothing asks for it.
template <typename T, int Groups, Reparameterization kKind>
FASTGEN_HD void noise_groups(const NoiseArguments<T>& a, std::int64_t seed, std::int64_t group,
                             float (&eps)[4 * Groups]) {
  const bool wanted = kKind != Reparameterization::backward || a.grad_z != nullptr;
  FASTGEN_UNROLL
  for (int g = 0; g < Groups; ++g) {
    float values[4] = {0.0f, 0.0f, 0.0f, 0.0f};
    if (wanted) normals(seed, group + g, values);
    FASTGEN_UNROLL
    for (int k = 0; k < 4; ++k) eps[4 * g + k] = values[k];
  }
}

// ------------------------------------------------------------------------------------------- units

// One vector of a sample that is one stretch of memory.
template <typename T, Reparameterization kKind>
FASTGEN_HD float noise_row_unit(const NoiseArguments<T>& a, std::int64_t seed, std::int64_t sample,
                                std::int64_t unit, float grad_kl) {
  constexpr int V = kWideExtent<T>;
  const std::int64_t row = a.channels * a.positions;
  const std::int64_t start = sample * row;
  const std::int64_t vector = start / V + unit;
  const std::int64_t place = vector * V - start;  // in the sample; below 0 where it begins later
  const std::int64_t left = row - place;
  if (left <= 0) return 0.0f;

  float eps[V];
  noise_groups<T, V / 4, kKind>(a, seed, vector * (V / 4), eps);
  const auto at = [&](const Strides& strides) { return sample * strides.sample + place; };
  return noise_vector<T, V, kKind>(a, at, place < 0 ? static_cast<int>(-place) : 0,
                                   left < V ? static_cast<int>(left) : V, grad_kl, eps);
}

// A group of four positions for each of V neighbouring channels.
template <typename T, int V, Reparameterization kKind>
FASTGEN_HD float noise_tile_unit(const NoiseArguments<T>& a, std::int64_t seed,
                                 std::int64_t sample, std::int64_t unit, float grad_kl) {
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
    noise_groups<T, 1, kKind>(a, seed, group + v * (a.positions / 4), values);
    FASTGEN_UNROLL
    for (int k = 0; k < 4; ++k) eps[k][v] = values[k];
  }
  float kl = 0.0f;
  FASTGEN_UNROLL
  for (int k = 0; k < 4; ++k) {
    const std::int64_t position = place + k;
    if (position < 0 || position >= a.positions) continue;
    const auto at = [&](const Strides& strides) {
      return sample * strides.sample + channel * strides.channel + position * strides.position;
    };
    kl += noise_vector<T, V, kKind>(a, at, 0, V, grad_kl, eps[k]);
  }
  return kl;
}

template <typename T, NoisePass kPass, Reparameterization kKind>
FASTGEN_HD float noise_unit(const NoiseArguments<T>& a, std::int64_t seed, std::int64_t sample,
                            std::int64_t unit, float grad_kl) {
  if constexpr (kPass == NoisePass::rows) {
    return noise_row_unit<T, kKind>(a, seed, sample, unit, grad_kl);
  } else {
    constexpr int V = kPass == NoisePass::wide_tiles ? kTileChannels : 1;
    return noise_tile_unit<T, V, kKind>(a, seed, sample, unit, grad_kl);
  }
}

// ----------------------------------------------------------------------------------------- threads

// One thread: all its units of one sample. Returns its part of the sum behind the divergence.
template <typename T, NoisePass kPass, Reparameterization kKind>
FASTGEN_HD float noise_thread(const NoiseArguments<T>& a, std::int64_t block, int thread) {
  const NoisePlan& plan = a.plan;
  const std::uint32_t batch =
      static_cast<std::uint32_t>(block) / static_cast<std::uint32_t>(plan.splits);
  const std::int64_t split = block - batch * plan.splits;
  const int in_block = thread / plan.lanes;
  const int lane = thread - in_block * plan.lanes;
  const std::int64_t sample =
      static_cast<std::int64_t>(batch) * (kNoiseThreads / plan.lanes) + in_block;
  if (sample >= a.samples) return 0.0f;

  const std::int64_t seed = *a.seed;
  const bool through_kl = kKind == Reparameterization::backward && a.grad_kl != nullptr;
  const float grad_kl = through_kl ? a.grad_kl[sample * a.grad_kl_stride] : 0.0f;
  float kl = 0.0f;
  for (std::int64_t unit = split * plan.lanes + lane; unit < plan.units;
       unit += plan.splits * plan.lanes) {
    kl += noise_unit<T, kPass, kKind>(a, seed, sample, unit, grad_kl);
  }
  return kl;
}

// Where a thread's sum stands among those of its block: lanes apart, samples side by side.
template <typename T>
FASTGEN_HD int noise_slot(const NoiseArguments<T>& a, int thread) {
  const int in_block = thread / a.plan.lanes;
  return (thread - in_block * a.plan.lanes) * (kNoiseThreads / a.plan.lanes) + in_block;
}

template <typename T>
FASTGEN_HD void write_divergence(const NoiseArguments<T>& a, const float* tree,
                                 std::int64_t block, int thread) {
  const NoisePlan& plan = a.plan;
  const int in_block = kNoiseThreads / plan.lanes;
  const std::uint32_t batch =
      static_cast<std::uint32_t>(block) / static_cast<std::uint32_t>(plan.splits);
  const std::int64_t sample = static_cast<std::int64_t>(batch) * in_block + thread;
  if (thread >= in_block || sample >= a.samples) return;
  if (plan.splits == 1) {
    a.kl[sample] = 0.5f * tree[thread];
  } else {
    a.partials[(block - batch * plan.splits) * a.samples + sample] = tree[thread];
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
          call.samples,
          call.channels,
          call.positions,
          plan};
}

}  // namespace fastgen::cuda
