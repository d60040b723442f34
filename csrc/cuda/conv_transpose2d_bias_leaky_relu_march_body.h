// The image-edge transposed convolution of the common kernels, up to 3x3 with stride 1 and 4x4 with
// stride 2, in channels_last and by tensor cores.
//
// Bound. A pixel of 64 bfloat16 is 128 bytes, for which 132 multiprocessors at 1.75 GHz and 4.3
// TB/s have 28 instructions of a warp and 7 accesses of shared memory. So an input pixel may be
// brought into registers once, and what leaves the tensor cores must be the result, or nearly.
//
// A warp marches down 32 columns of the input. The rows of its product are pixels, its columns are
// (column of the kernel, phase or channel); an output row is the sum over two or three input rows,
// and these sums stay in the accumulators as the warp goes on. What is left is to add sums of
// neighbouring pixels: columns of the product are ordered so that a lane holds all of one phase or
// channel, and four pixels side by side, so most of these sums are its own; for the rest it asks
// the next lane, and at the edge of the warp the next warp.
//
// Every other strip is marched upwards: so those two that read the same rows at their border do it
// at the same time, both at the beginning or both at the end, and one of them from the L2 cache.
//
// Output column v stride + phase, padding considered, is the sum over input columns v, v - 1 and
// v + 1; with stride 2, over v and one of the others. Rows go by groups, as in StripPlan.
#pragma once

#include "cuda/async_copy.h"
#include "cuda/conv_transpose2d_bias_leaky_relu_march_plan.h"

namespace fastgen::cuda {

// What a warp works on.
struct MarchPlace {
  std::int64_t image;
  int first_group, end_group;  // row groups
  int column;                  // the first of its 32 input columns
  int from, to;                // the output is its own from here to there, in strides
  bool left, right;            // whether there is a warp of the same tile beside it
  bool down;                   // whether rows go down
};

// The input row of a step, and the row group that it completes, which the first steps do not.
template <int kTaps>
FASTGEN_HD int first_row(const MarchPlace& place) {
  return place.down ? place.first_group - (kTaps - 1) : place.end_group - 1;
}

template <int kTaps>
FASTGEN_HD int completed_group(const MarchPlace& place, int step) {
  return place.down ? place.first_group + step - (kTaps - 1)
                    : place.end_group - 1 + (kTaps - 1) - step;
}

// Which sums of a lane a tap, the rows from an input row to the row group, adds to.
template <int kTaps>
FASTGEN_HD int tap_of_sums(const MarchPlace& place, int sums) {
  return place.down ? sums : kTaps - 1 - sums;
}

template <typename T>
FASTGEN_HD MarchPlace march_place(const MarchArguments<T>& a, std::int64_t block, int warp) {
  const MarchPlan& plan = a.plan;
  const int in_tile = warp % plan.warps;
  const std::uint32_t tile =
      static_cast<std::uint32_t>(block) * static_cast<std::uint32_t>(plan.tiles_held) +
      static_cast<std::uint32_t>(warp / plan.warps);
  const std::uint32_t rest = tile / static_cast<std::uint32_t>(plan.strips);
  const int strip = static_cast<int>(tile - rest * static_cast<std::uint32_t>(plan.strips));
  const std::uint32_t image = rest / static_cast<std::uint32_t>(plan.column_tiles);
  const int across =
      static_cast<int>(rest - image * static_cast<std::uint32_t>(plan.column_tiles));

  const int span = plan.warps * kMarchColumns;
  const int base = across * (span - 2 * kMarchHalo);
  const int from = across == 0 ? 0 : base + kMarchHalo;
  const int to = across == plan.column_tiles - 1 ? plan.columns : base + span - kMarchHalo;
  MarchPlace place;
  place.image = image;
  place.column = base + in_tile * kMarchColumns;
  place.from = from > place.column ? from : place.column;
  place.to = to < place.column + kMarchColumns ? to : place.column + kMarchColumns;
  place.left = in_tile > 0, place.right = in_tile < plan.warps - 1;
  place.down = strip % 2 == 0;
  place.first_group = plan.first_group + strip * plan.strip_groups;
  place.end_group = place.first_group + plan.strip_groups;
  if (place.end_group > plan.end_group) place.end_group = plan.end_group;
  // A block at the end may hold fewer tiles.
  if (tile >= plan.tiles) place.image = 0, place.end_group = place.first_group, place.to = 0;
  return place;
}

// The parts of a block's shared memory. Weights make room for what comes after them.
struct MarchShared {
  unsigned char* ring;     // [warp][stage][piece][pixel of a lane][lane of ring_place]
  unsigned char* weights;  // [kWeightRows][kWeightPitch]
  float* edges;            // [parity][warp][lane of a pixel][move]
  unsigned char* staged;   // [warp][row of the group][staged_pitch]
};

FASTGEN_HD MarchShared march_shared(unsigned char* memory, const MarchPlan& plan) {
  unsigned char* scratch = memory + plan.ring_bytes;
  return {memory, scratch, reinterpret_cast<float*>(scratch), scratch + 2 * kMarchWarps * 16 * 4};
}

// ------------------------------------------------------------------------------------------- input

// What a lane 4 g + t copies: 16 bytes of each piece of pixels 4 g ... 4 g + 3, row by row.
struct MarchSource {
  const unsigned char* at;  // its bytes of its first pixel, in the next row to copy
  int row;                  // that row
  int first, end;           // rows of the image that the strip needs
  std::uint32_t there;      // bit 4 piece + pixel
};

template <typename T, int kPieces, int kTaps>
FASTGEN_HD MarchSource march_source(const MarchArguments<T>& a, const MarchPlace& place,
                                    int lane) {
  const int row = first_row<kTaps>(place);
  const int x = place.column + lane / 4 * 4;
  const int bytes = a.channels * static_cast<int>(sizeof(T));
  MarchSource source;
  source.at = reinterpret_cast<const unsigned char*>(a.input) +
              ((place.image * a.height + row) * a.width + x) * bytes + lane % 4 * 16;
  source.row = row;
  const int first = place.first_group - (kTaps - 1);
  source.first = first > 0 ? first : 0;
  source.end = place.end_group < a.height ? place.end_group : a.height;
  source.there = 0;
  FASTGEN_UNROLL
  for (int k = 0; k < 4 * kPieces; ++k) {
    const int column = x + k % 4;
    const bool there = column < a.width && column >= place.from - 1 && column <= place.to &&
                       k / 4 * kPieceBytes + lane % 4 * 16 < bytes;
    source.there |= static_cast<std::uint32_t>(there) << k;
  }
  return source;
}

template <int kPieces>
FASTGEN_HD unsigned char* ring_stage(const MarchShared& shared, int warp, int stage) {
  return shared.ring +
         (warp * kMarchStages<kPieces> + stage) * kMarchColumns * kPieces * kPieceBytes;
}

// Where the 16 bytes of lane 4 g + t stand among those of the warp: the eight g of one t, which are
// read together, on different banks.
FASTGEN_HD int ring_place(int group, int in_group) {
  return (4 * group + (in_group ^ (group / 2))) * 16;
}

template <typename T, int kPieces>
FASTGEN_HD void copy_row(const MarchArguments<T>& a, const MarchPlace& place, int lane,
                         MarchSource& source, unsigned char* stage) {
  const bool inside = source.row >= source.first && source.row < source.end;
  const std::uint32_t there = inside ? source.there : 0;
  const std::ptrdiff_t pixel = a.channels * static_cast<int>(sizeof(T));
  stage += ring_place(lane / 4, lane % 4);
  const unsigned char* at = source.at;
  FASTGEN_UNROLL
  for (int i = 0; i < 4; ++i) {
    FASTGEN_UNROLL
    for (int q = 0; q < kPieces; ++q) {
      copy_async<16>(stage + (4 * q + i) * 512, at + q * kPieceBytes,
                 (there & 1u << (4 * q + i)) != 0);
    }
    at += pixel;
  }
  source.at += place.down ? a.width * pixel : -(a.width * pixel);
  source.row += place.down ? 1 : -1;
}

// The rows of a product from half a piece of the lanes' pixels 2 pair (row g, of lane 4 g + t) and
// 2 pair + 1 (row g + 8).
template <typename T>
FASTGEN_HD Rows pixel_rows(const unsigned char* stage, int piece, int pair, int half, int lane) {
  const auto place = [&](int matrix, int row) {
    return matrix % 2 * 512 + ring_place(row, 2 * half + matrix / 2);
  };
  Rows rows = load_matrices(stage + (4 * piece + 2 * pair) * 512, lane, place);
  if constexpr (sizeof(T) == 4) {
    FASTGEN_UNROLL
    for (std::uint32_t& word : rows.words) word = bits_of(round_to_tf32(float_of(word)));
  }
  return rows;
}

// ----------------------------------------------------------------------------------------- weights

// The weight's element for a channel 0 of the input, input row `tap` before the output's row group,
// tile and column of the product; -1: none.
template <typename T, int kStride>
FASTGEN_HD int weight_of_column(const MarchArguments<T>& a, int tap, int tile, int column) {
  const int lane = column / 2, second = column % 2;
  int channel, row, distance, phase;
  if (kStride == 2) {
    phase = lane % 2, channel = tile, row = 2 * tap + lane / 2;
    distance = second == 0 ? 0 : (phase == 0 ? -1 : 1);
  } else {
    if (tile == 1 && second == 1) return -1;
    phase = 0, channel = lane, row = tap;
    distance = tile == 1 ? 1 : -second;
  }
  const int s = phase + a.padding_w - kStride * distance;
  if (channel >= a.out_channels || row >= a.kernel_h || s < 0 || s >= a.kernel_w) return -1;
  return channel * a.weight_strides[1] + row * a.weight_strides[2] + s * a.weight_strides[3];
}

// Two neighbours into shared memory, in one access.
FASTGEN_HD void store_two(float* address, const float (&values)[2]) {
  store_shared(address, {round_to_tf32(values[0]), round_to_tf32(values[1])});
}
template <typename T>
FASTGEN_HD void store_two(T* address, const T (&values)[2]) {
  *reinterpret_cast<std::uint32_t*>(address) =
      values[0].bits | static_cast<std::uint32_t>(values[1].bits) << 16;
}

// A row for each (tap, tile, column of the product), its channels in the order of a pixel's.
template <typename T, int kPieces, int kStride, int kHeld>
FASTGEN_HD void stage_march_weights(const MarchArguments<T>& a, int thread, int threads,
                                    unsigned char* weights) {
  using M = March<kStride, kHeld>;
  constexpr int kChannels = kPieces * kPieceBytes / static_cast<int>(sizeof(T));
  // Neighbouring lanes take neighbours in the weight's memory, more or less, of two channels; all
  // that a lane takes is on its way at once.
  constexpr int kLanes = M::kWeightRows < 32 ? M::kWeightRows : 32;
  constexpr int kRows = (M::kWeightRows + kLanes - 1) / kLanes, kPairs = 8;
  const int step = threads / kLanes, channels = a.channels;
  const std::ptrdiff_t stride = a.weight_strides[0];
  const T* at[kRows];
  bool any[kRows];
  FASTGEN_UNROLL
  for (int r = 0; r < kRows; ++r) {
    const int row = r * kLanes + thread % kLanes;
    const int offset =
        weight_of_column<T, kStride>(a, row / 8 / M::kTiles, row / 8 % M::kTiles, row % 8);
    any[r] = offset >= 0;
    at[r] = a.weight + (any[r] ? offset : 0) + 2 * (thread / kLanes) * stride;
  }
  FASTGEN_UNROLL_BY(1)
  for (int first = 2 * (thread / kLanes); first < kChannels; first += 2 * kPairs * step) {
    T values[kPairs][kRows][2];
    FASTGEN_UNROLL
    for (int k = 0; k < kPairs; ++k) {
      const int channel = first + 2 * k * step;
      FASTGEN_UNROLL
      for (int r = 0; r < kRows; ++r) {
        FASTGEN_UNROLL
        for (int v = 0; v < 2; ++v) {
          values[k][r][v] = T{};
          if (any[r] && channel + v < channels) values[k][r][v] = at[r][v * stride];
        }
        at[r] += 2 * step * stride;
      }
    }
    FASTGEN_UNROLL
    for (int k = 0; k < kPairs; ++k) {
      const int channel = first + 2 * k * step;
      FASTGEN_UNROLL
      for (int r = 0; r < kRows; ++r) {
        const int row = r * kLanes + thread % kLanes;
        if (channel >= kChannels || row >= M::kWeightRows) continue;
        store_two(reinterpret_cast<T*>(weights + row * kWeightPitch<kPieces>) + channel,
                  values[k][r]);
      }
    }
  }
}

// Eight columns of the product, of a piece: for its halves one after the other.
template <int kPieces>
FASTGEN_HD Rows weight_columns(const unsigned char* weights, int columns, int piece, int lane) {
  const auto place = [](int matrix, int row) {
    return row * kWeightPitch<kPieces> + matrix * 16;
  };
  return load_matrices(
      weights + columns * 8 * kWeightPitch<kPieces> + piece * kPieceBytes, lane, place);
}

FASTGEN_HD Columns half_of(const Rows& columns, int half) {
  return {{columns.words[2 * half], columns.words[2 * half + 1]}};
}

// ------------------------------------------------------------------------------------------- sums

// A lane's sums for one row group: [tile][pair of pixels][2 * pixel of the pair + second column].
template <int kTiles>
using MarchSums = float[kTiles][2][4];

template <int kTiles>
FASTGEN_HD float sum_of(const MarchSums<kTiles>& sums, int tile, int pixel, int second) {
  return sums[tile][pixel / 2][2 * (pixel % 2) + second];
}

// A row group starts with the bias, in the sums that stay where they are.
template <typename T, int kStride, int kHeld>
FASTGEN_HD void start_sums(const float (&bias)[kHeld],
                           MarchSums<March<kStride, kHeld>::kTiles>& sums) {
  FASTGEN_UNROLL
  for (int tile = 0; tile < March<kStride, kHeld>::kTiles; ++tile) {
    FASTGEN_UNROLL
    for (int k = 0; k < 8; ++k) {
      sums[tile][k / 4][k % 4] = k % 2 == 0 && tile < kHeld ? bias[tile < kHeld ? tile : 0] : 0.0f;
    }
  }
}

template <typename T, int kStride, int kHeld>
FASTGEN_HD void load_bias(const MarchArguments<T>& a, int lane, float (&bias)[kHeld]) {
  FASTGEN_UNROLL
  for (int c = 0; c < kHeld; ++c) {
    const int channel = kStride == 2 ? c : lane % 4;
    bias[c] =
        a.bias != nullptr && channel < a.out_channels ? to_float(a.bias[channel]) : 0.0f;
  }
}

// ------------------------------------------------------------------------------------------ result

// Which sums go to the lane on the right: with stride 2 those of an even column's phase, which adds
// up input columns v and v - 1.
template <int kStride>
FASTGEN_HD bool goes_right(int lane, int move) {
  return kStride == 2 ? lane % 2 == 0 : move == 0;
}

// The sum of a pixel that belongs to the output beside it.
template <int kStride, int kHeld>
FASTGEN_HD float moving(const MarchSums<March<kStride, kHeld>::kTiles>& sums, int move,
                        int pixel) {
  if (kStride == 2) return sum_of<March<kStride, kHeld>::kTiles>(sums, move, pixel, 1);
  return sum_of<March<kStride, kHeld>::kTiles>(sums, move, pixel, 1 - move);
}

template <int kStride, int kHeld>
FASTGEN_HD float given_away(const MarchSums<March<kStride, kHeld>::kTiles>& sums, int lane,
                            int move) {
  const float last = moving<kStride, kHeld>(sums, move, 3);
  const float first = moving<kStride, kHeld>(sums, move, 0);
  return goes_right<kStride>(lane, move) ? last : first;
}

// The lane whose gift a lane gets, around the ends of the warp.
template <int kStride>
FASTGEN_HD int giver(int lane, int move) {
  return (lane + (goes_right<kStride>(lane, move) ? 28 : 4)) % 32;
}

FASTGEN_HD float* edges_of(const MarchShared& shared, int parity, int warp, int lane) {
  return shared.edges + ((parity * kMarchWarps + warp) * 4 + lane % 4) * 4;
}

// What leaves the warp.
template <int kStride, int kHeld>
FASTGEN_HD void store_edges(const MarchShared& shared, int parity, int warp, int lane,
                            const MarchSums<March<kStride, kHeld>::kTiles>& sums) {
  constexpr int kMoves = March<kStride, kHeld>::kMoves;
  if (lane / 4 != 0 && lane / 4 != 7) return;
  float* edges = edges_of(shared, parity, warp, lane);
  FASTGEN_UNROLL
  for (int move = 0; move < kMoves; ++move) {
    if (lane / 4 == (goes_right<kStride>(lane, move) ? 7 : 0)) {
      edges[move] = given_away<kStride, kHeld>(sums, lane, move);
    }
  }
}

// What lanes get whose giver is in another warp, or nowhere.
template <int kStride, int kHeld>
FASTGEN_HD void load_edges(const MarchShared& shared, const MarchPlace& place, int parity,
                           int warp, int lane, float (&given)[March<kStride, kHeld>::kMoves]) {
  constexpr int kMoves = March<kStride, kHeld>::kMoves;
  if (lane / 4 != 0 && lane / 4 != 7) return;
  const bool first = lane / 4 == 0;
  const float* edges = edges_of(shared, parity, first ? warp - 1 : warp + 1, lane);
  FASTGEN_UNROLL
  for (int move = 0; move < kMoves; ++move) {
    if (goes_right<kStride>(lane, move) != first) continue;
    given[move] = (first ? place.left : place.right) ? edges[move] : 0.0f;
  }
}

// The outputs of a lane's four pixels, before the activation.
template <int kStride, int kHeld>
FASTGEN_HD void add_moves(const MarchSums<March<kStride, kHeld>::kTiles>& sums,
                          const float (&given)[March<kStride, kHeld>::kMoves], int lane,
                          float (&values)[kHeld][4]) {
  using M = March<kStride, kHeld>;
  FASTGEN_UNROLL
  for (int c = 0; c < kHeld; ++c) {
    FASTGEN_UNROLL
    for (int i = 0; i < 4; ++i) {
      const float stays = sum_of<M::kTiles>(sums, c, i, 0);
      const auto from_left = [&](int move) {
        return i > 0 ? moving<kStride, kHeld>(sums, move, i > 0 ? i - 1 : 0) : given[move];
      };
      const auto from_right = [&](int move) {
        return i < 3 ? moving<kStride, kHeld>(sums, move, i < 3 ? i + 1 : 3) : given[move];
      };
      if constexpr (kStride == 2) {
        values[c][i] = stays + (goes_right<2>(lane, c) ? from_left(c) : from_right(c));
      } else {
        values[c][i] = stays + from_left(0) + from_right(1);
      }
    }
  }
}

template <int kHeld>
FASTGEN_HD void activate(bool tanh, float slope, float (&values)[kHeld][4]) {
  if (tanh) {
    FASTGEN_UNROLL
    for (int k = 0; k < 4 * kHeld; ++k) {
      values[k / 4][k % 4] = hyperbolic_tangent(values[k / 4][k % 4]);
    }
  } else {
    FASTGEN_UNROLL
    for (int k = 0; k < 4 * kHeld; ++k) {
      values[k / 4][k % 4] = leaky_relu(values[k / 4][k % 4], slope);
    }
  }
}

// Into the rows of the warp in shared memory, each in the order of the result's memory.
template <typename T, int kStride, int kHeld>
FASTGEN_HD void stage_result(const MarchArguments<T>& a, const MarchShared& shared, int warp,
                             int lane, const float (&values)[kHeld][4]) {
  const int row = kStride == 2 ? lane % 4 / 2 : 0, phase = kStride == 2 ? lane % 2 : 0;
  const int first = kStride == 2 ? 0 : lane % 4;
  T* to = reinterpret_cast<T*>(shared.staged + (warp * kStride + row) * a.plan.staged_pitch) +
          (lane / 4 * 4 * kStride + phase) * a.out_channels + first;
  FASTGEN_UNROLL
  for (int c = 0; c < kHeld; ++c) {
    if (first + c >= a.out_channels) break;
    FASTGEN_UNROLL
    for (int i = 0; i < 4; ++i) to[i * kStride * a.out_channels + c] = from_float<T>(values[c][i]);
  }
}

// The part of a row that is the warp's own, in elements of the row in shared memory.
struct OwnColumns {
  int begin, end;
};

template <typename T, int kStride>
FASTGEN_HD OwnColumns own_columns(const MarchArguments<T>& a, const MarchPlace& place) {
  const int most = a.out_width - place.column * kStride;  // so many are left
  const int columns = (place.to - place.column) * kStride;
  return {(place.from - place.column) * kStride * a.out_channels,
          (columns < most ? columns : most) * a.out_channels};
}

// And from there to global memory, as rows of a row group.
template <typename T, int kStride, int kHeld>
FASTGEN_HD void store_march_result(const MarchArguments<T>& a, const MarchShared& shared,
                                   const MarchPlace& place, const OwnColumns& own, int group,
                                   int warp, int lane) {
  constexpr int V = kWideExtent<T>;
  constexpr int kMostChannels = kStride == 1 ? 4 : kHeld;
  constexpr int kPacks = (kMarchColumns * kStride * kMostChannels / V + 31) / 32;  // of a lane
  T* image = a.result + place.image * a.out_height * a.out_width * a.out_channels +
             place.column * kStride * a.out_channels + lane * V;
  const int from = lane * V;
  const T* staged =
      reinterpret_cast<const T*>(shared.staged + warp * kStride * a.plan.staged_pitch) + from;
  FASTGEN_UNROLL
  for (int row = 0; row < kStride; ++row) {
    const int y = group * kStride - a.padding_h + row;
    if (y < 0 || y >= a.out_height) continue;
    T* to = image + y * a.out_width * a.out_channels;
    const T* row_staged = staged + row * (a.plan.staged_pitch / static_cast<int>(sizeof(T)));
    FASTGEN_UNROLL
    for (int k = 0; k < 32 * V * kPacks; k += 32 * V) {
      if (from + k < own.begin || from + k >= own.end) continue;
      store_pack<T, V>(to + k, load_pack<T, V>(row_staged + k));
    }
  }
}

}  // namespace fastgen::cuda
