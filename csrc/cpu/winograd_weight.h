// The weight's taps between memory and vectors, and the weight as a side of the products.
#pragma once

#include "cpu/winograd_method.h"

FASTGEN_BEGIN

// The taps of phases first ... first + count - 1, of kLanes lanes by as many steps along the depth,
// between the weight's memory and taps[step][phase][tap], a vector of lanes each.
template <typename W>
inline std::int64_t tap_offset(const std::int64_t (&strides)[4], int phase, int tap) {
  return (phase / W::kStride + tap / W::kTaps * W::kStride) * strides[2] +
         (phase % W::kStride + tap % W::kTaps * W::kStride) * strides[3];
}

// Whether all taps of a lane and a step are neighbours, row by row, as in contiguous memory.
template <typename W>
inline bool taps_are_neighbours(const std::int64_t (&strides)[4]) {
  return strides[3] == 1 && strides[2] == W::kKernel;
}

// Number `place` in such a row of them.
template <typename W>
inline int phase_at(int place) {
  return place / W::kKernel % W::kStride * W::kStride + place % W::kKernel % W::kStride;
}
template <typename W>
inline int tap_at(int place) {
  return place / W::kKernel / W::kStride * W::kTaps + place % W::kKernel / W::kStride;
}

// The taps of one step, of which those of a lane are neighbours.
template <typename W, typename T>
inline void load_neighbours(const T* weight, std::int64_t lane_step, int first, int count,
                            Vector<Wide<T>>* taps) {
  constexpr int kWidth = kLanes<Wide<T>>, kTaps = W::kTaps * W::kTaps;
  constexpr int kAll = W::kKernel * W::kKernel;
  for (int begin = 0; begin < kAll; begin += kWidth) {
    const int there = kAll - begin < kWidth ? kAll - begin : kWidth;
    Vector<Wide<T>> rows[kWidth];
    for (int l = 0; l < kWidth; ++l) rows[l] = load(weight + l * lane_step + begin, there);
    transpose<Wide<T>>(rows);
    for (int place = begin; place < begin + there; ++place) {
      const int phase = phase_at<W>(place) - first;
      if (phase < 0 || phase >= count) continue;
      taps[phase * kTaps + tap_at<W>(place)] = rows[place - begin];
    }
  }
}

template <typename W, typename T>
inline void load_taps(const T* weight, const std::int64_t (&strides)[4], std::int64_t lane_step,
                      std::int64_t depth_step, int first, int count, Vector<Wide<T>>* taps) {
  constexpr int kWidth = kLanes<Wide<T>>, kTaps = W::kTaps * W::kTaps;
  if (lane_step != 1 && depth_step != 1 && taps_are_neighbours<W>(strides)) {
    for (int d = 0; d < kWidth; ++d) {
      load_neighbours<W, T>(weight + d * depth_step, lane_step, first, count,
                            taps + d * count * kTaps);
    }
    return;
  }
  for (int phase = 0; phase < count; ++phase) {
    for (int tap = 0; tap < kTaps; ++tap) {
      const T* from = weight + tap_offset<W>(strides, first + phase, tap);
      Vector<Wide<T>>* to = taps + phase * kTaps + tap;
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
      for (int d = 0; d < kWidth; ++d) to[d * count * kTaps] = rows[d];
    }
  }
}

// Vectors over lanes, from(place) for each of the taps of a step, into a weight in which those of a
// lane are neighbours.
template <typename W, typename T, typename From>
inline void store_neighbours(const From& from, std::int64_t lane_step, T* weight) {
  constexpr int kWidth = kLanes<Wide<T>>, kAll = W::kKernel * W::kKernel;
  for (int begin = 0; begin < kAll; begin += kWidth) {
    const int there = kAll - begin < kWidth ? kAll - begin : kWidth;
    Vector<Wide<T>> rows[kWidth] = {};
    for (int i = 0; i < there; ++i) rows[i] = from(begin + i);
    transpose<Wide<T>>(rows);
    for (int l = 0; l < kWidth; ++l) store(weight + l * lane_step + begin, rows[l], there);
  }
}

// The same back, of every phase, into a weight of T or of the type of sums.
template <typename W, typename T>
inline void store_taps(const Vector<Wide<T>>* taps, const std::int64_t (&strides)[4], T* weight) {
  constexpr int kWidth = kLanes<Wide<T>>, kTaps = W::kTaps * W::kTaps;
  constexpr int kPhases = W::kPhases;
  const std::int64_t lane_step = strides[0], depth_step = strides[1];
  if (depth_step != 1) {  // contiguous
    for (int d = 0; d < kWidth; ++d) {
      const Vector<Wide<T>>* step = taps + d * kPhases * kTaps;
      const auto at = [&](int place) { return step[phase_at<W>(place) * kTaps + tap_at<W>(place)]; };
      store_neighbours<W, T>(at, lane_step, weight + d * depth_step);
    }
    return;
  }
  for (int phase = 0; phase < kPhases; ++phase) {
    for (int tap = 0; tap < kTaps; ++tap) {
      T* to = weight + tap_offset<W>(strides, phase, tap);
      Vector<Wide<T>> rows[kWidth];
      for (int d = 0; d < kWidth; ++d) rows[d] = taps[(d * kPhases + phase) * kTaps + tap];
      transpose<Wide<T>>(rows);
      for (int l = 0; l < kWidth; ++l) store(to + l * lane_step, rows[l]);
    }
  }
}

// A panel of the transformed weight as the right side of the products: columns are kWinogradPanel
// filters (kFilters) or input channels from `first_lane` on, `lanes` of them, rows the other side's
// channels, for filters those of every phase. A point begins padded_plane(rows * kWinogradPanel)
// behind the other.
template <typename W, typename T, bool kFilters>
inline void transform_weight(const cpu::WinogradCall& call, std::int64_t first_lane,
                             std::int64_t lanes, int phase, typename Format<T>::Element* to) {
  using F = Format<T>;
  constexpr int kWidth = kLanes<Wide<T>>, kTaps = W::kTaps * W::kTaps;
  constexpr int kPoints = W::kPoints, kElements = F::kElements;
  constexpr int kPhases = kFilters ? W::kPhases : 1;
  constexpr std::int64_t kPanel = cpu::kWinogradPanel;
  const std::int64_t depth = kFilters ? call.shape.channels : call.shape.filters;
  const std::int64_t lane_step = call.weight_strides[kFilters ? 0 : 1];
  const std::int64_t depth_step = call.weight_strides[kFilters ? 1 : 0];
  const std::int64_t plane = winograd::padded_plane(kPhases * depth * kPanel);
  for (std::int64_t l = 0; l < lanes; l += kWidth) {
    for (std::int64_t d = 0; d < depth; d += kWidth) {
      Vector<Wide<T>> taps[kWidth * kPhases * kTaps];
      load_taps<W>(static_cast<const T*>(call.weight) + (first_lane + l) * lane_step +
                       d * depth_step,
                   call.weight_strides, lane_step, depth_step, kFilters ? 0 : phase, kPhases, taps);
      for (int step = 0; step < kWidth; step += kElements) {
        for (int f = 0; f < kPhases; ++f) {
          Vector<Wide<T>> out[kPoints][kElements];
          FASTGEN_UNROLLED
          for (int e = 0; e < kElements; ++e) {
            Vector<Wide<T>> in[kTaps], one[kPoints];
            for (int i = 0; i < kTaps; ++i) in[i] = taps[((step + e) * kPhases + f) * kTaps + i];
            transform<typename W::Weight, W::kTaps, W::kSide>(in, one);
            FASTGEN_UNROLLED
            for (int p = 0; p < kPoints; ++p) out[p][e] = one[p];
          }
          auto* place = to + (f * depth + d + step) * kPanel + l * kElements;
          for (int p = 0; p < kPoints; ++p) store_step(place + p * plane, out[p]);
        }
      }
    }
  }
}

FASTGEN_END
