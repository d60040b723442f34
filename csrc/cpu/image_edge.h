// What the image-edge convolutions share: one call joins a picture of 1 to 4 channels and a map of
// `filters` channels,
//
//   map[n, k, p, q]  ~  picture[n, c, p * stride_h + i - padding_h, q * stride_w + j - padding_w]
//                       weight[k, c, i, j],
//
// and computes one of the three from the other two.
#pragma once

#include "cpu/capability.h"
#include "dtype.h"

namespace fastgen::cpu {

struct ImageEdgeShape {
  Dtype dtype;  // float32, bfloat16 or float64
  std::int64_t batch;
  std::int64_t channels, height, width;          // of the picture
  std::int64_t filters, map_height, map_width;   // of the map
  std::int64_t kernel_h, kernel_w, stride_h, stride_w, padding_h, padding_w;
};

// How the work is cut and what it needs besides its tensors. It depends on the shape alone, so sums
// have the same bits for every number of threads.
struct ImageEdgePlan {
  std::int64_t band;    // rows of the result in a piece
  std::int64_t bands;   // per picture
  std::int64_t pieces;  // for threads to share
  std::int64_t piece_operations;    // multiplications and additions, about
  std::int64_t packed_bytes;        // the weight as the kernels want it, once per call
  std::int64_t scratch_bytes;       // per thread
};

constexpr std::int64_t kMostKernel = 16;          // rows or columns
constexpr std::int64_t kImageEdgeAlignment = 64;  // of packed weights and scratch memory
constexpr std::int64_t kMostLanes = 16;           // of any version; packed rows are padded to it

}  // namespace fastgen::cpu
