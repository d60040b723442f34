#include "cuda/conv_transpose2d_bias_leaky_relu.h"

#include "cuda/conv_transpose2d_bias_leaky_relu_body.h"
#include "cuda/conv_transpose2d_bias_leaky_relu_march.h"
#include "cuda/shared_memory.h"

namespace fastgen::cuda {

namespace {

// Blocks on a multiprocessor: as many as the registers allow. Before Hopper the same code needs a
// few more of them.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
inline constexpr int kMostResident = 3;
#else
inline constexpr int kMostResident = 4;
#endif
template <typename T, int kTiles>
inline constexpr int kStripResident =
    kMostResident - (sizeof(T) == 2 ? 0 : 1) - (kTiles == kFewTiles ? 0 : 1);

template <typename T, bool kTensorCore, bool kChannelsLast, int kTiles>
__device__ __forceinline__ void multiply_chunk(const StripArguments<T>& a,
                                               const StripShared<T>& shared, int chunk, int lane,
                                               const StripChunk<T>& x,
                                               float (&sums)[4 * kTiles][4]) {
  if constexpr (kTensorCore) {
#pragma unroll
    for (int s = 0; s < 2; ++s) {
      Quad<T> columns[4];
#pragma unroll
      for (int j = 0; j < 4; ++j) columns[j] = round_quad(x.quads[s][j]);
      const Rows* weights =
          shared.weights + (2 * chunk + s) * a.plan.tiles * kParts<T> * 32 + lane;
#pragma unroll
      for (int i = 0; i < kTiles; ++i) {
        if (i >= a.plan.tiles) break;
#pragma unroll
        for (int part = 0; part < kParts<T>; ++part) {
          const auto words =
              load_pack<std::uint32_t, 4>((weights + (i * kParts<T> + part) * 32)->words);
          const Rows rows{{words.values[0], words.values[1], words.values[2], words.values[3]}};
#pragma unroll
          for (int j = 0; j < 4; ++j) {
            float (&d)[4] = sums[4 * i + j];
            multiply<T>(d[0], d[1], d[2], d[3], rows, columns_of(columns[j], part));
          }
        }
      }
    }
  } else {
    const int group = lane / 4 * 4;
    const auto fetch = [&](int s, int j, int t, int c) {
      return __shfl_sync(0xffffffffu, quad_value(x.quads[s][j], c), group + t);
    };
    add_chunk<kChannelsLast, kTiles>(shared, chunk, lane % 4, fetch, sums);
  }
}

template <typename T, bool kTensorCore, bool kChannelsLast, int kTiles>
__global__ void __launch_bounds__(kStripThreads, kStripResident<T, kTiles>)
    image_edge_conv_transpose2d_kernel(const __grid_constant__ StripArguments<T> a) {
  extern __shared__ uint4 memory[];
  const StripShared<T> shared =
      strip_shared<T>(reinterpret_cast<unsigned char*>(memory), a.plan);
  const int thread = static_cast<int>(threadIdx.x), lane = thread % 32;
  const Strip strip = strip_of(a, blockIdx.x);
  const int chunks = a.plan.steps / 2;

  int row = strip.first_group - a.plan.kept_rows;
  StripPixels pixels = find_pixels<T, kChannelsLast>(a, strip, row, thread);
  StripChunk<T> x;
  load_chunk<T, kChannelsLast>(a, strip, pixels, 0, lane % 4, x);
  stage_weights<T, kTensorCore, kChannelsLast, kTiles>(a, thread, shared);
  __syncthreads();

  for (int slot = 0; row < strip.end_group; row += a.plan.batch_rows) {
    float sums[4 * kTiles][4] = {};
#pragma unroll 1
    for (int chunk = 0; chunk < chunks; ++chunk) {
      // The next chunk is on its way while this one is multiplied, at the end of a batch the first
      // of the next batch, which so arrives while the products of this one are added up.
      const bool last = chunk == chunks - 1;
      if (last) {
        pixels = find_pixels<T, kChannelsLast>(a, strip, row + a.plan.batch_rows, thread);
      }
      StripChunk<T> next;
      load_chunk<T, kChannelsLast>(a, strip, pixels, last ? 0 : chunk + 1, lane % 4, next);
      multiply_chunk<T, kTensorCore, kChannelsLast, kTiles>(a, shared, chunk, lane, x, sums);
      x = next;
    }
    store_products<kTensorCore, kChannelsLast, kTiles>(a.plan, slot, thread, sums,
                                                       shared.products);
    __syncthreads();
    add_products(a, strip, row, slot, thread, shared);
    __syncthreads();
    store_result(a, strip, row, thread, shared);
    slot += a.plan.batch_rows;
    if (slot >= a.plan.ring_rows) slot -= a.plan.ring_rows;
  }
}

template <typename T, bool kTensorCore, bool kChannelsLast, int kTiles>
const char* launch(const StripArguments<T>& a, void* stream) {
  const auto kernel = image_edge_conv_transpose2d_kernel<T, kTensorCore, kChannelsLast, kTiles>;
  if (const char* error = allow_shared_memory(kernel, a.plan.shared_bytes)) return error;
  kernel<<<static_cast<unsigned>(a.plan.blocks), kStripThreads,
           static_cast<std::size_t>(a.plan.shared_bytes), static_cast<cudaStream_t>(stream)>>>(a);
  return launch_error();
}

template <typename T, bool kTensorCore, bool kChannelsLast>
const char* launch(const ImageEdgeTransposeCall& call, void* stream) {
  const std::int64_t at_once = strip_channels(call);
  for (std::int64_t first = 0; first < call.out_channels; first += at_once) {
    const auto plan = strip_plan<T, kTensorCore, kChannelsLast>(
        call, std::min(at_once, call.out_channels - first), multiprocessors(),
        shared_memory_limit());
    if (plan.problem != nullptr) return plan.problem;
    const auto a = strip_arguments<T, kChannelsLast>(call, first, plan);
    const char* error = plan.tiles <= kFewTiles
                            ? launch<T, kTensorCore, kChannelsLast, kFewTiles>(a, stream)
                            : launch<T, kTensorCore, kChannelsLast, kMostTiles>(a, stream);
    if (error != nullptr) return error;
  }
  return nullptr;
}

template <typename T, bool kTensorCore>
const char* launch(const ImageEdgeTransposeCall& call, void* stream) {
  return call.input_channels_last ? launch<T, kTensorCore, true>(call, stream)
                                  : launch<T, kTensorCore, false>(call, stream);
}

}  // namespace

const char* image_edge_conv_transpose2d(const ImageEdgeTransposeCall& call, void* stream) {
  if (call.batch * call.out_channels * call.out_height * call.out_width == 0) return nullptr;
  if (const char* problem = strip_problem(call)) return problem;
  bool taken = false;
  const char* error = march_conv_transpose2d(call, stream, &taken);
  if (taken) return error;
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
