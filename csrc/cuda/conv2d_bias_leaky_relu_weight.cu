#include "cuda/conv2d_bias_leaky_relu_weight.h"

#include "cuda/conv2d_bias_leaky_relu_weight_body.h"
#include "cuda/shared_memory.h"

namespace fastgen::cuda {

namespace {

template <typename T, int kTiles>
__global__ void __launch_bounds__(kMostWeightThreads, 1)
    image_edge_weight_kernel(const __grid_constant__ EdgeWeightArguments<T> a) {
  extern __shared__ uint4 memory[];
  const EdgeWeightPlan& plan = a.plan;
  int* windows = reinterpret_cast<int*>(memory);
  unsigned char* stages = reinterpret_cast<unsigned char*>(memory) + plan.table_bytes;
  const int thread = static_cast<int>(threadIdx.x);
  const int column_chunk = static_cast<int>(a.plan.by_filter_chunks.quotient(blockIdx.y));
  const int chunk = static_cast<int>(blockIdx.y) - column_chunk * a.plan.filter_chunks;
  const WeightLane lane(plan, thread);

  fill_windows(a, thread, windows);
  int taps[kTiles];
  find_taps(a, lane, column_chunk, taps);
  float sums[2][kTiles][4] = {};

  // Neighbouring tiles share rows of the picture, so a block takes a run of them. Its first turns
  // only stage: in a loop of their own they would be the same instructions again, to be fetched
  // again.
  const TileRun run = run_of(plan, blockIdx.x);
  const std::uint32_t ahead = static_cast<std::uint32_t>(plan.stages - 1);
  int current = 0, free = 0;
#pragma unroll 1
  for (std::uint32_t next = run.first; next < run.end + ahead; ++next) {
    const bool multiplies = next >= run.first + ahead;
    if (multiplies) {
      wait_for_async_groups(plan.stages - 2);
      round_patch<T>(plan, thread, stages + current * plan.stage_bytes);
      __syncthreads();
    }
    if (next < run.end) stage_tile(a, next, chunk, thread, stages + free * plan.stage_bytes);
    end_async_group();
    free = free + 1 == plan.stages ? 0 : free + 1;
    if (!multiplies) continue;

    const WeightPlace place = place_of(a, next - ahead);
    const unsigned char* map = stages + current * plan.stage_bytes;
    const unsigned char* patch = first_window(a, place, map);
#pragma unroll 1
    for (int s = 0; s < plan.steps; ++s) {
      const int step = step_of(plan, lane, s);
      int own[4];
      load_windows<T>(place, lane, windows, step, plan.tile_width * plan.tile_height, own);
#pragma unroll
      for (int part = 0; part < kParts<T>; ++part) {
        Rows rows[2];
        Columns columns[kTiles];
        load_rows<T>(plan, lane, map, step, part, rows);
        load_columns<T, kTiles>(patch, own, taps, part, columns);
#pragma unroll
        for (int j = 0; j < kTiles; ++j) {
#pragma unroll
          for (int i = 0; i < 2; ++i) {
            multiply<T>(sums[i][j][0], sums[i][j][1], sums[i][j][2], sums[i][j][3], rows[i],
                        columns[j]);
          }
        }
      }
    }
    current = current + 1 == plan.stages ? 0 : current + 1;
  }

  __syncthreads();
  float* shared = reinterpret_cast<float*>(stages);
  leave_sums(plan, lane, sums, shared);
  __syncthreads();
  write_partial(a, blockIdx.x, chunk, column_chunk, thread, shared);
}

template <typename T>
__global__ void __launch_bounds__(kWeightSumThreads)
    image_edge_weight_sum_kernel(const __grid_constant__ EdgeWeightArguments<T> a) {
  __shared__ float rows[kSummedRows * kSummedColumns];
  const int group = static_cast<int>(blockIdx.x), thread = static_cast<int>(threadIdx.x);
  const int column_chunk = static_cast<int>(a.plan.by_filter_chunks.quotient(blockIdx.y));
  const int chunk = static_cast<int>(blockIdx.y) - column_chunk * a.plan.filter_chunks;
  sum_rows(a, group, chunk, column_chunk, thread, rows);
  __syncthreads();
  if (thread < kFoldingThreads) fold_rows(thread, rows);
  __syncthreads();
  if (thread < kSummedColumns) write_element(a, group, chunk, column_chunk, thread, rows);
}

template <typename T>
EdgeWeightPlan plan_of(const ImageEdgeWeightCall& call) {
  return edge_weight_plan<T>(call, multiprocessors(), shared_memory_limit(), kWeightThreads,
                             kWeightResident);
}

template <typename T, int kTiles>
const char* launch_products(const EdgeWeightArguments<T>& arguments, void* stream) {
  const EdgeWeightPlan& plan = arguments.plan;
  const auto kernel = image_edge_weight_kernel<T, kTiles>;
  if (const char* error = allow_shared_memory(kernel, plan.shared_bytes)) return error;
  const dim3 grid(plan.blocks, static_cast<unsigned>(plan.filter_chunks * plan.column_chunks));
  kernel<<<grid, static_cast<unsigned>(plan.threads), static_cast<std::size_t>(plan.shared_bytes),
           static_cast<cudaStream_t>(stream)>>>(arguments);
  return launch_error();
}

template <typename T>
const char* launch_sum(const EdgeWeightArguments<T>& arguments, void* stream) {
  const EdgeWeightPlan& plan = arguments.plan;
  const dim3 grid(static_cast<unsigned>(block_quads(plan) / kSummedQuads),
                  static_cast<unsigned>(plan.filter_chunks * plan.column_chunks));
  image_edge_weight_sum_kernel<T>
      <<<grid, kWeightSumThreads, 0, static_cast<cudaStream_t>(stream)>>>(arguments);
  return launch_error();
}

template <typename T>
const char* launch(const ImageEdgeWeightCall& call, void* stream) {
  const EdgeWeightPlan plan = plan_of<T>(call);
  if (plan.problem != nullptr) return plan.problem;
  const EdgeWeightArguments<T> arguments = edge_weight_arguments<T>(call, plan);
  const char* error = plan.column_tiles == 2   ? launch_products<T, 2>(arguments, stream)
                      : plan.column_tiles == 4 ? launch_products<T, 4>(arguments, stream)
                                               : launch_products<T, 6>(arguments, stream);
  return error != nullptr ? error : launch_sum<T>(arguments, stream);
}

}  // namespace

std::int64_t edge_weight_partials(const ImageEdgeWeightCall& call) {
  const EdgeWeightPlan plan =
      call.dtype == Dtype::float32 ? plan_of<float>(call) : plan_of<BFloat16>(call);
  return plan.problem != nullptr ? 0 : partial_floats(plan);
}

const char* image_edge_conv2d_weight(const ImageEdgeWeightCall& call, void* stream) {
  switch (call.dtype) {
    case Dtype::float32:
      return launch<float>(call, stream);
    case Dtype::bfloat16:
      return launch<BFloat16>(call, stream);
    case Dtype::float16:
      return launch<Float16>(call, stream);
  }
  return "unknown dtype";
}

}  // namespace fastgen::cuda
