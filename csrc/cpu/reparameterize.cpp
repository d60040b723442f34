// The loops behind reparameterize.h. They are plain: the compiler vectorizes them.
//
// Elements go in row-major order of the shape, in steps of a few hundred: their noise is made in a
// buffer, operands that are not neighbours in memory or not of the arithmetic's type are gathered
// into others, and one loop computes. The buffers of a step fit into the L1 cache.

#include "cpu/reparameterize.h"

#include "cpu/lanes.h"
#include "cpu/loops.h"

namespace fastgen::cpu::FASTGEN_CPU {
namespace {

constexpr int kStep = 512;
constexpr int kGroups = 64;  // of four normal numbers, beside each other in vectors

// ------------------------------------------------------------------------------------------ noise

// The words of groups first ... first + kGroups - 1.
inline void make_words(std::int64_t seed, std::int64_t first, std::uint32_t (&words)[4][kGroups]) {
#if defined(FASTGEN_LANES)
  const std::uint64_t key = static_cast<std::uint64_t>(seed);
  for (int g = 0; g < kGroups; g += Lanes::kCount) {
    const Lanes count = Lanes::counting(first + g);
    Lanes word[4] = {count, high_word(count), Lanes{}, Lanes{}};
    philox_rounds(word, static_cast<std::uint32_t>(key), static_cast<std::uint32_t>(key >> 32));
    for (int w = 0; w < 4; ++w) word[w].store(words[w] + g);
  }
#else
  for (int g = 0; g < kGroups; ++g) {
    const Words four = random_words(seed, first + g);
    for (int w = 0; w < 4; ++w) words[w][g] = four.word[w];
  }
#endif
}

// The noise of elements first ... first + count - 1, of at most kStep: where it begins in `buffer`.
const float* make_noise(std::int64_t seed, std::int64_t first, int count,
                        float (&buffer)[kStep + 4 * kGroups]) {
  const int skipped = static_cast<int>(first % 4);
  for (int at = 0; at < skipped + count; at += 4 * kGroups) {
    std::uint32_t words[4][kGroups];
    make_words(seed, first / 4 + at / 4, words);
    float* normal = buffer + at;
    for (int g = 0; g < kGroups; ++g) {
      normal_pair(words[0][g], words[1][g], &normal[4 * g], &normal[4 * g + 1]);
      normal_pair(words[2][g], words[3][g], &normal[4 * g + 2], &normal[4 * g + 3]);
    }
  }
  return buffer + skipped;
}

// ----------------------------------------------------------------------------------------- memory

struct Shape {
  std::int64_t samples, channels, positions;
};

// Calls f(offset in memory, stride, place, length) for runs of evenly spaced elements that make up
// elements first ... first + count - 1; `place` counts from `first`.
template <typename F>
void for_runs(const Shape& shape, const Strides& s, std::int64_t first, int count, F f) {
  const std::int64_t row = shape.channels * shape.positions;
  const bool even_rows = shape.channels == 1 || s.channel == s.position * shape.positions;
  if (even_rows && (shape.samples == 1 || s.sample == s.position * row)) {
    f(first * s.position, s.position, 0, count);
    return;
  }
  const std::int64_t extent = even_rows ? row : shape.positions;
  for (int place = 0; place < count;) {
    const std::int64_t index = first + place, within = index % extent, outer = index / extent;
    const std::int64_t sample = even_rows ? outer : outer / shape.channels;
    const std::int64_t channel = even_rows ? 0 : outer % shape.channels;
    const std::int64_t left = extent - within;
    const int length = left < count - place ? static_cast<int>(left) : count - place;
    f(sample * s.sample + channel * s.channel + within * s.position, s.position, place, length);
    place += length;
  }
}

template <typename T>
struct Same {
  static constexpr bool value = false;
};
template <>
struct Same<float> {
  static constexpr bool value = true;
};
template <>
struct Same<double> {
  static constexpr bool value = true;
};

// The elements in the arithmetic's type: in memory, if they lie there so, else in `buffer`.
template <typename T>
const Wide<T>* gathered(const void* tensor, const Shape& shape, const Strides& strides,
                        std::int64_t first, int count, Wide<T>* buffer) {
  const T* memory = static_cast<const T*>(tensor);
  const Wide<T>* result = buffer;
  for_runs(shape, strides, first, count,
           [&](std::int64_t offset, std::int64_t stride, int place, int length) {
             const T* from = memory + offset;
             Wide<T>* to = buffer + place;
             if (stride != 1) {
               for (int i = 0; i < length; ++i) to[i] = widen<T>(from[i * stride]);
             } else if (Same<T>::value && length == count) {
               result = reinterpret_cast<const Wide<T>*>(from);
             } else {
               FASTGEN_INDEPENDENT
               for (int i = 0; i < length; ++i) to[i] = widen<T>(from[i]);
             }
           });
  return result;
}

// Where results go: straight to memory, if they can lie there so, else a buffer.
template <typename T>
Wide<T>* target(void* tensor, const Shape& shape, const Strides& strides, std::int64_t first,
                int count, Wide<T>* buffer) {
  Wide<T>* result = buffer;
  for_runs(shape, strides, first, count,
           [&](std::int64_t offset, std::int64_t stride, int, int length) {
             if (Same<T>::value && stride == 1 && length == count) {
               result = reinterpret_cast<Wide<T>*>(static_cast<T*>(tensor) + offset);
             }
           });
  return result;
}

template <typename T>
void scatter(const Wide<T>* buffer, void* tensor, const Shape& shape, const Strides& strides,
             std::int64_t first, int count) {
  for_runs(shape, strides, first, count,
           [&](std::int64_t offset, std::int64_t stride, int place, int length) {
             const Wide<T>* from = buffer + place;
             T* to = static_cast<T*>(tensor) + offset;
             if (stride != 1) {
               for (int i = 0; i < length; ++i) to[i * stride] = narrow<T>(from[i]);
             } else {
               FASTGEN_INDEPENDENT
               for (int i = 0; i < length; ++i) to[i] = narrow<T>(from[i]);
             }
           });
}

// ------------------------------------------------------------------------------------- arithmetic

template <typename W>
struct Operands {
  const W* mean;
  const W* logvar;
  const W* grad_z;
  const W* grad_kl;
  const float* noise;
  W* result;
  W* grad_logvar;
  W* terms;
};

template <typename W, Reparameterization kKind, bool kThroughKl>
void compute(const Operands<W>& o, int count) {
  constexpr bool kBackward = kKind == Reparameterization::backward;
  FASTGEN_INDEPENDENT
  for (int i = 0; i < count; ++i) {
    const auto element = noise_element<kKind, W>(
        o.mean[i], o.logvar[i], kBackward ? o.grad_z[i] : W(0), kThroughKl ? o.grad_kl[i] : W(0),
        kThroughKl, static_cast<W>(o.noise[i]));
    o.result[i] = element.result;
    if (kBackward) o.grad_logvar[i] = element.grad_logvar;
    if (kKind == Reparameterization::sample_kl) o.terms[i] = element.kl;
  }
}

// Beyond this exp(logvar) is 0 or infinite in float32, and the formulas' exponentials, which hold
// still there, give way to the library's: what comes out is what PyTorch gives.
constexpr float kFar = 170.0f;

template <Reparameterization kKind, bool kThroughKl>
void compute_far(const Operands<float>& o, int count) {
  for (int i = 0; i < count; ++i) {
    if (o.logvar[i] >= -kFar && o.logvar[i] <= kFar) continue;
    const auto element = noise_element<kKind, double>(
        o.mean[i], o.logvar[i], kKind == Reparameterization::backward ? o.grad_z[i] : 0.0f,
        kThroughKl ? o.grad_kl[i] : 0.0f, kThroughKl, o.noise[i]);
    o.result[i] = static_cast<float>(element.result);
    if (kKind == Reparameterization::backward) {
      o.grad_logvar[i] = static_cast<float>(element.grad_logvar);
    }
    if (kKind == Reparameterization::sample_kl) o.terms[i] = static_cast<float>(element.kl);
  }
}

inline bool has_far(const float* logvar, int count) {
  // Magnitudes are in the order of their bits, and NaN is above all.
  std::uint32_t largest = 0;
  for (int i = 0; i < count; ++i) {
    const std::uint32_t magnitude = bits_of(logvar[i]) & 0x7fffffffu;
    largest = magnitude > largest ? magnitude : largest;
  }
  return largest > bits_of(kFar);
}
inline bool has_far(const double*, int) { return false; }

template <Reparameterization, bool>
void compute_far(const Operands<double>&, int) {}

// Several sums beside each other, as many for every CPU.
template <typename W>
double sum_of(const W* terms, int count) {
  constexpr int kLanes = 64;
  if (count < kLanes) {
    double sum = 0;
    for (int i = 0; i < count; ++i) sum += static_cast<double>(terms[i]);
    return sum;
  }
  W sums[kLanes] = {};
  int i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    for (int lane = 0; lane < kLanes; ++lane) sums[lane] += terms[i + lane];
  }
  for (int lane = 0; i < count; ++i, ++lane) sums[lane] += terms[i];
  double sum = 0;
  for (int lane = 0; lane < kLanes; ++lane) sum += static_cast<double>(sums[lane]);
  return sum;
}

// ------------------------------------------------------------------------------------------ steps

template <typename T, Reparameterization kKind, bool kThroughKl>
class Steps {
 public:
  using W = Wide<T>;

  explicit Steps(const ReparameterizeCall& call)
      : call_(call), shape_{call.samples, call.channels, call.positions} {
    if (kKind == Reparameterization::backward && call.grad_z == nullptr) {
      for (W& value : grad_z_) value = 0;
    }
  }

  // Elements first ... first + count - 1 of the tensor. Leaves the terms of their divergences.
  void step(std::int64_t first, int count) {
    Operands<W> o{};
    o.noise = make_noise(call_.seed, first, count, noise_);
    o.mean = gathered<T>(call_.mean, shape_, call_.mean_strides, first, count, mean_);
    o.logvar = gathered<T>(call_.logvar, shape_, call_.logvar_strides, first, count, logvar_);
    o.grad_z = grad_z_;
    if (kKind == Reparameterization::backward && call_.grad_z != nullptr) {
      o.grad_z = gathered<T>(call_.grad_z, shape_, call_.grad_z_strides, first, count, grad_z_);
    }
    if (kThroughKl) {
      spread_grad_kl(first, count);
      o.grad_kl = grad_kl_;
    }
    o.result = target<T>(call_.result, shape_, call_.result_strides, first, count, result_);
    if (kKind == Reparameterization::backward) {
      o.grad_logvar = target<T>(call_.grad_logvar, shape_, call_.grad_logvar_strides, first, count,
                                grad_logvar_);
    }
    o.terms = terms_;

    compute<W, kKind, kThroughKl>(o, count);
    if (has_far(o.logvar, count)) compute_far<kKind, kThroughKl>(o, count);

    if (o.result == result_) {
      scatter<T>(o.result, call_.result, shape_, call_.result_strides, first, count);
    }
    if (kKind == Reparameterization::backward && o.grad_logvar == grad_logvar_) {
      scatter<T>(o.grad_logvar, call_.grad_logvar, shape_, call_.grad_logvar_strides, first, count);
    }
  }

  void piece(std::int64_t piece) {
    const NoisePlan& plan = call_.plan;
    const bool by_sample = kKind == Reparameterization::sample_kl;
    const std::int64_t samples = by_sample ? call_.samples : 1;
    const std::int64_t sample = piece / plan.chunks * plan.samples;
    const std::int64_t more = samples - sample;
    const std::int64_t count = more < plan.samples ? more : plan.samples;
    const std::int64_t from = piece % plan.chunks * plan.chunk;
    const std::int64_t until = from + plan.chunk < plan.row ? from + plan.chunk : plan.row;
    // The samples of a piece, or the chunk of one, lie behind each other in row-major order.
    const std::int64_t begin = sample * plan.row + from;
    const std::int64_t end = (sample + count - 1) * plan.row + until;

    double sum = 0;
    std::int64_t summed = sample, left = until - from;  // of the sample that is being summed
    if (plan.row == 0) {
      for (std::int64_t n = sample; n < sample + count; ++n) finish(piece, n, 0);
      return;
    }
    for (std::int64_t first = begin; first < end;) {
      // Behind the first step, noise begins with a whole group of four.
      std::int64_t next = (first + kStep) / 4 * 4;
      if (next > end) next = end;
      step(first, static_cast<int>(next - first));
      if (by_sample) {
        for (std::int64_t at = first; at < next;) {
          const std::int64_t here = left < next - at ? left : next - at;
          sum += sum_of(terms_ + (at - first), static_cast<int>(here));
          at += here, left -= here;
          if (left > 0) continue;
          finish(piece, summed++, sum);
          sum = 0, left = plan.row;
        }
      }
      first = next;
    }
  }

 private:
  // Each element's grad_kl, which is that of its sample.
  void spread_grad_kl(std::int64_t first, int count) {
    const W* grad_kl = static_cast<const W*>(call_.grad_kl);
    const std::int64_t row = shape_.channels * shape_.positions;
    for (int place = 0; place < count;) {
      const std::int64_t sample = (first + place) / row, left = (sample + 1) * row - first - place;
      const int length = left < count - place ? static_cast<int>(left) : count - place;
      const W value = grad_kl[sample * call_.grad_kl_stride];
      for (int i = 0; i < length; ++i) grad_kl_[place + i] = value;
      place += length;
    }
  }

  void finish(std::int64_t piece, std::int64_t sample, double sum) {
    if (kKind != Reparameterization::sample_kl) return;
    if (call_.plan.chunks > 1) {
      call_.partials[piece] = sum;
    } else {
      static_cast<W*>(call_.kl)[sample] = static_cast<W>(0.5 * sum);
    }
  }

  const ReparameterizeCall& call_;
  const Shape shape_;
  float noise_[kStep + 4 * kGroups];
  W mean_[kStep], logvar_[kStep], grad_z_[kStep], grad_kl_[kStep];
  W result_[kStep], grad_logvar_[kStep], terms_[kStep];
};

template <typename T, Reparameterization kKind, bool kThroughKl = false>
void pieces(const ReparameterizeCall& call, std::int64_t begin, std::int64_t end) {
  Steps<T, kKind, kThroughKl> steps(call);
  for (std::int64_t piece = begin; piece < end; ++piece) steps.piece(piece);
}

template <typename T>
void pieces(const ReparameterizeCall& call, std::int64_t begin, std::int64_t end) {
  using R = Reparameterization;
  switch (call.kind) {
    case R::sample:
      return pieces<T, R::sample>(call, begin, end);
    case R::sample_kl:
      return pieces<T, R::sample_kl>(call, begin, end);
    case R::scaled_noise:
      return pieces<T, R::scaled_noise>(call, begin, end);
    case R::backward:
      if (call.grad_kl == nullptr) return pieces<T, R::backward>(call, begin, end);
      return pieces<T, R::backward, true>(call, begin, end);
  }
}

}  // namespace

void reparameterize(const ReparameterizeCall& call, std::int64_t begin, std::int64_t end) {
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

void reparameterize_sum(const ReparameterizeCall& call, std::int64_t begin, std::int64_t end) {
  for (std::int64_t sample = begin; sample < end; ++sample) {
    const double half = 0.5 * sum_of(call.partials + sample * call.plan.chunks,
                                     static_cast<int>(call.plan.chunks));
    if (call.dtype == Dtype::float64) {
      static_cast<double*>(call.kl)[sample] = half;
    } else {
      static_cast<float*>(call.kl)[sample] = static_cast<float>(half);
    }
  }
}

}  // namespace fastgen::cpu::FASTGEN_CPU
