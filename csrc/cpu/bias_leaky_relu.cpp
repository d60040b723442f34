// The loops behind bias_leaky_relu.h. They are plain: the compiler vectorizes them.

#include "cpu/bias_leaky_relu.h"

#include "cpu/loops.h"
#include "cpu/vectors.h"

namespace fastgen::cpu::FASTGEN_CPU {
namespace {

// Adding it changes no number, not even the sign of a zero.
constexpr double kNothing = -0.0;

template <typename T, bool kMask>
inline Wide<T> activated(T x, T y, Wide<T> shift, Wide<T> slope) {
  const Wide<T> a = widen<T>(x) + shift;
  return kMask ? leaky_relu_mask(a, widen<T>(y), slope) : leaky_relu(a, slope);
}

template <typename T, bool kMask>
void run(const T* x, const T* y, T* result, std::int64_t count, Wide<T> shift, Wide<T> slope) {
  FASTGEN_INDEPENDENT
  for (std::int64_t i = 0; i < count; ++i) {
    result[i] = narrow<T>(activated<T, kMask>(x[i], kMask ? y[i] : x[i], shift, slope));
  }
}

constexpr std::int64_t kChain = 2048;  // numbers that are added up in one go: 32 for each lane

// As `run`, and the sums of the result, `kCount` beside each other, as many for every CPU.
template <typename T, int kCount>
void run_lanes(const T* x, const T* y, T* result, std::int64_t count, Wide<T> shift, Wide<T> slope,
               Wide<T>* lanes) {
  Wide<T> sums[kCount] = {};
  std::int64_t i = 0;
  for (; i + kCount <= count; i += kCount) {
    FASTGEN_INDEPENDENT
    for (int lane = 0; lane < kCount; ++lane) {
      const Wide<T> value = activated<T, true>(x[i + lane], y[i + lane], shift, slope);
      result[i + lane] = narrow<T>(value);
      sums[lane] += value;
    }
  }
  for (int lane = 0; i < count; ++i, ++lane) {
    const Wide<T> value = activated<T, true>(x[i], y[i], shift, slope);
    result[i] = narrow<T>(value);
    sums[lane] += value;
  }
  for (int lane = 0; lane < kCount; ++lane) lanes[lane] = sums[lane];
}

// The same for few numbers, with the sums in registers.
template <typename T>
void run_short(const T* x, const T* y, T* result, std::int64_t count, Wide<T> shift, Wide<T> slope,
               Wide<T>* lanes) {
  using W = Wide<T>;
  constexpr int kEach = kLanes<W>, kVectors = kBiasLanes / kEach;
  const Vector<W> shifts = all(shift), slopes = all(slope);
  Vector<W> sums[kVectors] = {};
  std::int64_t i = 0;
  for (; i + kBiasLanes <= count; i += kBiasLanes) {
    FASTGEN_UNROLLED
    for (int v = 0; v < kVectors; ++v) {
      const std::int64_t at = i + v * kEach;
      const Vector<W> value =
          leaky_relu_mask_lanes<W>(load(x + at) + shifts, load(y + at), slopes);
      store_exactly(result + at, value);
      sums[v] += value;
    }
  }
  FASTGEN_UNROLLED
  for (int v = 0; v < kVectors; ++v) store(lanes + v * kEach, sums[v]);
  for (int lane = 0; i < count; ++i, ++lane) {
    const W value = activated<T, true>(x[i], y[i], shift, slope);
    result[i] = narrow<T>(value);
    lanes[lane] += value;
  }
}

// Which has no vectors.
template <>
void run_short<Float16>(const Float16* x, const Float16* y, Float16* result, std::int64_t count,
                        float shift, float slope, float* lanes) {
  run_lanes<Float16, kBiasLanes>(x, y, result, count, shift, slope, lanes);
}

template <typename T>
Wide<T> run_sum(const T* x, const T* y, T* result, std::int64_t count, Wide<T> shift,
                Wide<T> slope) {
  constexpr int kCount = 64;
  Wide<T> sums[kCount];
  run_lanes<T, kCount>(x, y, result, count, shift, slope, sums);
  for (int step = kCount / 2; step > 0; step /= 2) {
    for (int lane = 0; lane < step; ++lane) sums[lane] += sums[lane + step];
  }
  return sums[0];
}

template <typename T, bool kMask, bool kSum>
void planes(const BiasLeakyReluCall& call, std::int64_t begin, std::int64_t end) {
  const BiasPlan& plan = call.plan;
  const std::int64_t plane =
      call.channels == 1 ? call.outer * call.inner : call.inner;
  for (std::int64_t piece = begin; piece < end; ++piece) {
    const std::int64_t index = piece / plan.chunks, from = piece % plan.chunks * plan.chunk;
    const std::int64_t count = plane - from < plan.chunk ? plane - from : plan.chunk;
    const std::int64_t start = index * plane + from;
    const Wide<T> shift = call.shift == nullptr
                              ? static_cast<Wide<T>>(kNothing)
                              : widen<T>(static_cast<const T*>(call.shift)[index % call.channels]);
    const T* x = static_cast<const T*>(call.input) + start;
    const T* y = kMask ? static_cast<const T*>(call.output) + start : nullptr;
    T* result = static_cast<T*>(call.result) + start;
    const Wide<T> slope = static_cast<Wide<T>>(call.slope);
    if (kSum && plan.lanes > 1) {
      run_short<T>(x, y, result, count, shift, slope,
                   static_cast<Wide<T>*>(call.partials) + piece * kBiasLanes);
    } else if (kSum) {
      // In parts, as the rows below: a long chain of float32 sums loses digits.
      double sum = 0;
      for (std::int64_t at = 0; at < count; at += kChain) {
        const std::int64_t part = count - at < kChain ? count - at : kChain;
        sum += static_cast<double>(run_sum<T>(x + at, y + at, result + at, part, shift, slope));
      }
      static_cast<Wide<T>*>(call.partials)[piece] = static_cast<Wide<T>>(sum);
    } else {
      run<T, kMask>(x, y, result, count, shift, slope);
    }
  }
}

template <typename T, bool kMask, bool kSum>
void row(const T* x, const T* y, T* result, std::int64_t count, const Wide<T>* shifts,
         Wide<T> slope, Wide<T>* sums) {
  FASTGEN_INDEPENDENT
  for (std::int64_t i = 0; i < count; ++i) {
    const Wide<T> value = activated<T, kMask>(x[i], kMask ? y[i] : x[i], shifts[i], slope);
    result[i] = narrow<T>(value);
    if (kSum) sums[i] += value;
  }
}

template <typename T>
void column_shifts(const BiasLeakyReluCall& call, std::int64_t column, std::int64_t count,
                   Wide<T>* shifts) {
  const T* shift = static_cast<const T*>(call.shift);
  std::int64_t channel = column / call.inner % call.channels, next = call.inner - column % call.inner;
  for (std::int64_t i = 0; i < count; ++i) {
    shifts[i] = shift == nullptr ? static_cast<Wide<T>>(kNothing) : widen<T>(shift[channel]);
    if (--next == 0) {
      next = call.inner;
      if (++channel == call.channels) channel = 0;
    }
  }
}

constexpr std::int64_t kChainRows = 32;

// Adds the sums of the last rows to those before, and begins anew.
template <typename W>
void add_chain(W* chain, W* sums, std::int64_t width) {
  for (std::int64_t i = 0; i < width; ++i) {
    sums[i] += chain[i];
    chain[i] = 0;
  }
}

template <typename T, bool kMask, bool kSum>
void rows(const BiasLeakyReluCall& call, std::int64_t begin, std::int64_t end) {
  const BiasPlan& plan = call.plan;
  const Wide<T> slope = static_cast<Wide<T>>(call.slope);
  Wide<T> shifts[kBiasTile];
  std::int64_t shifts_of = -1;
  for (std::int64_t piece = begin; piece < end; ++piece) {
    const std::int64_t block = piece / plan.tiles, column = piece % plan.tiles * kBiasTile;
    const std::int64_t left = plan.period - column;
    const std::int64_t width = left < kBiasTile ? left : kBiasTile;
    if (shifts_of != column) column_shifts<T>(call, column, width, shifts);
    shifts_of = column;
    Wide<T>* sums = nullptr;
    // A float32 sum of many rows loses digits row by row. So few are added up at first, and those
    // sums to each other: as accurate as PyTorch's own, where one chain was 2.8 times worse.
    Wide<T> chain[kBiasTile];
    if (kSum) {
      sums = static_cast<Wide<T>*>(call.partials) + block * plan.period + column;
      for (std::int64_t i = 0; i < width; ++i) sums[i] = 0;
      for (std::int64_t i = 0; i < width; ++i) chain[i] = 0;
    }
    const std::int64_t first = block * plan.block_rows;
    for (std::int64_t r = first; r < first + plan.block_rows && r <= plan.rows; ++r) {
      if (kSum && (r - first) % kChainRows == kChainRows - 1) add_chain(chain, sums, width);
      // Behind the whole rows there may be a short one.
      const std::int64_t there = r < plan.rows ? width : plan.rest - column;
      const std::int64_t count = there < width ? there : width;
      if (count <= 0) continue;
      const std::int64_t start = r * plan.period + column;
      row<T, kMask, kSum>(static_cast<const T*>(call.input) + start,
                          kMask ? static_cast<const T*>(call.output) + start : nullptr,
                          static_cast<T*>(call.result) + start, count, shifts, slope, chain);
    }
    if (kSum) add_chain(chain, sums, width);
  }
}

template <typename T, bool kMask, bool kSum>
void pieces(const BiasLeakyReluCall& call, std::int64_t begin, std::int64_t end) {
  call.plan.planes ? planes<T, kMask, kSum>(call, begin, end)
                   : rows<T, kMask, kSum>(call, begin, end);
}

template <typename T>
void pieces(const BiasLeakyReluCall& call, std::int64_t begin, std::int64_t end) {
  if (call.output == nullptr) return pieces<T, false, false>(call, begin, end);
  if (call.sum == nullptr) return pieces<T, true, false>(call, begin, end);
  pieces<T, true, true>(call, begin, end);
}

constexpr int kChains = 8;  // sums beside each other: one alone waits for every addition

template <typename T>
void sums(const BiasLeakyReluCall& call, std::int64_t begin, std::int64_t end) {
  const BiasPlan& plan = call.plan;
  const Wide<T>* partials = static_cast<const Wide<T>*>(call.partials);
  // A channel's partial sums stand `inner` beside each other (those of its chunks, of planes), once
  // in each row of `stride` of them.
  const std::int64_t run = plan.planes ? plan.chunks * plan.lanes : call.inner;
  const std::int64_t stride = call.channels * run;
  for (std::int64_t channel = begin; channel < end; ++channel) {
    double chains[kChains] = {};
    for (std::int64_t at = channel * run; at < plan.partials; at += stride) {
      std::int64_t i = 0;
      for (; i + kChains <= run; i += kChains) {
        for (int chain = 0; chain < kChains; ++chain) {
          chains[chain] += static_cast<double>(partials[at + i + chain]);
        }
      }
      for (int chain = 0; i < run; ++i, ++chain) {
        chains[chain] += static_cast<double>(partials[at + i]);
      }
    }
    double sum = 0;
    for (int chain = 0; chain < kChains; ++chain) sum += chains[chain];
    static_cast<T*>(call.sum)[channel] = narrow<T>(static_cast<Wide<T>>(sum));
  }
}

}  // namespace

void bias_leaky_relu(const BiasLeakyReluCall& call, std::int64_t begin, std::int64_t end) {
  switch (call.dtype) {
    case Dtype::float32:
      return pieces<float>(call, begin, end);
    case Dtype::bfloat16:
      return pieces<BFloat16>(call, begin, end);
    case Dtype::float16:
      return pieces<Float16>(call, begin, end);
    case Dtype::float64:
      return pieces<double>(call, begin, end);
  }
}

void bias_leaky_relu_sum(const BiasLeakyReluCall& call, std::int64_t begin, std::int64_t end) {
  switch (call.dtype) {
    case Dtype::float32:
      return sums<float>(call, begin, end);
    case Dtype::bfloat16:
      return sums<BFloat16>(call, begin, end);
    case Dtype::float16:
      return sums<Float16>(call, begin, end);
    case Dtype::float64:
      return sums<double>(call, begin, end);
  }
}

}  // namespace fastgen::cpu::FASTGEN_CPU
