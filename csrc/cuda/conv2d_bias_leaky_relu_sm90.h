// Convolution + bias + leaky ReLU on Hopper's tensor cores (CUTLASS, sm_90a): what the operator
// calls, and what these kernels can do. No CUDA or CUTLASS header is needed here, so that the
// arithmetic is tested on the host.
//
// An implicit GEMM of M = batch * height * width of the output, N = filters and K = channels *
// kernel height * width. The tensor memory accelerator (TMA) gathers the input in its im2col mode:
// one descriptor says which pixels a kernel offset visits, and what lies outside the picture
// arrives as zeros. Most limits below are field widths of that descriptor.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <limits>

namespace fastgen::cuda {

// A convolution, groups 1. Input (batch, height, width, channels), weight (filters, kernel height,
// kernel width, channels) and output (batch, height, width, filters) are dense in that order, which
// is channels_last.
struct HopperGeometry {
  std::int64_t batch, channels, height, width;
  std::int64_t filters, kernel_height, kernel_width;
  std::int64_t stride_height, stride_width;
  std::int64_t padding_height, padding_width;
  std::int64_t dilation_height, dilation_width;
};

// floor((extent + 2 padding - dilation (kernel - 1) - 1) / stride) + 1, PyTorch's; 0 where the
// dilated kernel does not fit.
inline std::int64_t convolved_extent(std::int64_t extent, std::int64_t kernel, std::int64_t stride,
                                     std::int64_t padding, std::int64_t dilation) {
  const std::int64_t room = extent + 2 * padding - dilation * (kernel - 1) - 1;
  return room < 0 ? 0 : room / stride + 1;
}

inline std::int64_t output_height(const HopperGeometry& g) {
  return convolved_extent(g.height, g.kernel_height, g.stride_height, g.padding_height,
                          g.dilation_height);
}

inline std::int64_t output_width(const HopperGeometry& g) {
  return convolved_extent(g.width, g.kernel_width, g.stride_width, g.padding_width,
                          g.dilation_width);
}

inline constexpr std::int64_t kMost32 = std::numeric_limits<std::int32_t>::max();

// Whether the product of positive factors is at most `limit`, without overflow.
inline bool product_within(std::int64_t limit, std::initializer_list<std::int64_t> factors) {
  for (const std::int64_t factor : factors) limit /= factor;
  return limit > 0;
}

// Why no kernel here computes this convolution, or nullptr: any of them does.
inline const char* hopper_obstacle(const HopperGeometry& g) {
  const std::int64_t extents[] = {g.batch,   g.channels,      g.height,      g.width,
                                  g.filters, g.kernel_height, g.kernel_width};
  for (const std::int64_t extent : extents) {
    // Half of what 32 bits count, so that no sum of two overflows in CUTLASS's arithmetic.
    if (extent < 1 || extent >= std::int64_t{1} << 30) return "every extent must lie in [1, 2^30)";
  }
  if (g.channels % 8 != 0 || g.filters % 8 != 0) {
    return "input channels and filters must be multiples of 8: TMA moves 16 bytes at least";
  }
  const std::int64_t strides[] = {g.stride_height, g.stride_width};
  const std::int64_t paddings[] = {g.padding_height, g.padding_width};
  const std::int64_t dilations[] = {g.dilation_height, g.dilation_width};
  const std::int64_t kernels[] = {g.kernel_height, g.kernel_width};
  for (int d = 0; d < 2; ++d) {
    if (strides[d] < 1 || strides[d] > 8) return "strides must lie in [1, 8], which is TMA's range";
    if (paddings[d] < 0 || paddings[d] > 128) return "paddings must lie in [0, 128]";
    if (dilations[d] < 1 || dilations[d] > 254) return "dilations must lie in [1, 254]";
    // A kernel offset has 8 bits, and so have, with a sign, the corners of the box of pixels that
    // offset 0 visits: -padding and padding - reach.
    const std::int64_t reach = dilations[d] * (kernels[d] - 1);
    if (reach > 254) return "dilation * (kernel - 1) must be below 255, which is TMA's range";
    if (paddings[d] - reach < -128 || paddings[d] - reach > 127) {
      return "padding - dilation * (kernel - 1) must lie in [-128, 127], which is TMA's range";
    }
  }
  const std::int64_t rows = output_height(g), columns = output_width(g);
  if (rows < 1 || columns < 1) return "the dilated kernel is larger than the padded input";
  // Pixels and products per output are counted in 32 bits; elements are not, so a tensor may hold
  // more than 2^31 of them.
  if (!product_within(kMost32, {g.batch, rows, columns})) {
    return "batch * height * width of the output must be below 2^31";
  }
  if (!product_within(kMost32, {g.channels, g.kernel_height, g.kernel_width})) {
    return "channels * height * width of the kernel must be below 2^31";
  }
  // TMA's strides are below 2^40 bytes.
  constexpr std::int64_t kStride = (std::int64_t{1} << 39) - 1;
  if (!product_within(kStride, {g.height, g.width, g.channels}) ||
      !product_within(kStride, {rows, columns, g.filters})) {
    return "one picture must hold less than 2^39 numbers";
  }
  if (g.filters > 65535 * 64) return "filters must be at most 4194240, the height of a grid";
  return nullptr;
}

// All four tensors are of the launcher's dtype; sums are kept in float32.
struct HopperConv2dCall {
  HopperGeometry geometry;
  const void* input;
  const void* weight;
  const void* bias;  // or nullptr
  void* output;
  float slope;
};

// A kernel per tile shape (output pixels x filters of a thread block) and dtype. Those of a dtype
// share a file: one takes 49 s to compile, all three 58. Launches on `stream`; nullptr when all
// went well. The geometry has no obstacle and the pointers lie on 16-byte boundaries. No workspace:
// sums stay in registers.
using HopperLauncher = const char*(const HopperConv2dCall& call, void* stream);
HopperLauncher hopper_conv2d_128x128_bfloat16, hopper_conv2d_128x128_float16;
HopperLauncher hopper_conv2d_128x64_bfloat16, hopper_conv2d_128x64_float16;
HopperLauncher hopper_conv2d_64x64_bfloat16, hopper_conv2d_64x64_float16;

// The tile shapes that the operator counts through, largest first.
struct HopperTile {
  int pixels, filters;
  HopperLauncher* bfloat16;
  HopperLauncher* float16;
};
inline constexpr HopperTile kHopperTiles[] = {
    {128, 128, hopper_conv2d_128x128_bfloat16, hopper_conv2d_128x128_float16},
    {128, 64, hopper_conv2d_128x64_bfloat16, hopper_conv2d_128x64_float16},
    {64, 64, hopper_conv2d_64x64_bfloat16, hopper_conv2d_64x64_float16},
};
inline constexpr int kHopperTileCount = sizeof(kHopperTiles) / sizeof(kHopperTiles[0]);

}  // namespace fastgen::cuda
