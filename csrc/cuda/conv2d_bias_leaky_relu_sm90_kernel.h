// The kernel behind conv2d_bias_leaky_relu_sm90.h: a CUTLASS 4 collective main loop (TMA im2col,
// wgmma) with an epilogue that adds the bias and applies leaky ReLU before the output is stored.
//
// Each conv2d_bias_leaky_relu_sm90_<dtype>.cu makes a kernel per tile shape from this template.
#pragma once

// Before every other header of CUTLASS, for what it redirects.
#include "cuda/tensor_map_sm90.h"

// Next, or collective_builder.hpp does not find KernelHardwareInfo.
#include <cutlass/kernel_hardware_info.hpp>

#include "cuda/conv2d_bias_leaky_relu_sm90.h"
#include "formulas.h"

#include <cute/tensor.hpp>
#include <cutlass/conv/collective/collective_builder.hpp>
#include <cutlass/conv/convnd_problem_shape.hpp>
#include <cutlass/conv/convolution.h>
#include <cutlass/conv/dispatch_policy.hpp>
#include <cutlass/conv/kernel/conv_universal.hpp>
#include <cutlass/cutlass.h>
#include <cutlass/epilogue/collective/collective_builder.hpp>
#include <cutlass/epilogue/fusion/operations.hpp>
#include <cutlass/numeric_types.h>

namespace fastgen::cuda {

// The formula of csrc/formulas.h as CUTLASS wants an activation: for one float and for an array.
template <typename T>
struct LeakyRelu;

template <>
struct LeakyRelu<float> {
  static const bool kIsHeavy = false;
  struct Arguments {
    float slope = 0;
  };
  CUTLASS_HOST_DEVICE float operator()(const float& value, const Arguments& arguments) const {
    return leaky_relu(value, arguments.slope);
  }
};

template <int N>
struct LeakyRelu<cutlass::Array<float, N>> {
  static const bool kIsHeavy = false;
  using Arguments = LeakyRelu<float>::Arguments;
  CUTLASS_HOST_DEVICE cutlass::Array<float, N> operator()(const cutlass::Array<float, N>& values,
                                                          const Arguments& arguments) const {
    cutlass::Array<float, N> result;
    CUTLASS_PRAGMA_UNROLL
    for (int i = 0; i < N; ++i) result[i] = leaky_relu(values[i], arguments.slope);
    return result;
  }
};

// A tile shape and how it fills a multiprocessor.
//
//   Pixels, Filters  what one thread block computes; its sums take Pixels * Filters / 128 registers
//                    of each of the 128 threads that multiply
//   Cluster          neighbours along the pixels that share each weight tile by multicast
//   Blocks           thread blocks per multiprocessor: with two or more, one stores while another
//                    multiplies
//   Stages           tiles in flight; Blocks * Stages * (Pixels + Filters) * 128 bytes of shared
//                    memory fit into 227 KiB
template <int Pixels, int Filters, int Cluster, int Blocks, int Stages>
struct Tile {
  static constexpr int pixels = Pixels;
  static constexpr int filters = Filters;
  static constexpr int cluster = Cluster;
  static constexpr int blocks = Blocks;
  static constexpr int stages = Stages;
};

using Tile128x128 = Tile<128, 128, 2, 1, 6>;
using Tile128x64 = Tile<128, 64, 1, 2, 4>;
using Tile64x64 = Tile<64, 64, 1, 3, 4>;

template <class Element, class T>
struct HopperConvolution {
  static constexpr auto kForward = cutlass::conv::Operator::kFprop;
  static constexpr int kAlignment = 16 / sizeof(Element);
  using Layout = cutlass::layout::TensorNHWC;
  using TileShape =
      cute::Shape<cute::Int<T::pixels>, cute::Int<T::filters>, cute::Shape<cute::_64>>;
  using ClusterShape = cute::Shape<cute::Int<T::cluster>, cute::_1, cute::_1>;

  using Fusion = cutlass::epilogue::fusion::LinCombPerColBiasEltAct<
      LeakyRelu, Element, float, /*bias*/ Element, /*source*/ void, /*scalar*/ float>;
  using Epilogue = typename cutlass::epilogue::collective::CollectiveBuilder<
      cutlass::arch::Sm90, cutlass::arch::OpClassTensorOp, TileShape, ClusterShape,
      cutlass::epilogue::collective::EpilogueTileAuto, float, float, /*source*/ void, Layout,
      kAlignment, Element, Layout, kAlignment, cutlass::epilogue::TmaWarpSpecialized,
      Fusion>::CollectiveOp;
  using Mainloop = typename cutlass::conv::collective::CollectiveBuilder<
      cutlass::arch::Sm90, cutlass::arch::OpClassTensorOp, kForward, Element, Layout, kAlignment,
      Element, Layout, kAlignment, float, TileShape, ClusterShape,
      cutlass::conv::collective::StageCount<T::stages>,
      cutlass::conv::KernelImplicitTmaWarpSpecializedSm90>::CollectiveOp;
  using Problem = cutlass::conv::ConvProblemShape<kForward, 2>;
  using Kernel = cutlass::conv::kernel::ConvUniversal<Problem, Mainloop, Epilogue>;

  static_assert(T::blocks * (Kernel::SharedStorageSize + 1024) <= 228 * 1024,
                "the thread blocks do not fit into a multiprocessor's shared memory");

  static Problem problem(const HopperGeometry& g) {
    const auto extent = [](std::int64_t value) { return static_cast<int>(value); };
    const cute::array<int, 2> padding{extent(g.padding_height), extent(g.padding_width)};
    // CUTLASS infers the output's extents, by the same formula as convolved_extent.
    return Problem(
        cutlass::conv::Mode::kCrossCorrelation,
        {extent(g.batch), extent(g.height), extent(g.width), extent(g.channels)},
        {extent(g.filters), extent(g.kernel_height), extent(g.kernel_width), extent(g.channels)},
        padding, padding, {extent(g.stride_height), extent(g.stride_width)},
        {extent(g.dilation_height), extent(g.dilation_width)}, /*groups*/ 1);
  }

  static typename Kernel::Arguments arguments(const HopperConv2dCall& call) {
    const Problem shape = problem(call.geometry);
    typename Kernel::Arguments arguments;
    arguments.problem_shape = shape;
    arguments.mainloop.ptr_A = static_cast<const Element*>(call.input);
    arguments.mainloop.ptr_B = static_cast<const Element*>(call.weight);
    arguments.epilogue.ptr_D = static_cast<Element*>(call.output);
    // ((width, height, batch), filters, -) from (batch, height, width, filters).
    cute::get<0, 0>(arguments.epilogue.dD) = shape.stride_C[2];
    cute::get<0, 1>(arguments.epilogue.dD) = shape.stride_C[1];
    cute::get<0, 2>(arguments.epilogue.dD) = shape.stride_C[0];
    arguments.epilogue.ptr_C = nullptr;
    arguments.epilogue.dC = {};
    arguments.epilogue.thread.alpha = 1;
    arguments.epilogue.thread.beta = 0;
    // nullptr counts as zeros.
    arguments.epilogue.thread.bias_ptr = static_cast<const Element*>(call.bias);
    arguments.epilogue.thread.activation.slope = call.slope;
    return arguments;
  }
};

template <class Element, class T>
__global__ void __launch_bounds__(256, T::blocks)
    hopper_conv2d_kernel(const __grid_constant__
                         typename HopperConvolution<Element, T>::Kernel::Params params) {
  extern __shared__ char shared[];
  typename HopperConvolution<Element, T>::Kernel kernel;
  kernel(params, shared);
}

template <class Element, class T>
const char* launch_hopper_conv2d(const HopperConv2dCall& call, void* stream) {
  using Kernel = typename HopperConvolution<Element, T>::Kernel;
  static_assert(Kernel::MaxThreadsPerBlock == 256);

  const typename Kernel::Arguments arguments = HopperConvolution<Element, T>::arguments(call);
  if (!Kernel::can_implement(arguments)) return "CUTLASS refuses this convolution";
  const TensorMapEncoding encoding;
  typename Kernel::Params params = Kernel::to_underlying_arguments(arguments, nullptr);
  if (const char* error = encoding.error()) return error;

  const auto kernel = &hopper_conv2d_kernel<Element, T>;
  cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                           Kernel::SharedStorageSize);
  if (error == cudaSuccess) {
    cudaLaunchAttribute cluster;
    cluster.id = cudaLaunchAttributeClusterDimension;
    cluster.val.clusterDim = {T::cluster, 1, 1};
    cudaLaunchConfig_t config{};
    config.gridDim = Kernel::get_grid_shape(params);
    config.blockDim = Kernel::get_block_shape();
    config.dynamicSmemBytes = Kernel::SharedStorageSize;
    config.stream = static_cast<cudaStream_t>(stream);
    config.attrs = &cluster;
    config.numAttrs = 1;
    error = cudaLaunchKernelEx(&config, kernel, params);
  }
  if (error == cudaSuccess) return nullptr;
  cudaGetLastError();  // reported here, so not left for the next one who asks
  return cudaGetErrorString(error);
}

}  // namespace fastgen::cuda
