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
// Output column v stride + phase, padding considered, is the sum over input columns v, v - 1 and
// v + 1; with stride 2, over v and one of the others. Rows go by groups, as in StripPlan.
#pragma once

#include "cuda/async_copy.h"
#include "cuda/conv_transpose2d_bias_leaky_relu_march_plan.h"

namespace fastgen::cuda {

using Piece = Pack<std::uint32_t, 4>;  // a lane's share of 64 bytes of a pixel

// What a warp works on.
struct MarchPlace {
  std::int64_t image;
  int first_group, end_group;  // row groups
  int column;                  // the first of its 32 input columns
  int from, to;                // the output is its own from here to there, in strides
  bool left, right;            // whether there is a warp of the same tile beside it
};

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
  place.first_group = plan.first_group + strip * plan.strip_groups;
  place.end_group = place.first_group + plan.strip_groups;
  if (place.end_group > plan.end_group) place.end_group = plan.end_group;
  // A block at the end may hold fewer tiles.
  if (tile >= plan.tiles) place.image = 0, place.end_group = place.first_group, place.to = 0;
  return place;
}

// The parts of a block's shared memory. Weights make room for what comes after them.
struct MarchShared {
  unsigned char* ring;     // [warp][stage][piece][pixel of a lane][lane], 16 bytes each
  unsigned char* weights;  // [kWeightRows][kWeightPitch]
  float* edges;            // [parity][warp][lane of a pixel][move]
  unsigned char* staged;   // [warp][row of the group][staged_pitch]
};

FASTGEN_HD MarchShared march_shared(unsigned char* memory, const MarchPlan& plan) {
  unsigned char* scratch = memory + plan.ring_bytes;
  return {memory, scratch, reinterpret_cast<float*>(scratch), scratch + 2 * kMarchWarps * 16 * 4};
}

// ------------------------------------------------------------------------------------------- input

// What a lane 4 g + t copies: 16 bytes of each piece of pixels 4 g ... 4 g + 3.
struct MarchSource {
  const unsigned char* row;  // its bytes of its first pixel, in row 0 of the image
  std::uint32_t there;       // bit 4 piece + pixel
};

template <typename T, int kPieces>
FASTGEN_HD MarchSource march_source(const MarchArguments<T>& a, const MarchPlace& place,
                                    int lane) {
  const int x = place.column + lane / 4 * 4;
  const int bytes = a.channels * static_cast<int>(sizeof(T));
  MarchSource source;
  source.row = reinterpret_cast<const unsigned char*>(a.input) +
               (place.image * a.height * a.width + x) * bytes + lane % 4 * 16;
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

// The lane's place in a stage of the ring; pixel i of piece q stands (4 q + i) * 512 bytes behind.
template <int kPieces>
FASTGEN_HD unsigned char* ring_stage(const MarchShared& shared, int warp, int stage, int lane) {
  return shared.ring +
         (warp * kMarchStages<kPieces> + stage) * kMarchColumns * kPieces * kPieceBytes +
         lane * 16;
}

template <typename T, int kPieces>
FASTGEN_HD void copy_row(const MarchArguments<T>& a, const MarchPlace& place,
                         const MarchSource& source, int row, unsigned char* stage) {
  const bool inside = row >= 0 && row < a.height && row < place.end_group;
  const std::uint32_t there = inside ? source.there : 0;
  const std::ptrdiff_t pixel = a.channels * static_cast<int>(sizeof(T));
  const unsigned char* at = source.row + row * (a.width * pixel);
  FASTGEN_UNROLL
  for (int i = 0; i < 4; ++i) {
    FASTGEN_UNROLL
    for (int q = 0; q < kPieces; ++q) {
      copy_async(stage + (4 * q + i) * 512, at + q * kPieceBytes,
                 (there >> (4 * q + i) & 1u) != 0);
    }
    at += pixel;
  }
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

// A row for each (tap, tile, column of the product), its channels in the order of a pixel's.
template <typename T, int kPieces, int kStride, int kHeld>
FASTGEN_HD void stage_march_weights(const MarchArguments<T>& a, int thread, int threads,
                                    unsigned char* weights) {
  using M = March<kStride, kHeld>;
  constexpr int kChannels = kPieces * kPieceBytes / static_cast<int>(sizeof(T));
  // Neighbouring lanes take neighbours in the weight's memory, more or less.
  constexpr int kLanes = M::kWeightRows < 32 ? M::kWeightRows : 32;
  FASTGEN_UNROLL
  for (int first = 0; first < M::kWeightRows; first += kLanes) {
    const int row = first + thread % kLanes;
    if (row >= M::kWeightRows) continue;
    const int offset =
        weight_of_column<T, kStride>(a, row / 8 / M::kTiles, row / 8 % M::kTiles, row % 8);
    T* to = reinterpret_cast<T*>(weights + row * kWeightPitch<kPieces>);
    FASTGEN_UNROLL_BY(8)
    for (int channel = thread / kLanes; channel < kChannels; channel += threads / kLanes) {
      T value{};
      if (offset >= 0 && channel < a.channels) {
        value = a.weight[offset + channel * a.weight_strides[0]];
      }
      if constexpr (sizeof(T) == 4) value = round_to_tf32(value);
      to[channel] = value;
    }
  }
}

template <int kPieces>
FASTGEN_HD Piece weight_piece(const unsigned char* weights, int row, int piece, int lane) {
  return load_pack<std::uint32_t, 4>(reinterpret_cast<const std::uint32_t*>(
      weights + (row * 8 + lane / 4) * kWeightPitch<kPieces> + piece * kPieceBytes +
      lane % 4 * 16));
}

// ---------------------------------------------------------------------------------------- products

template <typename T>
FASTGEN_HD Piece round_piece(Piece piece) {
  if constexpr (sizeof(T) == 4) {
    FASTGEN_UNROLL
    for (std::uint32_t& word : piece.values) word = bits_of(round_to_tf32(float_of(word)));
  }
  return piece;
}

// Half a piece of two pixels, rows g and g + 8 of a product, and of a column of weights: 16 terms
// in 16 bits, 8 in TF32. Rows and columns have them in the same order, whatever that is.
FASTGEN_HD Rows rows_of(const Piece& pixel, const Piece& next, int half) {
  return {{pixel.values[2 * half], next.values[2 * half], pixel.values[2 * half + 1],
           next.values[2 * half + 1]}};
}

FASTGEN_HD Columns columns_of(const Piece& weights, int half) {
  return {{weights.values[2 * half], weights.values[2 * half + 1]}};
}

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

FASTGEN_HD float* edge_of(const MarchShared& shared, int parity, int warp, int lane, int move) {
  return shared.edges + ((parity * kMarchWarps + warp) * 4 + lane % 4) * 4 + move;
}

// What leaves the warp.
template <int kStride, int kHeld>
FASTGEN_HD void store_edges(const MarchShared& shared, int parity, int warp, int lane,
                            const MarchSums<March<kStride, kHeld>::kTiles>& sums) {
  FASTGEN_UNROLL
  for (int move = 0; move < March<kStride, kHeld>::kMoves; ++move) {
    if (lane / 4 == (goes_right<kStride>(lane, move) ? 7 : 0)) {
      *edge_of(shared, parity, warp, lane, move) = given_away<kStride, kHeld>(sums, lane, move);
    }
  }
}

// What a lane gets where its giver is in another warp, or nowhere.
template <int kStride>
FASTGEN_HD float over_the_edge(const MarchShared& shared, const MarchPlace& place, int parity,
                               int warp, int lane, int move, float given) {
  const bool right = goes_right<kStride>(lane, move);
  if (lane / 4 != (right ? 0 : 7)) return given;
  if (right ? !place.left : !place.right) return 0.0f;
  return *edge_of(shared, parity, right ? warp - 1 : warp + 1, lane, move);
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

// And from there to global memory, as rows of group `group`.
template <typename T, int kStride>
FASTGEN_HD void store_march_result(const MarchArguments<T>& a, const MarchShared& shared,
                                   const MarchPlace& place, int group, int warp, int lane) {
  constexpr int V = kWideExtent<T>;
  const int begin = (place.from - place.column) * kStride * a.out_channels;
  const int most = a.out_width - place.column * kStride;  // so many columns are left
  const int columns = (place.to - place.column) * kStride;
  const int end = (columns < most ? columns : most) * a.out_channels;
  FASTGEN_UNROLL
  for (int row = 0; row < kStride; ++row) {
    const int y = group * kStride - a.padding_h + row;
    if (y < 0 || y >= a.out_height) continue;
    const T* staged =
        reinterpret_cast<const T*>(shared.staged + (warp * kStride + row) * a.plan.staged_pitch);
    T* to = a.result +
            ((place.image * a.out_height + y) * a.out_width + place.column * kStride) *
                a.out_channels;
    FASTGEN_UNROLL_BY(1)
    for (int i = begin + lane * V; i < end; i += 32 * V) {
      store_pack<T, V>(to + i, load_pack<T, V>(staged + i));
    }
  }
}

}  // namespace fastgen::cuda
