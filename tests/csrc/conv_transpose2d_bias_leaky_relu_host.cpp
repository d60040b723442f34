// Plays every thread of the kernels in csrc/cuda/conv_transpose2d_bias_leaky_relu.cu, block by
// block.

#include "cuda/conv_transpose2d_bias_leaky_relu_body.h"
#include "host.h"
#include "tensor_core.h"

using namespace fastgen;
using namespace fastgen::cuda;

namespace {

template <int kTiles>
using Sums = float[4 * kTiles][4];

// The products of one chunk of channels, for the 32 lanes of a warp.
template <typename T, bool kTensorCore, bool kChannelsLast, int kTiles>
void multiply_chunk(const StripArguments<T>& a, const StripShared<T>& shared, int chunk,
                    const StripChunk<T>* x, Sums<kTiles>* sums) {
  if constexpr (kTensorCore) {
    for (int s = 0; s < 2; ++s) {
      for (int i = 0; i < a.plan.tiles; ++i) {
        for (int part = 0; part < kParts<T>; ++part) {
          Rows rows[32];
          for (int lane = 0; lane < 32; ++lane) {
            const int step = 2 * chunk + s;
            rows[lane] =
                shared.weights[((step * a.plan.tiles + i) * kParts<T> + part) * 32 + lane];
          }
          for (int j = 0; j < 4; ++j) {
            std::array<float*, 4> d[32];
            Columns columns[32];
            for (int lane = 0; lane < 32; ++lane) {
              float(&own)[4] = sums[lane][4 * i + j];
              d[lane] = {&own[0], &own[1], &own[2], &own[3]};
              columns[lane] = columns_of(round_quad(x[lane].quads[s][j]), part);
            }
            host::multiply<T>(d, rows, columns);
          }
        }
      }
    }
  } else {
    for (int lane = 0; lane < 32; ++lane) {
      const auto fetch = [&](int s, int j, int t, int c) {
        return quad_value(x[lane / 4 * 4 + t].quads[s][j], c);
      };
      add_chunk<kChannelsLast, kTiles>(shared, chunk, lane % 4, fetch, sums[lane]);
    }
  }
}

template <typename T, bool kTensorCore, bool kChannelsLast, int kTiles>
void run_block(const StripArguments<T>& a, std::uint32_t block) {
  const StripPlan& plan = a.plan;
  host::require(plan.weight_bytes % 16 == 0 && plan.product_bytes % 16 == 0 &&
                    plan.result_bytes % 16 == 0 && plan.pitch % 4 == 0,
                "a part of shared memory is not aligned");
  // Each part in an allocation of its own, so that none reaches into the next.
  host::Buffer<Rows> weights(plan.weight_bytes / sizeof(Rows));
  host::Buffer<float> products(plan.product_bytes / 4);
  host::Buffer<T> staged(plan.result_bytes / sizeof(T));
  const StripShared<T> shared{weights.data(), products.data(), staged.data()};
  const Strip strip = strip_of(a, block);
  for (int t = 0; t < kStripThreads; ++t) {
    stage_weights<T, kTensorCore, kChannelsLast, kTiles>(a, t, shared);
  }
  int slot = 0;
  for (int row = strip.first_group - plan.kept_rows; row < strip.end_group;
       row += plan.batch_rows) {
    for (int warp = 0; warp < kStripThreads / 32; ++warp) {
      Sums<kTiles> sums[32] = {};
      for (int chunk = 0; chunk < plan.steps / 2; ++chunk) {
        StripChunk<T> x[32];
        for (int lane = 0; lane < 32; ++lane) {
          const StripPixels pixels =
              find_pixels<T, kChannelsLast>(a, strip, row, 32 * warp + lane);
          load_chunk<T, kChannelsLast>(a, strip, pixels, chunk, lane % 4, x[lane]);
        }
        multiply_chunk<T, kTensorCore, kChannelsLast, kTiles>(a, shared, chunk, x, sums);
      }
      for (int lane = 0; lane < 32; ++lane) {
        store_products<kTensorCore, kChannelsLast, kTiles>(plan, slot, 32 * warp + lane,
                                                           sums[lane], shared.products);
      }
    }
    for (int t = 0; t < kStripThreads; ++t) add_products(a, strip, row, slot, t, shared);
    for (int t = 0; t < kStripThreads; ++t) store_result(a, strip, row, t, shared);
    // The next batch must not lean on rows of the result that this one left.
    std::memset(static_cast<void*>(staged.data()), 0xff, plan.result_bytes);
    slot += plan.batch_rows;
    if (slot >= plan.ring_rows) slot -= plan.ring_rows;
  }
}

struct Options {
  std::string folder;
  int input_offset, result_offset;  // elements behind a 16-byte boundary
  int multiprocessors, shared_limit;
  bool bias;
};

template <typename T, bool kTensorCore, bool kChannelsLast>
void run(ImageEdgeTransposeCall call, const Options& options) {
  std::int64_t reach = 1;
  const std::int64_t extents[] = {call.channels, call.out_channels, call.kernel_h, call.kernel_w};
  for (int d = 0; d < 4; ++d) reach += (extents[d] - 1) * call.weight_strides[d];
  host::Buffer<T> input(call.batch * call.channels * call.height * call.width,
                        options.input_offset),
      weight(reach), bias(options.bias ? call.out_channels : 0),
      result(call.batch * call.out_channels * call.out_height * call.out_width,
             options.result_offset);
  call.input = input.read(options.folder + "/input.bin").data();
  call.weight = weight.read(options.folder + "/weight.bin").data();
  if (options.bias) call.bias = bias.read(options.folder + "/bias.bin").data();
  call.result = result.data();

  const auto refuse = [](const char* problem) {
    if (problem == nullptr) return;
    std::printf("%s\n", problem);
    std::exit(3);
  };
  refuse(strip_problem(call));
  const std::int64_t at_once = strip_channels(call);
  std::FILE* file = std::fopen((options.folder + "/plan.bin").c_str(), "wb");
  for (std::int64_t first = 0; first < call.out_channels; first += at_once) {
    const auto plan = strip_plan<T, kTensorCore, kChannelsLast>(
        call, std::min(at_once, call.out_channels - first), options.multiprocessors,
        options.shared_limit);
    refuse(plan.problem);
    host::require(plan.shared_bytes <= options.shared_limit, "too much shared memory");
    const auto a = strip_arguments<T, kChannelsLast>(call, first, plan);
    for (std::int64_t block = plan.blocks; block > 0; --block) {
      const auto at = static_cast<std::uint32_t>(block - 1);
      if (plan.tiles <= kFewTiles) {
        run_block<T, kTensorCore, kChannelsLast, kFewTiles>(a, at);
      } else {
        run_block<T, kTensorCore, kChannelsLast, kMostTiles>(a, at);
      }
    }
    const std::int64_t facts[] = {a.wide_input, a.wide_result, plan.group, plan.columns,
                                  plan.column_tiles, plan.strips, plan.shared_bytes};
    host::require(file != nullptr && std::fwrite(facts, sizeof(facts), 1, file) == 1, "plan.bin");
  }
  std::fclose(file);
  result.write(options.folder + "/result.bin");
}

// The last strip of an input of more than 2^32 elements whose last image is ones, the weights too.
template <bool kChannelsLast>
void run_large() {
  ImageEdgeTransposeCall call{};
  call.batch = 70000, call.channels = 64, call.height = 32, call.width = 32, call.out_channels = 3;
  call.kernel_h = call.kernel_w = 4, call.out_height = call.out_width = 64;
  call.stride_h = call.stride_w = 2, call.padding_h = call.padding_w = 1;
  call.slope = 1.0f, call.channels_last = call.input_channels_last = kChannelsLast;
  const std::int64_t weight_strides[] = {48, 16, 4, 1};
  std::copy(weight_strides, weight_strides + 4, call.weight_strides);
  const std::int64_t image = std::int64_t{64} * 32 * 32, results = std::int64_t{3} * 64 * 64;
  host::require(call.batch * image > std::int64_t{1} << 32, "not large");
  BFloat16* input = host::sparse<BFloat16>(call.batch * image);
  BFloat16* result = host::sparse<BFloat16>(call.batch * results);
  host::Buffer<BFloat16> weight(64 * 48);
  const BFloat16 one = from_float<BFloat16>(1.0f);
  std::fill_n(weight.data(), 64 * 48, one);
  std::fill_n(input + (call.batch - 1) * image, image, one);
  call.input = input, call.weight = weight.data(), call.result = result;
  const auto plan = strip_plan<BFloat16, true, kChannelsLast>(call, 3, 132, 160 * 1024);
  host::require(plan.problem == nullptr, "the plan has a problem");
  const auto a = strip_arguments<BFloat16, kChannelsLast>(call, 0, plan);
  run_block<BFloat16, true, kChannelsLast, kFewTiles>(
      a, static_cast<std::uint32_t>(plan.blocks - 1));
  // The corner sees one pixel of 64 channels, the one diagonally before it two by two.
  const std::int64_t last = call.batch * results;
  host::require(to_float(result[last - 1]) == 64.0f, "the last element is wrong");
  host::require(to_float(result[last - 1 - (kChannelsLast ? 3 * 65 : 65)]) == 256.0f, "before it");
}

}  // namespace

int main(int count, char** arguments) {
  if (std::string(arguments[2]) == "large") {
    run_large<true>();
    run_large<false>();
    return 0;
  }
  host::require(count == 30, "29 arguments, see test_conv_transpose2d_bias_leaky_relu.py");
  int next = 2;
  const auto number = [&]() -> std::int64_t { return std::atoll(arguments[next++]); };
  const std::string dtype = arguments[next++];
  const bool tensor_cores = number() != 0;
  ImageEdgeTransposeCall call{};
  call.input_channels_last = number() != 0;
  call.channels_last = number() != 0;
  call.slope = std::strtof(arguments[next++], nullptr);
  call.tanh = number() != 0;
  Options options{};
  options.folder = arguments[1];
  options.bias = number() != 0;
  options.input_offset = static_cast<int>(number());
  options.result_offset = static_cast<int>(number());
  options.multiprocessors = static_cast<int>(number());
  options.shared_limit = static_cast<int>(number());
  for (std::int64_t* value :
       {&call.batch, &call.channels, &call.height, &call.width, &call.out_channels, &call.kernel_h,
        &call.kernel_w, &call.out_height, &call.out_width, &call.stride_h, &call.stride_w,
        &call.padding_h, &call.padding_w}) {
    *value = number();
  }
  for (std::int64_t& stride : call.weight_strides) stride = number();

  host::with_dtype(dtype, [&](auto zero) {
    using T = decltype(zero);
    if constexpr (sizeof(T) == 4) {
      if (!tensor_cores) {
        return call.input_channels_last ? run<T, false, true>(call, options)
                                        : run<T, false, false>(call, options);
      }
    }
    return call.input_channels_last ? run<T, true, true>(call, options)
                                    : run<T, true, false>(call, options);
  });
}
