// What the Winograd convolutions share: one call joins an input of C channels and a map of N
// channels, both channels_last and both numbers multiples of 16,
//
//   map[n, k, p, q]  ~  input[n, c, p * s + i - padding_h, q * s + j - padding_w] weight[k, c, i, j]
//
// with a kernel of 3x3 and stride s = 1 or 2, or 4x4 or 5x5 and s = 2, and computes one of the three
// from the other two.
#pragma once

#include "cpu/capability.h"
#include "dtype.h"

namespace fastgen::cpu {

constexpr std::int64_t kWinogradChannels = 16;  // both numbers of channels are multiples of it
constexpr int kWinogradKinds = 4;  // sizes of tiles: 2 or 3 rows and columns of the map
constexpr std::int64_t kWinogradPanel = 32;     // columns of a product that are computed together

struct WinogradShape {
  Dtype dtype;  // float32, bfloat16 or float64
  std::int64_t batch;
  std::int64_t channels, height, width;         // of the input
  std::int64_t filters, map_height, map_width;  // of the map
  std::int64_t kernel, stride;                  // 3 and 1, or 3, 4 or 5 and 2
  std::int64_t padding_h, padding_w;
  bool mixed;  // tiles of 3 outputs a side beside those of 2
};

// How the work is cut and what it needs besides its tensors. No sum depends on it, but those of a
// weight gradient on `tiles` and `segments`, which there follow from the shape alone.
struct WinogradPlan {
  std::int64_t tiles;   // that are transformed together, at most
  std::int64_t kind_blocks[kWinogradKinds];  // of tiles of each size
  std::int64_t images;  // of a block of images
  std::int64_t rows;    // of tiles of an image that are transformed together
  std::int64_t blocks;  // of tiles, of images or of input channels
  std::int64_t block_channels;  // of a block of input channels
  std::int64_t groups;  // of panels of columns; a piece is a block and a group
  std::int64_t segments;  // of a weight gradient, of tiles, each with sums of its own; of a transposed
                          // convolution, of the rows of tiles of an image; else 1
  std::int64_t pieces;    // for threads to share
  std::int64_t piece_operations;  // multiplications and additions, about
  std::int64_t panels;            // of the transformed weight, all of them
  std::int64_t packed_bytes;      // all panels, once per call; 0: each piece transforms its own.
                                  // Of a weight gradient, the sums of segments; 0: there is one
  std::int64_t scratch_bytes;     // per thread
};

struct WinogradCall {
  WinogradShape shape;
  WinogradPlan plan;
  const void* input;  // channels_last, as all but the weight
  const void* map;
  const void* weight;
  std::int64_t weight_strides[4];  // in elements; any
  const void* bias;    // one per channel of the result, or nullptr
  const void* output;  // in the layout of the result, or nullptr
  void* result;
  std::int64_t result_strides[4];  // of a weight gradient
  double slope;
  bool stream;  // whether the result goes past the caches
  void* packed;  // workspace of plan.packed_bytes
};

using WinogradPack = void(const WinogradCall& call, std::int64_t begin, std::int64_t end);
using Winograd = void(const WinogradCall& call, std::int64_t begin, std::int64_t end,
                      void* scratch);

}  // namespace fastgen::cpu
