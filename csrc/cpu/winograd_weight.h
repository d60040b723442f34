// The weight's taps between memory and vectors, and the weight as a side of the products.
#pragma once

#include "cpu/winograd_method.h"

FASTGEN_BEGIN

// Between a weight's memory and vectors of lanes lie kLanes lanes by as many steps along the depth:
// taps[step * W::kTaps + i * W::kKernel + j] is tap (i, j) of one step.

// Whether all taps of a lane and a step are neighbours, row by row, as in contiguous memory.
template <typename W>
inline bool taps_are_neighbours(const std::int64_t (&strides)[4]) {
  return strides[3] == 1 && strides[2] == W::kKernel;
}

template <typename W>
inline bool tap_is_of(int tap, Phases phases) {
  const int phase = W::phase_at(tap / W::kKernel, tap % W::kKernel);
  return phase >= phases.first && phase < phases.stop;
}

// The taps of one step, of which those of a lane are neighbours.
template <typename W, typename T>
inline void load_neighbours(const T* weight, std::int64_t lane_step, Phases phases,
                            Vector<Wide<T>>* taps) {
  constexpr int kWidth = kLanes<Wide<T>>, kAll = W::kTaps;
  for (int begin = 0; begin < kAll; begin += kWidth) {
    const int there = kAll - begin < kWidth ? kAll - begin : kWidth;
    Vector<Wide<T>> rows[kWidth];
    for (int l = 0; l < kWidth; ++l) rows[l] = load(weight + l * lane_step + begin, there);
    transpose<Wide<T>>(rows);
    for (int i = 0; i < there; ++i) {
      if (tap_is_of<W>(begin + i, phases)) taps[begin + i] = rows[i];
    }
  }
}

// The taps of some phases, of kLanes steps; others are left as they are.
template <typename W, typename T>
inline void load_taps(const T* weight, const std::int64_t (&strides)[4], std::int64_t lane_step,
                      std::int64_t depth_step, Phases phases, Vector<Wide<T>>* taps) {
  constexpr int kWidth = kLanes<Wide<T>>;
  if (lane_step != 1 && depth_step != 1 && taps_are_neighbours<W>(strides)) {
    for (int d = 0; d < kWidth; ++d) {
      load_neighbours<W, T>(weight + d * depth_step, lane_step, phases, taps + d * W::kTaps);
    }
    return;
  }
  for (int tap = 0; tap < W::kTaps; ++tap) {
    if (!tap_is_of<W>(tap, phases)) continue;
    const T* from = weight + tap / W::kKernel * strides[2] + tap % W::kKernel * strides[3];
    Vector<Wide<T>> rows[kWidth];
    if (lane_step == 1) {
      for (int d = 0; d < kWidth; ++d) {
        rows[d] = load(from + d * depth_step);
        __builtin_prefetch(from + (d + 2 * kWidth) * depth_step, 0, 2);
      }
    } else if (depth_step == 1) {
      for (int l = 0; l < kWidth; ++l) {
        rows[l] = load(from + l * lane_step);
        __builtin_prefetch(from + l * lane_step + kWidth);
      }
      transpose<Wide<T>>(rows);
    } else {
      for (int d = 0; d < kWidth; ++d) {
        Wide<T> lanes[kWidth];
        for (int l = 0; l < kWidth; ++l) {
          lanes[l] = widen<T>(from[l * lane_step + d * depth_step]);
        }
        rows[d] = load(lanes);
      }
    }
    for (int d = 0; d < kWidth; ++d) taps[d * W::kTaps + tap] = rows[d];
  }
}

// Vectors over lanes, from(tap) for each of a step, into a weight in which the taps of a lane are
// neighbours.
template <typename W, typename T, typename From>
inline void store_neighbours(const From& from, std::int64_t lane_step, T* weight) {
  constexpr int kWidth = kLanes<Wide<T>>, kAll = W::kTaps;
  for (int begin = 0; begin < kAll; begin += kWidth) {
    const int there = kAll - begin < kWidth ? kAll - begin : kWidth;
    Vector<Wide<T>> rows[kWidth] = {};
    for (int i = 0; i < there; ++i) rows[i] = from(begin + i);
    transpose<Wide<T>>(rows);
    for (int l = 0; l < kWidth; ++l) store(weight + l * lane_step + begin, rows[l], there);
  }
}

// All taps back, into a weight of T or of the type of sums.
template <typename W, typename T>
inline void store_taps(const Vector<Wide<T>>* taps, const std::int64_t (&strides)[4], T* weight) {
  constexpr int kWidth = kLanes<Wide<T>>;
  const std::int64_t lane_step = strides[0], depth_step = strides[1];
  if (depth_step != 1) {  // contiguous
    for (int d = 0; d < kWidth; ++d) {
      const auto at = [&](int tap) { return taps[d * W::kTaps + tap]; };
      store_neighbours<W, T>(at, lane_step, weight + d * depth_step);
    }
    return;
  }
  for (int tap = 0; tap < W::kTaps; ++tap) {
    T* to = weight + tap / W::kKernel * strides[2] + tap % W::kKernel * strides[3];
    Vector<Wide<T>> rows[kWidth];
    for (int d = 0; d < kWidth; ++d) rows[d] = taps[d * W::kTaps + tap];
    transpose<Wide<T>>(rows);
    for (int l = 0; l < kWidth; ++l) store(to + l * lane_step, rows[l]);
  }
}

// The taps of a phase at its points, of kLanes steps: those of point p lie p * plane behind `to`, and
// the numbers of a step of the product kWinogradPanel behind those of the one before.
template <typename W, typename T>
inline void transform_taps(int phase, const Vector<Wide<T>>* taps,
                           typename Format<T>::Element* to, std::int64_t plane) {
  constexpr int kWidth = kLanes<Wide<T>>, kElements = Format<T>::kElements;
  by_phase<W>(phase, [&](auto of_phase) __attribute__((always_inline)) {
    using P = decltype(of_phase);
    using S = typename W::template Weight<P>;
    const Vector<Wide<T>>* first = taps + W::first_of(phase);
    for (int step = 0; step < kWidth; step += kElements) {
      Vector<Wide<T>> out[W::kPoints][kElements];
      FASTGEN_UNROLLED
      for (int e = 0; e < kElements; ++e) {
        Vector<Wide<T>> in[P::kCount], one[W::kPoints];
        FASTGEN_UNROLLED
        for (int i = 0; i < P::kCount; ++i) {
          in[i] = first[(step + e) * W::kTaps + W::template place_of<P>(i)];
        }
        transform<S, P::kRight, W::kSide>(in, one);
        every_point<S, W::kSide>(
            [&](int p) __attribute__((always_inline)) { out[p][e] = one[p]; });
      }
      auto* place = to + step * cpu::kWinogradPanel;
      every_point<S, W::kSide>(
          [&](int p) __attribute__((always_inline)) { store_step(place + p * plane, out[p]); });
    }
  });
}

// A panel of the transformed weight as the right side of the products: columns are kWinogradPanel
// filters (kFilters) or input channels from `first_lane` on, `lanes` of them, rows the other side's
// channels, for filters those of every phase. A point begins padded_plane(rows * kWinogradPanel)
// behind the other; of input channels each phase is a panel of its own, one behind the other.
template <typename W, typename T, bool kFilters>
inline void transform_weight(const cpu::WinogradCall& call, std::int64_t first_lane,
                             std::int64_t lanes, Phases phases,
                             typename Format<T>::Element* to) {
  constexpr int kWidth = kLanes<Wide<T>>, kElements = Format<T>::kElements;
  constexpr std::int64_t kPanel = cpu::kWinogradPanel;
  const std::int64_t depth = kFilters ? call.shape.channels : call.shape.filters;
  const std::int64_t lane_step = call.weight_strides[kFilters ? 0 : 1];
  const std::int64_t depth_step = call.weight_strides[kFilters ? 1 : 0];
  const std::int64_t plane = winograd::padded_plane((kFilters ? W::kPhases : 1) * depth * kPanel);
  const std::int64_t phase_step = kFilters ? depth * kPanel : W::kPoints * plane;
  for (std::int64_t l = 0; l < lanes; l += kWidth) {
    for (std::int64_t d = 0; d < depth; d += kWidth) {
      Vector<Wide<T>> taps[kWidth * W::kTaps];
      load_taps<W>(static_cast<const T*>(call.weight) + (first_lane + l) * lane_step +
                       d * depth_step,
                   call.weight_strides, lane_step, depth_step, phases, taps);
      for (int phase = phases.first; phase < phases.stop; ++phase) {
        auto* place = to + (phase - phases.first) * phase_step + d * kPanel + l * kElements;
        transform_taps<W, T>(phase, taps, place, plane);
      }
    }
  }
}

FASTGEN_END
