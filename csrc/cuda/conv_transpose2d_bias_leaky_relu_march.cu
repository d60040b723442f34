#include "cuda/conv_transpose2d_bias_leaky_relu_march.h"

#include "cuda/conv_transpose2d_bias_leaky_relu_march_body.h"
#include "cuda/shared_memory.h"

namespace fastgen::cuda {

namespace {

template <typename T, int kPieces, int kStride, int kHeld>
__global__ void __launch_bounds__(kMarchWarps * 32, kMarchResident<kPieces>)
    image_edge_march_kernel(const __grid_constant__ MarchArguments<T> a) {
  using M = March<kStride, kHeld>;
  constexpr int kStages = kMarchStages<kPieces>;
  extern __shared__ uint4 memory[];
  const MarchShared shared =
      march_shared(reinterpret_cast<unsigned char*>(memory), a.plan);
  const int thread = static_cast<int>(threadIdx.x), warp = thread / 32, lane = thread % 32;
  const MarchPlace place = march_place(a, blockIdx.x, warp);
  MarchSource source = march_source<T, kPieces, M::kTaps>(a, place, lane);
#pragma unroll
  for (int s = 0; s < kStages - 1; ++s) {
    copy_row<T, kPieces>(a, place, lane, source, ring_stage<kPieces>(shared, warp, s));
    end_async_group();
  }
  stage_march_weights<T, kPieces, kStride, kHeld>(
      a, thread, a.plan.warps * a.plan.tiles_held * 32, shared.weights);
  float bias[kHeld];
  load_bias<T, kStride, kHeld>(a, lane, bias);
  const OwnColumns own = own_columns<T, kStride>(a, place);
  __syncthreads();
  Rows weights[M::kTaps][M::kTiles][kPieces];
#pragma unroll
  for (int k = 0; k < M::kTaps * M::kTiles; ++k) {
    const int tap = tap_of_sums<M::kTaps>(place, k / M::kTiles), tile = k % M::kTiles;
#pragma unroll
    for (int q = 0; q < kPieces; ++q) {
      weights[k / M::kTiles][tile][q] =
          weight_columns<kPieces>(shared.weights, tap * M::kTiles + tile, q, lane);
    }
  }
  __syncthreads();

  // Sums of the row group that this row completes, and of those that it begins.
  MarchSums<M::kTiles> sums[M::kTaps];
#pragma unroll
  for (int tap = 0; tap < M::kTaps; ++tap) start_sums<T, kStride, kHeld>(bias, sums[tap]);

  const int rows = a.plan.strip_groups + M::kTaps - 1;
  int stage = 0;
#pragma unroll 1
  for (int step = 0; step < rows; ++step) {
    wait_for_async_groups<kStages - 2>();
    __syncwarp();
    // Into the stage of the row before, whose products are done.
    copy_row<T, kPieces>(
        a, place, lane, source,
        ring_stage<kPieces>(shared, warp, stage == 0 ? kStages - 1 : stage - 1));
    end_async_group();

    const unsigned char* pixels = ring_stage<kPieces>(shared, warp, stage);
    stage = stage == kStages - 1 ? 0 : stage + 1;
#pragma unroll
    for (int q = 0; q < kPieces; ++q) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
#pragma unroll
        for (int pair = 0; pair < 2; ++pair) {
          const Rows left = pixel_rows<T>(pixels, q, pair, half, lane);
#pragma unroll
          for (int tap = 0; tap < M::kTaps; ++tap) {
#pragma unroll
            for (int tile = 0; tile < M::kTiles; ++tile) {
              float(&d)[4] = sums[tap][tile][pair];
              multiply<T>(d[0], d[1], d[2], d[3], left, half_of(weights[tap][tile][q], half));
            }
          }
        }
      }
    }

    if (step >= M::kTaps - 1) {
      const int parity = step & 1;
      if (a.plan.warps > 1) {
        store_edges<kStride, kHeld>(shared, parity, warp, lane, sums[0]);
        __syncthreads();
      }
      float given[M::kMoves];
#pragma unroll
      for (int move = 0; move < M::kMoves; ++move) {
        given[move] = __shfl_sync(0xffffffffu, given_away<kStride, kHeld>(sums[0], lane, move),
                                  giver<kStride>(lane, move));
      }
      load_edges<kStride, kHeld>(shared, place, parity, warp, lane, given);
      float values[kHeld][4];
      add_moves<kStride, kHeld>(sums[0], given, lane, values);
      activate<kHeld>(a.tanh, a.slope, values);
      stage_result<T, kStride, kHeld>(a, shared, warp, lane, values);
      __syncwarp();
      const int group = completed_group<M::kTaps>(place, step);
      if (group >= place.first_group && group < place.end_group) {
        store_march_result<T, kStride, kHeld>(a, shared, place, own, group, warp, lane);
      }
      __syncwarp();
    }

#pragma unroll
    for (int tap = 0; tap < M::kTaps - 1; ++tap) {
#pragma unroll
      for (int k = 0; k < 8 * M::kTiles; ++k) {
        sums[tap][k / 8][k / 4 % 2][k % 4] = sums[tap + 1][k / 8][k / 4 % 2][k % 4];
      }
    }
    start_sums<T, kStride, kHeld>(bias, sums[M::kTaps - 1]);
  }
}

template <typename T, int kPieces, int kStride, int kHeld>
const char* launch(const ImageEdgeTransposeCall& call, void* stream, bool* taken) {
  const MarchPlan plan = march_plan<T, kPieces, kStride, kHeld>(call, multiprocessors(),
                                                                shared_memory_limit());
  *taken = plan.blocks != 0;
  if (!*taken) return nullptr;
  const auto kernel = image_edge_march_kernel<T, kPieces, kStride, kHeld>;
  if (const char* error = allow_shared_memory(kernel, plan.shared_bytes)) return error;
  kernel<<<static_cast<unsigned>(plan.blocks),
           static_cast<unsigned>(plan.warps * plan.tiles_held * 32),
           static_cast<std::size_t>(plan.shared_bytes), static_cast<cudaStream_t>(stream)>>>(
      march_arguments<T>(call, plan));
  return launch_error();
}

template <typename T, int kPieces>
const char* launch(const ImageEdgeTransposeCall& call, void* stream, bool* taken) {
  if (call.stride_w == 1) return launch<T, kPieces, 1, 1>(call, stream, taken);
  return call.out_channels == 1 ? launch<T, kPieces, 2, 1>(call, stream, taken)
                                : launch<T, kPieces, 2, 3>(call, stream, taken);
}

template <typename T>
const char* launch(const ImageEdgeTransposeCall& call, void* stream, bool* taken) {
  *taken = march_takes<T>(call);
  if (!*taken) return nullptr;
  return march_pieces<T>(call) == 2 ? launch<T, 2>(call, stream, taken)
                                    : launch<T, 4>(call, stream, taken);
}

}  // namespace

const char* march_conv_transpose2d(const ImageEdgeTransposeCall& call, void* stream, bool* taken) {
  *taken = false;
  switch (call.dtype) {
    case Dtype::float32:
      return call.allow_tf32 ? launch<float>(call, stream, taken) : nullptr;
    case Dtype::bfloat16:
      return launch<BFloat16>(call, stream, taken);
    case Dtype::float16:
      return launch<Float16>(call, stream, taken);
  }
  return nullptr;
}

}  // namespace fastgen::cuda
