// Plays every thread of the kernels in csrc/cuda/conv2d_bias_leaky_relu.cu, block by block.

#include "cuda/conv2d_bias_leaky_relu_body.h"
#include "host.h"
#include "image_edge_conv_host.h"
#include "tensor_core.h"

using namespace fastgen;
using namespace fastgen::cuda;

namespace {

// The products of one step, for the 32 lanes of a warp.
template <typename T, typename Tile>
void multiply_step(const EdgeConvArguments<T>& a, const std::vector<Tile>& tiles, int warp,
                   const EdgeConvShared<T>& shared, const Quad<T>* patch, int step,
                   std::vector<float[Tile::kRows][8]>& sums) {
  Quad<T> rows[32][4], columns[32][4];
  for (int lane = 0; lane < 32; ++lane) {
    const Tile& tile = tiles[warp * 32 + lane];
    int windows[Tile::kSlots];
    find_windows(a, tile, windows);
    load_step(a, tile, shared, patch, windows, step, rows[lane], columns[lane]);
  }
  for (int part = 0; part < kParts<T>; ++part) {
    for (int i = 0; i < 2; ++i) {
      for (int j = 0; j < 4; ++j) {
        std::array<float*, 4> d[32];
        Rows left[32];
        Columns right[32];
        for (int lane = 0; lane < 32; ++lane) {
          auto& own = sums[warp * 32 + lane];
          d[lane] = {&own[2 * i][2 * j], &own[2 * i][2 * j + 1], &own[2 * i + 1][2 * j],
                     &own[2 * i + 1][2 * j + 1]};
          left[lane] = rows_of(rows[lane][2 * i], rows[lane][2 * i + 1], part);
          right[lane] = columns_of(columns[lane][j], part);
        }
        host::multiply<T>(d, left, right);
      }
    }
  }
}

template <typename T, bool kTensorCore, bool kChannelsLast>
void run_block(const EdgeConvArguments<T>& a, std::uint32_t first, int chunk) {
  using Tile = EdgeTile<T, kTensorCore, kChannelsLast>;
  const EdgeConvPlan& plan = a.plan;
  host::require(plan.weight_bytes % 16 == 0 && plan.patch_bytes % 16 == 0 &&
                    plan.tap_bytes % 16 == 0,
                "a part of shared memory is not aligned");
  // Each part in an allocation of its own, so that none reaches into the next.
  host::Buffer<Quad<T>> weights(plan.weight_bytes / sizeof(Quad<T>));
  const int one_patch = plan.patch_bytes / static_cast<int>(sizeof(Quad<T>));
  host::Buffer<Quad<T>> even(one_patch), odd(one_patch);
  host::Buffer<int> taps(4 * plan.steps);
  host::Buffer<float> bias(plan.chunk_channels);
  const EdgeConvShared<T> shared{weights.data(), nullptr, taps.data(), bias.data()};
  std::vector<Tile> tiles;
  for (int t = 0; t < kEdgeThreads; ++t) tiles.emplace_back(plan, t);

  for (int t = 0; t < kEdgeThreads; ++t) {
    stage_constants<T, kTensorCore, kChannelsLast>(a, chunk, t, shared);
    stage_patch<T, kTensorCore>(a, first, t, even.data());
  }
  int turn = 0;
  for (std::uint32_t at = first; at < plan.tiles; at += plan.blocks, turn ^= 1) {
    Quad<T>* patch = (turn == 0 ? even : odd).data();
    Quad<T>* next_patch = (turn == 0 ? odd : even).data();
    const std::uint32_t next = at + plan.blocks;
    for (int t = 0; next < plan.tiles && t < kEdgeThreads; ++t) {
      if (!kTensorCore) {
        stage_patch<T, kTensorCore>(a, next, t, next_patch);
        continue;
      }
      Quad<T> held[kHeldPixels];
      fetch_held<T, kTensorCore>(a, next, t, held);
      stage_held<T, kTensorCore>(a, next, t, held, next_patch);
    }

    std::vector<float[Tile::kRows][8]> sums(kEdgeThreads);
    for (int t = 0; t < kEdgeThreads; ++t) start_sums(tiles[t], shared, sums[t]);
    if constexpr (kTensorCore) {
      for (int warp = 0; warp < kEdgeWarps; ++warp) {
        if (tiles[warp * 32].pixel >= plan.tile_pixels) continue;
        for (int step = 0; step < plan.steps; ++step) {
          multiply_step(a, tiles, warp, shared, patch, step, sums);
        }
      }
    } else {
      for (int t = 0; t < kEdgeThreads; ++t) {
        if (tiles[t].pixel >= plan.tile_pixels) continue;
        int windows[Tile::kSlots];
        find_windows(a, tiles[t], windows);
        for (int tap = 0; tap < plan.taps; ++tap) {
          add_tap(a, tiles[t], shared, patch, windows, tap, sums[t]);
        }
      }
    }
    const EdgePlace place = place_of(plan, at);
    for (int t = 0; t < kEdgeThreads; ++t) {
      if (tiles[t].pixel >= plan.tile_pixels) continue;
      for (int row = 0; row < Tile::kRows; row += Tile::kStored) {
        store_rows(a, tiles[t], place, chunk, row, sums[t]);
      }
    }
    // What is left in the patch must not help the tile after the next.
    std::memset(static_cast<void*>(patch), 0xff, plan.patch_bytes);
  }
}

template <typename T, bool kTensorCore, bool kChannelsLast>
void run(ImageEdgeConvCall call, const host::Options& options) {
  host::Tensors<T> tensors(call, options);
  const auto plan = edge_conv_plan<T, kTensorCore, kChannelsLast>(call, options.multiprocessors,
                                                                  options.shared_limit);
  if (plan.problem != nullptr) {
    std::printf("%s\n", plan.problem);
    std::exit(3);
  }
  host::require(plan.shared_bytes <= options.shared_limit, "too much shared memory");
  const auto a = edge_conv_arguments<T>(call, plan);
  for (int chunk = plan.chunks - 1; chunk >= 0; --chunk) {
    for (std::uint32_t block = plan.blocks; block > 0; --block) {
      run_block<T, kTensorCore, kChannelsLast>(a, block - 1, chunk);
    }
  }
  tensors.result.write(options.folder + "/result.bin");
  host::write_facts(options.folder,
                    {a.wide, 1 << plan.log_tile_width, plan.tile_height, plan.tiles, plan.blocks,
                     plan.chunks, plan.shared_bytes});
}

// The last tile of a result of more than 2^32 elements, from an input of ones: there, and nowhere
// before it, are the sums of the weights, which are ones too.
template <bool kChannelsLast>
void run_large() {
  ImageEdgeConvCall call{};
  call.batch = 70000, call.channels = 3, call.height = 32, call.width = 32, call.filters = 64;
  call.kernel_h = call.kernel_w = 3, call.out_height = call.out_width = 32;
  call.stride_h = call.stride_w = call.padding_h = call.padding_w = 1;
  call.slope = 0.5f, call.channels_last = kChannelsLast;
  const std::int64_t image = std::int64_t{3} * 32 * 32, results = std::int64_t{64} * 32 * 32;
  const std::int64_t input_strides[] = {image, 32 * 32, 32, 1}, weight_strides[] = {27, 9, 3, 1};
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
  auto plan = edge_conv_plan<BFloat16, true, kChannelsLast>(call, 132, 160 * 1024);
  host::require(plan.problem == nullptr, "the plan has a problem");
  const auto a = edge_conv_arguments<BFloat16>(call, plan);
  for (int chunk = 0; chunk < plan.chunks; ++chunk) {
    run_block<BFloat16, true, kChannelsLast>(a, plan.tiles - 1, chunk);
  }
  // The corner of the picture sees 2 x 2 x 3 pixels, the one left of it 2 x 3 x 3.
  host::require(to_float(result[count - 1]) == 12.0f, "the last element is wrong");
  host::require(to_float(result[count - (kChannelsLast ? 65 : 2)]) == 18.0f, "its neighbour is");
  for (std::int64_t i = count - 2 * results; i < count - results; ++i) {
    host::require(to_float(result[i]) == 0.0f, "another image was written to");
  }
}

}  // namespace

int main(int count, char** arguments) {
  if (std::string(arguments[2]) == "large") {
    run_large<true>();
    run_large<false>();
    return 0;
  }
  host::Options options{};
  const ImageEdgeConvCall call = host::read_call(count, arguments, options);
  host::with_dtype(options.dtype, [&](auto zero) {
    using T = decltype(zero);
    if constexpr (sizeof(T) == 4) {
      if (!options.tensor_cores) {
        return call.channels_last ? run<T, false, true>(call, options)
                                  : run<T, false, false>(call, options);
      }
    }
    return call.channels_last ? run<T, true, true>(call, options)
                              : run<T, true, false>(call, options);
  });
}
