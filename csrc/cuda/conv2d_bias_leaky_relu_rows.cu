#include "cuda/conv2d_bias_leaky_relu_rows.h"

#include "cuda/conv2d_bias_leaky_relu_rows_body.h"
#include "cuda/shared_memory.h"

namespace fastgen::cuda {

namespace {

template <typename T, int kSteps, bool kMasked>
__global__ void __launch_bounds__(kRowsThreads, rows_resident<T>(kSteps))
    image_edge_conv2d_rows_kernel(const __grid_constant__ RowsConvArguments<T> a) {
  extern __shared__ uint4 memory[];
  const RowsConvShared shared = rows_conv_shared(memory, a.plan);
  const int thread = static_cast<int>(threadIdx.x), chunk = static_cast<int>(blockIdx.y);
  const int one_patch = a.plan.patch_bytes / 4;
  const RowsLane<T> lane(a.plan, thread);

  EdgePlace place = place_of(a.plan, blockIdx.x);
  RowsPiece held[kHeldPieces];
  fetch_pieces(a, place, thread, held);
  std::uint32_t* const raw = shared.patches + one_patch;
  if (a.plan.raw_weights) copy_raw_weights(a, chunk, thread, raw);
  stage_bias(a, chunk, thread, shared.bias);
  put_pieces(a, place, thread, held, shared.patches);
  wait_for_async_groups<0>();
  __syncthreads();
  deal_weights(a, chunk, thread, raw, shared.weights);
  __syncthreads();
  Rows weights[kMatrices<T>][kSteps];
  load_weights(lane, shared, weights);
  float bias[kMatrices<T>][4];
  if (!kMasked) load_bias(lane, shared.bias, bias);
  int places[2 * kSteps];
  const RowsUnits<T> units(a.plan, lane);
  find_words<T, kSteps>(a, lane, units, places);
  const int step = kept_in_register(4 * units.step_y * a.stride_h * a.plan.pitch);
  const int channel = lane.channel(a.plan, chunk);

  int turn = 0;
  for (std::uint32_t at = blockIdx.x; at < a.plan.tiles; at += gridDim.x, turn ^= 1) {
    const std::uint32_t next = at + gridDim.x;
    EdgePlace next_place = place;
    if (next < a.plan.tiles) {
      next_place = place_of(a.plan, next);
      fetch_pieces(a, next_place, thread, held);
    }

    int rows = units.count(a, place);
    int offset = turn * a.plan.patch_bytes;
    const UnitRuns runs = unit_runs(a, lane, units, channel, place);
    T* result = a.result + runs.offset;
    const T* output = kMasked ? a.output + runs.offset : nullptr;
#pragma unroll 1
    for (int unit = 0; unit < a.plan.units && rows > 0; ++unit) {
      Pack<T, kWideExtent<T>> masks[2];
      if constexpr (kMasked) load_masks(output, runs, masks);
      Columns columns[kSteps];
      load_columns(shared.patches, offset, places, columns);
      float sums[kMatrices<T>][4];
      start_sums<T, kMasked>(a, lane, shared.bias, bias, sums);
#pragma unroll
      for (int k = 0; k < kSteps; ++k) {
#pragma unroll
        for (int m = 0; m < kMatrices<T>; ++m) {
          multiply<T>(sums[m][0], sums[m][1], sums[m][2], sums[m][3], weights[m][k], columns[k]);
        }
      }
      store_unit<T, kMasked>(a, result, runs, masks, sums);
      rows -= units.step_y;
      offset += step;
      result += runs.step;
      if constexpr (kMasked) output += runs.step;
    }
    if (next < a.plan.tiles) {
      put_pieces(a, next_place, thread, held, shared.patches + (turn ^ 1) * one_patch);
    }
    place = next_place;
    __syncthreads();
  }
}

template <typename T, int kSteps, bool kMasked>
const char* launch(const ImageEdgeConvCall& call, const RowsConvPlan& plan, void* stream) {
  const auto kernel = image_edge_conv2d_rows_kernel<T, kSteps, kMasked>;
  if (const char* error = allow_shared_memory(kernel, plan.shared_bytes)) return error;
  const dim3 grid(plan.blocks, static_cast<unsigned>(plan.chunks));
  kernel<<<grid, kRowsThreads, static_cast<std::size_t>(plan.shared_bytes),
           static_cast<cudaStream_t>(stream)>>>(edge_conv_arguments<T>(call, plan));
  return launch_error();
}

template <typename T, int kSteps>
const char* launch(const ImageEdgeConvCall& call, const RowsConvPlan& plan, void* stream) {
  if (plan.steps != kSteps) {
    if constexpr (kSteps < kMostSteps<T>) {
      return launch<T, kSteps + (sizeof(T) == 4 ? 2 : 1)>(call, plan, stream);
    }
    return "unknown number of steps";
  }
  return call.output == nullptr ? launch<T, kSteps, false>(call, plan, stream)
                                : launch<T, kSteps, true>(call, plan, stream);
}

template <typename T>
bool launch(const ImageEdgeConvCall& call, void* stream, const char** problem) {
  const auto plan = rows_conv_plan<T>(call, multiprocessors(), shared_memory_limit());
  if (!plan.takes) return false;
  *problem = launch<T, sizeof(T) == 4 ? 2 : 1>(call, plan, stream);
  return true;
}

}  // namespace

bool image_edge_conv2d_rows(const ImageEdgeConvCall& call, void* stream, const char** problem) {
  switch (call.dtype) {
    case Dtype::float32:
      return call.allow_tf32 && launch<float>(call, stream, problem);
    case Dtype::bfloat16:
      return launch<BFloat16>(call, stream, problem);
    case Dtype::float16:
      return launch<Float16>(call, stream, problem);
  }
  return false;
}

}  // namespace fastgen::cuda
