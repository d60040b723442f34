// Plays every thread of the kernels in csrc/cuda/conv2d_bias_leaky_relu_rows.cu, block by block.

#include "cuda/conv2d_bias_leaky_relu_rows_body.h"
#include "host.h"
#include "image_edge_conv_host.h"
#include "tensor_core.h"

using namespace fastgen;
using namespace fastgen::cuda;

namespace {

template <typename T, int kSteps>
struct Thread {
  RowsLane<T> lane;
  RowsUnits<T> units;
  int places[2 * kSteps];
  Rows weights[kMatrices<T>][kSteps];
  float bias[kMatrices<T>][4];
  RowsPiece held[kHeldPieces];
  float sums[kMatrices<T>][4];
  Pack<T, kWideExtent<T>> masks[2];
  UnitRuns runs;

  Thread(const RowsConvPlan& plan, int thread) : lane(plan, thread), units(plan, lane) {}
};

// A unit of a warp, from its patch to the result.
template <typename T, int kSteps, bool kMasked>
void run_unit(const RowsConvArguments<T>& a, Thread<T, kSteps>* threads, int unit,
              const std::uint32_t* patch, const float* bias) {
  Columns columns[32][kSteps];
  for (int lane = 0; lane < 32; ++lane) {
    Thread<T, kSteps>& own = threads[lane];
    const int step = 4 * own.units.step_y * a.stride_h * a.plan.pitch;
    load_columns<kSteps>(patch, unit * step, own.places, columns[lane]);
    start_sums<T, kMasked>(a, own.lane, bias, own.bias, own.sums);
  }
  for (int k = 0; k < kSteps; ++k) {
    for (int m = 0; m < kMatrices<T>; ++m) {
      std::array<float*, 4> d[32];
      Rows left[32];
      Columns right[32];
      for (int lane = 0; lane < 32; ++lane) {
        float(&sums)[4] = threads[lane].sums[m];
        d[lane] = {&sums[0], &sums[1], &sums[2], &sums[3]};
        left[lane] = threads[lane].weights[m][k];
        right[lane] = columns[lane][k];
      }
      host::multiply<T>(d, left, right);
    }
  }
  for (int lane = 0; lane < 32; ++lane) {
    Thread<T, kSteps>& own = threads[lane];
    const std::int64_t at = own.runs.offset + static_cast<std::int64_t>(unit) * own.runs.step;
    if constexpr (kMasked) load_masks(a.output + at, own.runs, own.masks);
    store_unit<T, kMasked>(a, a.result + at, own.runs, own.masks, own.sums);
  }
}

template <typename T, int kSteps, bool kMasked>
void run_block(const RowsConvArguments<T>& a, std::uint32_t first, int chunk) {
  const RowsConvPlan& plan = a.plan;
  host::require(plan.patch_bytes % 16 == 0 && plan.weight_bytes % 16 == 0 &&
                    plan.bias_bytes % 16 == 0 && plan.shared_bytes % 16 == 0,
                "a part of shared memory is not aligned");
  host::require(plan.shared_bytes >= plan.patch_bytes + std::max(plan.patch_bytes, plan.raw_bytes) +
                                         plan.weight_bytes + plan.bias_bytes,
                "the parts of shared memory overlap");
  // Each part in an allocation of its own, so that none reaches into the next.
  host::Buffer<std::uint32_t> weights(plan.weight_bytes / 4), raw(plan.raw_bytes / 4),
      even(plan.patch_bytes / 4), odd(plan.patch_bytes / 4);
  host::Buffer<float> bias(plan.bias_bytes / 4);
  const RowsConvShared shared{nullptr, weights.data(), bias.data()};

  std::vector<Thread<T, kSteps>> threads;
  EdgePlace place = place_of(plan, first);
  for (int t = 0; t < kRowsThreads; ++t) {
    threads.emplace_back(plan, t);
    fetch_pieces(a, place, t, threads[t].held);
    if (plan.raw_weights) copy_raw_weights(a, chunk, t, raw.data());
    stage_bias(a, chunk, t, bias.data());
    put_pieces(a, place, t, threads[t].held, even.data());
  }
  for (int t = 0; t < kRowsThreads; ++t) deal_weights(a, chunk, t, raw.data(), weights.data());
  for (Thread<T, kSteps>& own : threads) {
    load_weights(own.lane, shared, own.weights);
    load_bias(own.lane, shared.bias, own.bias);
    find_words<T, kSteps>(a, own.lane, own.units, own.places);
  }

  int turn = 0;
  for (std::uint32_t at = first; at < plan.tiles; at += plan.blocks, turn ^= 1) {
    std::uint32_t* patch = (turn == 0 ? even : odd).data();
    const std::uint32_t next = at + plan.blocks;
    if (next < plan.tiles) {
      const EdgePlace next_place = place_of(plan, next);
      for (int t = 0; t < kRowsThreads; ++t) {
        fetch_pieces(a, next_place, t, threads[t].held);
        put_pieces(a, next_place, t, threads[t].held, (turn == 0 ? odd : even).data());
      }
    }
    for (int warp = 0; warp < kRowsWarps; ++warp) {
      Thread<T, kSteps>* own = &threads[warp * 32];
      for (int lane = 0; lane < 32; ++lane) {
        const int channel = own[lane].lane.channel(plan, chunk);
        own[lane].runs = unit_runs(a, own[lane].lane, own[lane].units, channel, place);
      }
      int rows = own->units.count(a, place);
      for (int unit = 0; unit < plan.units && rows > 0; ++unit, rows -= own->units.step_y) {
        run_unit<T, kSteps, kMasked>(a, own, unit, patch, bias.data());
      }
    }
    if (next < plan.tiles) place = place_of(plan, next);
    // What is left in the patch must not help the tile after the next.
    std::memset(static_cast<void*>(patch), 0xff, plan.patch_bytes);
  }
}

template <typename T, int kSteps>
void run_block(const RowsConvArguments<T>& a, std::uint32_t first, int chunk) {
  if (a.plan.steps != kSteps) {
    if constexpr (kSteps < kMostSteps<T>) {
      return run_block<T, kSteps + (sizeof(T) == 4 ? 2 : 1)>(a, first, chunk);
    }
    host::require(false, "unknown number of steps");
  }
  a.output == nullptr ? run_block<T, kSteps, false>(a, first, chunk)
                      : run_block<T, kSteps, true>(a, first, chunk);
}

template <typename T>
void run(ImageEdgeConvCall call, const host::Options& options) {
  host::Tensors<T> tensors(call, options);
  const auto plan = rows_conv_plan<T>(call, options.multiprocessors, options.shared_limit);
  if (!plan.takes) {
    std::printf("not taken\n");
    std::exit(3);
  }
  host::require(plan.shared_bytes <= options.shared_limit, "too much shared memory");
  const auto a = edge_conv_arguments<T>(call, plan);
  for (int chunk = plan.chunks - 1; chunk >= 0; --chunk) {
    for (std::uint32_t block = plan.blocks; block > 0; --block) {
      run_block<T, sizeof(T) == 4 ? 2 : 1>(a, block - 1, chunk);
    }
  }
  tensors.result.write(options.folder + "/result.bin");
  host::write_facts(options.folder,
                    {static_cast<int>(plan.mode), 1 << plan.log_tile_width, plan.tile_height,
                     plan.tiles, plan.blocks, plan.chunks, plan.shared_bytes});
}

// The last tile of a result of more than 2^32 elements, from an input of ones: there, and nowhere
// before it, are the sums of the weights, which are ones too.
void run_large() {
  ImageEdgeConvCall call{};
  call.batch = 70000, call.channels = 3, call.height = 32, call.width = 32, call.filters = 64;
  call.kernel_h = call.kernel_w = 3, call.out_height = call.out_width = 32;
  call.stride_h = call.stride_w = call.padding_h = call.padding_w = 1;
  call.slope = 0.5f, call.channels_last = true;
  const std::int64_t image = std::int64_t{3} * 32 * 32, results = std::int64_t{64} * 32 * 32;
  const std::int64_t input_strides[] = {image, 1, 96, 3}, weight_strides[] = {27, 9, 3, 1};
  std::copy(input_strides, input_strides + 4, call.input_strides);
  std::copy(weight_strides, weight_strides + 4, call.weight_strides);

  const std::int64_t count = call.batch * results;
  host::require(count > std::int64_t{1} << 32, "not large");
  BFloat16* input = host::sparse<BFloat16>(call.batch * image);
  BFloat16* result = host::sparse<BFloat16>(count);
  host::Buffer<BFloat16> weight(64 * 27);
  const BFloat16 one = from_float<BFloat16>(1.0f);
  std::fill_n(weight.data(), 64 * 27, one);
  std::fill_n(input + (call.batch - 1) * image, image, one);
  call.input = input, call.weight = weight.data(), call.result = result;
  const auto plan = rows_conv_plan<BFloat16>(call, 132, 160 * 1024);
  host::require(plan.takes && plan.mode == RowsInput::padded, "the plan is not as expected");
  run_block<BFloat16, 1>(edge_conv_arguments<BFloat16>(call, plan), plan.tiles - 1, 0);
  // The corner of the picture sees 2 x 2 x 3 pixels, the one left of it 2 x 3 x 3.
  host::require(to_float(result[count - 1]) == 12.0f, "the last element is wrong");
  host::require(to_float(result[count - 65]) == 18.0f, "its neighbour is");
  for (std::int64_t i = count - 2 * results; i < count - results; ++i) {
    host::require(to_float(result[i]) == 0.0f, "another image was written to");
  }
}

}  // namespace

int main(int count, char** arguments) {
  if (std::string(arguments[2]) == "large") {
    run_large();
    return 0;
  }
  host::Options options{};
  const ImageEdgeConvCall call = host::read_call(count, arguments, options);
  host::with_dtype(options.dtype, [&](auto zero) { run<decltype(zero)>(call, options); });
}
