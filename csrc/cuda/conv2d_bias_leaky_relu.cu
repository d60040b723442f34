#include "cuda/conv2d_bias_leaky_relu.h"

#include "cuda/conv2d_bias_leaky_relu_body.h"
#include "cuda/conv2d_bias_leaky_relu_rows.h"
#include "cuda/shared_memory.h"

namespace fastgen::cuda {

namespace {

template <typename T, bool kTensorCore, bool kChannelsLast>
__global__ void __launch_bounds__(kEdgeThreads, kEdgeResident)
    image_edge_conv2d_kernel(const __grid_constant__ EdgeConvArguments<T> a) {
  using Tile = EdgeTile<T, kTensorCore, kChannelsLast>;
  extern __shared__ uint4 memory[];
  const EdgeConvShared<T> shared =
      edge_conv_shared<T>(reinterpret_cast<unsigned char*>(memory), a.plan);
  const int thread = static_cast<int>(threadIdx.x), chunk = static_cast<int>(blockIdx.y);
  const Tile tile(a.plan, thread);

  stage_constants<T, kTensorCore, kChannelsLast>(a, chunk, thread, shared);
  int windows[Tile::kSlots];
  find_windows(a, tile, windows);
  stage_patch<T, kTensorCore>(a, blockIdx.x, thread, shared.patches);
  __syncthreads();

  const int one_patch = a.plan.patch_bytes / static_cast<int>(sizeof(Quad<T>));
  int turn = 0;
  for (std::uint32_t at = blockIdx.x; at < a.plan.tiles; at += gridDim.x, turn ^= 1) {
    const Quad<T>* patch = shared.patches + turn * one_patch;
    Quad<T>* next_patch = shared.patches + (turn ^ 1) * one_patch;
    const std::uint32_t next = at + gridDim.x;
    Quad<T> held[kHeldPixels];
    if (next < a.plan.tiles) {
      // Multiply-adds want the registers, and last long enough for the other block to be loading.
      if constexpr (kTensorCore) {
        fetch_held<T, kTensorCore>(a, next, thread, held);
      } else {
        stage_patch<T, kTensorCore>(a, next, thread, next_patch);
      }
    }

    if (tile.pixel < a.plan.tile_pixels) {
      float sums[Tile::kRows][8];
      start_sums(tile, shared, sums);
      if constexpr (kTensorCore) {
#pragma unroll 1
        for (int step = 0; step < a.plan.steps; ++step) {
          Quad<T> rows[4], columns[4];
          load_step(a, tile, shared, patch, windows, step, rows, columns);
#pragma unroll
          for (int part = 0; part < kParts<T>; ++part) {
#pragma unroll
            for (int i = 0; i < 2; ++i) {
              const Rows left = rows_of(rows[2 * i], rows[2 * i + 1], part);
#pragma unroll
              for (int j = 0; j < 4; ++j) {
                multiply<T>(sums[2 * i][2 * j], sums[2 * i][2 * j + 1], sums[2 * i + 1][2 * j],
                            sums[2 * i + 1][2 * j + 1], left, columns_of(columns[j], part));
              }
            }
          }
        }
      } else {
#pragma unroll 1
        for (int tap = 0; tap < a.plan.taps; ++tap) {
          add_tap(a, tile, shared, patch, windows, tap, sums);
        }
      }

      const EdgePlace place = place_of(a.plan, at);
#pragma unroll
      for (int first = 0; first < Tile::kRows; first += Tile::kStored) {
        store_rows(a, tile, place, chunk, first, sums);
      }
    }
    if constexpr (kTensorCore) {
      if (next < a.plan.tiles) stage_held<T, kTensorCore>(a, next, thread, held, next_patch);
    }
    __syncthreads();
  }
}

template <typename T, bool kTensorCore, bool kChannelsLast>
const char* launch(const ImageEdgeConvCall& call, void* stream) {
  const auto plan = edge_conv_plan<T, kTensorCore, kChannelsLast>(call, multiprocessors(),
                                                                  shared_memory_limit());
  if (plan.problem != nullptr) return plan.problem;
  const auto kernel = image_edge_conv2d_kernel<T, kTensorCore, kChannelsLast>;
  if (const char* error = allow_shared_memory(kernel, plan.shared_bytes)) return error;
  const dim3 grid(plan.blocks, static_cast<unsigned>(plan.chunks));
  kernel<<<grid, kEdgeThreads, static_cast<std::size_t>(plan.shared_bytes),
           static_cast<cudaStream_t>(stream)>>>(edge_conv_arguments<T>(call, plan));
  return launch_error();
}

template <typename T, bool kTensorCore>
const char* launch(const ImageEdgeConvCall& call, void* stream) {
  return call.channels_last ? launch<T, kTensorCore, true>(call, stream)
                            : launch<T, kTensorCore, false>(call, stream);
}

}  // namespace

const char* image_edge_conv2d(const ImageEdgeConvCall& call, void* stream) {
  if (call.batch * call.filters * call.out_height * call.out_width == 0) return nullptr;
  const char* problem = nullptr;
  if (image_edge_conv2d_rows(call, stream, &problem)) return problem;
  switch (call.dtype) {
    case Dtype::float32:
      return call.allow_tf32 ? launch<float, true>(call, stream)
                             : launch<float, false>(call, stream);
    case Dtype::bfloat16:
      return launch<BFloat16, true>(call, stream);
    case Dtype::float16:
      return launch<Float16, true>(call, stream);
  }
  return "unknown dtype";
}

}  // namespace fastgen::cuda
