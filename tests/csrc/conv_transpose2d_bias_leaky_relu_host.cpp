// Plays every thread of the kernels in csrc/cuda/conv_transpose2d_bias_leaky_relu.cu and, where it
// is told to, of conv_transpose2d_bias_leaky_relu_march.cu, block by block.

#include "cuda/conv_transpose2d_bias_leaky_relu_body.h"
#include "cuda/conv_transpose2d_bias_leaky_relu_march_body.h"
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

// The march: the warps of a block do a row each, then what they give to each other is there.
template <typename T, int kPieces, int kStride, int kHeld>
void run_march_block(const MarchArguments<T>& a, std::int64_t block) {
  using M = March<kStride, kHeld>;
  constexpr int kStages = kMarchStages<kPieces>;
  const MarchPlan& plan = a.plan;
  const int warps = plan.warps * plan.tiles_held, weight_bytes =
      M::kWeightRows * kWeightPitch<kPieces>;
  host::require(warps <= kMarchWarps && plan.ring_bytes % 16 == 0 && plan.staged_pitch % 16 == 0 &&
                    plan.shared_bytes == plan.ring_bytes + plan.scratch_bytes &&
                    weight_bytes <= plan.scratch_bytes,
                "the parts of shared memory");
  // 16 bytes at a time, so that it is aligned.
  host::Buffer<Pack<std::uint32_t, 4>> ring(plan.ring_bytes / 16), scratch(plan.scratch_bytes / 16);
  MarchShared shared = march_shared(reinterpret_cast<unsigned char*>(ring.data()), plan);
  const std::ptrdiff_t staged = shared.staged - shared.weights;
  shared.weights = reinterpret_cast<unsigned char*>(scratch.data());
  shared.edges = reinterpret_cast<float*>(scratch.data());
  shared.staged = shared.weights + staged;

  for (int t = 0; t < 32 * warps; ++t) {
    stage_march_weights<T, kPieces, kStride, kHeld>(a, t, 32 * warps, shared.weights);
  }
  std::vector<Rows> weights;
  for (int k = 0; k < M::kTaps * M::kTiles * kPieces * 32; ++k) {
    weights.push_back(weight_columns<kPieces>(shared.weights, k / 32 / kPieces, k / 32 % kPieces,
                                              k % 32));
  }
  std::memset(static_cast<void*>(scratch.data()), 0xff, plan.scratch_bytes);

  struct Warp {
    MarchPlace place;
    MarchSource source[32];
    float bias[32][kHeld];
    MarchSums<M::kTiles> sums[M::kTaps][32];
  };
  std::vector<Warp> all(warps);
  for (int w = 0; w < warps; ++w) {
    all[w].place = march_place(a, block, w);
    for (int lane = 0; lane < 32; ++lane) {
      all[w].source[lane] = march_source<T, kPieces, M::kTaps>(a, all[w].place, lane);
      load_bias<T, kStride, kHeld>(a, lane, all[w].bias[lane]);
      for (auto& sums : all[w].sums) start_sums<T, kStride, kHeld>(all[w].bias[lane], sums[lane]);
      for (int s = 0; s < kStages - 1; ++s) {
        copy_row<T, kPieces>(a, all[w].place, lane, all[w].source[lane],
                             ring_stage<kPieces>(shared, w, s));
      }
    }
  }
  for (int step = 0; step < plan.strip_groups + M::kTaps - 1; ++step) {
    const int parity = step & 1, stage = step % kStages;
    const bool complete = step >= M::kTaps - 1;
    for (int w = 0; w < warps; ++w) {
      Warp& warp = all[w];
      for (int lane = 0; lane < 32; ++lane) {
        copy_row<T, kPieces>(a, warp.place, lane, warp.source[lane],
                             ring_stage<kPieces>(shared, w, (stage + kStages - 1) % kStages));
      }
      for (int k = 0; k < kPieces * 2 * 2 * M::kTaps * M::kTiles; ++k) {
        const int tile = k % M::kTiles, tap = k / M::kTiles % M::kTaps;
        const int rest = k / M::kTiles / M::kTaps, pair = rest % 2, half = rest / 2 % 2,
                  q = rest / 4;
        Rows rows[32];
        Columns columns[32];
        std::array<float*, 4> d[32];
        for (int lane = 0; lane < 32; ++lane) {
          rows[lane] =
              pixel_rows<T>(ring_stage<kPieces>(shared, w, stage), q, pair, half, lane);
          const int columns_at =
              tap_of_sums<M::kTaps>(warp.place, tap) * M::kTiles + tile;
          columns[lane] = half_of(weights[(columns_at * kPieces + q) * 32 + lane], half);
          float(&own)[4] = warp.sums[tap][lane][tile][pair];
          d[lane] = {&own[0], &own[1], &own[2], &own[3]};
        }
        host::multiply<T>(d, rows, columns);
      }
      if (complete && plan.warps > 1) {
        for (int lane = 0; lane < 32; ++lane) {
          store_edges<kStride, kHeld>(shared, parity, w, lane, warp.sums[0][lane]);
        }
      }
    }
    for (int w = 0; w < warps; ++w) {
      Warp& warp = all[w];
      for (int lane = 0; complete && lane < 32; ++lane) {
        float given[M::kMoves], values[kHeld][4];
        for (int move = 0; move < M::kMoves; ++move) {
          const int from = giver<kStride>(lane, move);
          given[move] = given_away<kStride, kHeld>(warp.sums[0][from], from, move);
        }
        load_edges<kStride, kHeld>(shared, warp.place, parity, w, lane, given);
        add_moves<kStride, kHeld>(warp.sums[0][lane], given, lane, values);
        activate<kHeld>(a.tanh, a.slope, values);
        stage_result<T, kStride, kHeld>(a, shared, w, lane, values);
      }
      const int group = completed_group<M::kTaps>(warp.place, step);
      const bool own = group >= warp.place.first_group && group < warp.place.end_group;
      for (int lane = 0; complete && own && lane < 32; ++lane) {
        store_march_result<T, kStride, kHeld>(a, shared, warp.place,
                                              own_columns<T, kStride>(a, warp.place), group, w,
                                              lane);
      }
      for (int lane = 0; lane < 32; ++lane) {
        for (int tap = 0; tap < M::kTaps - 1; ++tap) {
          std::memcpy(warp.sums[tap][lane], warp.sums[tap + 1][lane], sizeof(warp.sums[0][0]));
        }
        start_sums<T, kStride, kHeld>(warp.bias[lane], warp.sums[M::kTaps - 1][lane]);
      }
    }
    // No row of the result may lean on one before it.
    std::memset(shared.staged, 0xff,
                shared.weights + plan.scratch_bytes - shared.staged);
  }
}

struct Options {
  std::string folder;
  bool march;
  int input_offset, result_offset;  // elements behind a 16-byte boundary
  int multiprocessors, shared_limit;
  bool bias;
};

template <typename T, int kPieces, int kStride, int kHeld>
void run_march(const ImageEdgeTransposeCall& call, const Options& options) {
  const auto plan = march_plan<T, kPieces, kStride, kHeld>(call, options.multiprocessors,
                                                           options.shared_limit);
  host::require(plan.blocks != 0 && plan.shared_bytes <= options.shared_limit, "shared memory");
  const auto a = march_arguments<T>(call, plan);
  for (std::int64_t block = plan.blocks; block > 0; --block) {
    run_march_block<T, kPieces, kStride, kHeld>(a, block - 1);
  }
  std::FILE* file = std::fopen((options.folder + "/plan.bin").c_str(), "wb");
  const std::int64_t facts[] = {1, 1, kPieces, plan.warps, plan.column_tiles, plan.strips,
                                plan.shared_bytes};
  host::require(file != nullptr && std::fwrite(facts, sizeof(facts), 1, file) == 1, "plan.bin");
  std::fclose(file);
}

template <typename T, int kPieces>
void run_march(const ImageEdgeTransposeCall& call, const Options& options) {
  if (call.stride_w == 1) return run_march<T, kPieces, 1, 1>(call, options);
  return call.out_channels == 1 ? run_march<T, kPieces, 2, 1>(call, options)
                                : run_march<T, kPieces, 2, 3>(call, options);
}

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
  if (options.march) {
    refuse(march_takes<T>(call) ? nullptr : "not for the march");
    march_pieces<T>(call) == 2 ? run_march<T, 2>(call, options) : run_march<T, 4>(call, options);
    result.write(options.folder + "/result.bin");
    return;
  }
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
  const auto check = [&] {
    const std::int64_t last = call.batch * results;
    host::require(to_float(result[last - 1]) == 64.0f, "the last element is wrong");
    host::require(to_float(result[last - 1 - (kChannelsLast ? 3 * 65 : 65)]) == 256.0f,
                  "before it");
  };
  check();
  if constexpr (kChannelsLast) {
    std::fill_n(result + (call.batch - 1) * results, results, one);
    const auto march = march_plan<BFloat16, 2, 2, 3>(call, 132, 160 * 1024);
    run_march_block<BFloat16, 2, 2, 3>(march_arguments<BFloat16>(call, march), march.blocks - 1);
    check();
  }
}

}  // namespace

int main(int count, char** arguments) {
  if (std::string(arguments[2]) == "large") {
    run_large<true>();
    run_large<false>();
    return 0;
  }
  host::require(count == 31, "30 arguments, see test_conv_transpose2d_bias_leaky_relu.py");
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
  options.march = number() != 0;
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
