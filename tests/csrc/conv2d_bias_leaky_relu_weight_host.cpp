// Plays every thread of the kernels in csrc/cuda/conv2d_bias_leaky_relu_weight.cu, block by block.

#include <memory>

#include "cuda/conv2d_bias_leaky_relu_weight_body.h"
#include "host.h"
#include "tensor_core.h"

using namespace fastgen;
using namespace fastgen::cuda;

namespace {

struct alignas(16) Sixteen {
  unsigned char bytes[16];
};

template <int kTiles>
using Sums = float[2][kTiles][4];

// The products of one step, for the 32 lanes of a warp.
template <typename T, int kTiles>
void multiply_step(const EdgeWeightArguments<T>& a, const WeightPlace& place,
                   const std::vector<WeightLane>& lanes, int warp, const int* windows,
                   const std::vector<std::array<int, kTiles>>& taps, const unsigned char* map,
                   const unsigned char* patch, int step, std::vector<Sums<kTiles>>& sums) {
  const int full = a.plan.tile_width * a.plan.tile_height;
  for (int part = 0; part < kParts<T>; ++part) {
    Rows rows[32][2];
    Columns columns[32][kTiles];
    for (int l = 0; l < 32; ++l) {
      const WeightLane& lane = lanes[warp * 32 + l];
      int own[4], own_taps[kTiles];
      load_windows<T>(place, lane, windows, step, full, own);
      std::copy(taps[warp * 32 + l].begin(), taps[warp * 32 + l].end(), own_taps);
      load_rows<T>(a.plan, lane, map, step, part, rows[l]);
      load_columns<T, kTiles>(patch, own, own_taps, part, columns[l]);
    }
    for (int i = 0; i < 2; ++i) {
      for (int j = 0; j < kTiles; ++j) {
        std::array<float*, 4> d[32];
        Rows left[32];
        Columns right[32];
        for (int l = 0; l < 32; ++l) {
          auto& own = sums[warp * 32 + l][i][j];
          d[l] = {&own[0], &own[1], &own[2], &own[3]};
          left[l] = rows[l][i], right[l] = columns[l][j];
        }
        host::multiply<T>(d, left, right);
      }
    }
  }
}

template <typename T, int kTiles>
void run_block(const EdgeWeightArguments<T>& a, std::uint32_t block, int chunk, int column_chunk) {
  const EdgeWeightPlan& plan = a.plan;
  host::require(plan.map_bytes % 16 == 0 && plan.stage_bytes % 16 == 0 &&
                    plan.table_bytes % 16 == 0,
                "a part of shared memory is not aligned");
  // Each stage in an allocation of its own, so that none reaches into the next.
  std::vector<std::unique_ptr<host::Buffer<Sixteen>>> stages;
  for (int s = 0; s < plan.stages; ++s) {
    stages.push_back(std::make_unique<host::Buffer<Sixteen>>(plan.stage_bytes / 16));
  }
  const auto stage = [&](int s) { return reinterpret_cast<unsigned char*>(stages[s]->data()); };
  host::Buffer<int> windows(plan.table_bytes / 4);
  std::vector<WeightLane> lanes;
  std::vector<std::array<int, kTiles>> taps(plan.threads);
  std::vector<Sums<kTiles>> sums(plan.threads);
  for (int t = 0; t < plan.threads; ++t) {
    lanes.emplace_back(plan, t);
    fill_windows(a, t, windows.data());
    int own[kTiles];
    find_taps(a, lanes[t], column_chunk, own);
    std::copy(own, own + kTiles, taps[t].begin());
    std::fill_n(&sums[t][0][0][0], 2 * kTiles * 4, 0.0f);
  }

  const TileRun run = run_of(plan, block);
  const std::uint32_t ahead = static_cast<std::uint32_t>(plan.stages - 1);
  const auto stage_all = [&](std::uint32_t tile, int s) {
    for (int t = 0; t < plan.threads; ++t) stage_tile(a, tile, chunk, t, stage(s));
  };
  for (std::uint32_t s = 0; s < ahead && run.first + s < run.end; ++s) {
    stage_all(run.first + s, static_cast<int>(s));
  }
  int current = 0, free = plan.stages - 1;
  for (std::uint32_t tile = run.first; tile < run.end; ++tile) {
    for (int t = 0; t < plan.threads; ++t) round_patch<T>(plan, t, stage(current));
    if (tile + ahead < run.end) stage_all(tile + ahead, free);
    const WeightPlace place = place_of(a, tile);
    const unsigned char* map = stage(current);
    const unsigned char* patch = first_window(a, place, map);
    for (int warp = 0; warp < plan.threads / 32; ++warp) {
      for (int s = 0; s < plan.steps; ++s) {
        multiply_step<T, kTiles>(a, place, lanes, warp, windows.data(), taps, map, patch,
                                 step_of(plan, lanes[warp * 32], s), sums);
      }
    }
    // What is left in the stage must not help a later tile.
    std::memset(stage(current), 0xff, static_cast<std::size_t>(plan.stage_bytes));
    free = current;
    current = current + 1 == plan.stages ? 0 : current + 1;
  }

  const int warps = pixel_warps(plan);
  host::Buffer<float> shared(std::int64_t{4} * warps * block_quads(plan));
  for (int t = 0; t < plan.threads; ++t) {
    leave_sums<kTiles>(plan, lanes[t], sums[t], shared.data());
  }
  for (int t = 0; t < plan.threads; ++t) {
    write_partial(a, block, chunk, column_chunk, t, shared.data());
  }
}

template <typename T>
void run_sum(const EdgeWeightArguments<T>& a) {
  host::require(block_quads(a.plan) % kSummedQuads == 0, "quads are left over");
  host::Buffer<float> rows(kSummedRows * kSummedColumns);
  for (int column_chunk = 0; column_chunk < a.plan.column_chunks; ++column_chunk) {
    for (int chunk = 0; chunk < a.plan.filter_chunks; ++chunk) {
      for (int group = 0; group < block_quads(a.plan) / kSummedQuads; ++group) {
        for (int t = 0; t < kWeightSumThreads; ++t) {
          sum_rows(a, group, chunk, column_chunk, t, rows.data());
        }
        for (int t = 0; t < kFoldingThreads; ++t) fold_rows(t, rows.data());
        for (int t = 0; t < kSummedColumns; ++t) {
          write_element(a, group, chunk, column_chunk, t, rows.data());
        }
      }
    }
  }
}

template <typename T>
void run_all(const EdgeWeightArguments<T>& a) {
  for (int column_chunk = a.plan.column_chunks - 1; column_chunk >= 0; --column_chunk) {
    for (int chunk = 0; chunk < a.plan.filter_chunks; ++chunk) {
      for (std::uint32_t block = a.plan.blocks; block > 0; --block) {
        switch (a.plan.column_tiles) {
          case 2:
            run_block<T, 2>(a, block - 1, chunk, column_chunk);
            break;
          case 4:
            run_block<T, 4>(a, block - 1, chunk, column_chunk);
            break;
          default:
            host::require(a.plan.column_tiles == 6, "no kernel for so many columns");
            run_block<T, 6>(a, block - 1, chunk, column_chunk);
        }
      }
    }
  }
  run_sum(a);
}

struct Options {
  std::string folder;
  int offset;  // elements that the map and the picture stand behind a 16-byte boundary
  int multiprocessors, shared_limit, threads, resident;
};

std::int64_t reach(const std::int64_t (&extents)[4], const std::int64_t (&strides)[4]) {
  std::int64_t last = 0;
  for (int d = 0; d < 4; ++d) last += (extents[d] - 1) * strides[d];
  return last + 1;
}

template <typename T>
void run(ImageEdgeWeightCall call, const Options& options) {
  host::Buffer<T> picture(reach({call.batch, call.channels, call.height, call.width},
                                call.picture_strides),
                          options.offset),
      map(call.batch * call.filters * call.map_height * call.map_width, options.offset),
      result(call.filters * call.channels * call.kernel_h * call.kernel_w);
  call.picture = picture.read(options.folder + "/picture.bin").data();
  call.map = map.read(options.folder + "/map.bin").data();
  call.result = result.data();
  const auto plan = edge_weight_plan<T>(call, options.multiprocessors, options.shared_limit,
                                        options.threads, options.resident);
  if (plan.problem != nullptr) {
    std::printf("%s\n", plan.problem);
    std::exit(3);
  }
  host::require(plan.shared_bytes <= (options.shared_limit + 1024) / plan.resident - 1024,
                "too much shared memory");
  host::require(plan.table_bytes + plan.stages * plan.stage_bytes <= plan.shared_bytes,
                "too little shared memory");
  host::Buffer<float> partials(partial_floats(plan));
  call.partials = partials.data();
  const auto a = edge_weight_arguments<T>(call, plan);
  run_all(a);
  result.write(options.folder + "/result.bin");
  const std::int64_t facts[] = {a.wide,          plan.patch_piece, plan.tile_width,
                                plan.tile_height, plan.tiles,       plan.blocks,
                                plan.filter_chunks, plan.column_chunks, plan.stages};
  std::FILE* file = std::fopen((options.folder + "/plan.bin").c_str(), "wb");
  host::require(file != nullptr && std::fwrite(facts, sizeof(facts), 1, file) == 1, "plan.bin");
  std::fclose(file);
}

// A map of more than 2^32 elements, of which the last block sees ones in its last image alone.
void run_large() {
  ImageEdgeWeightCall call{};
  call.batch = 70000, call.channels = 3, call.height = call.width = 32, call.filters = 64;
  call.kernel_h = call.kernel_w = 3, call.map_height = call.map_width = 32;
  call.stride_h = call.stride_w = call.padding_h = call.padding_w = 1;
  const std::int64_t image = std::int64_t{3} * 32 * 32, maps = std::int64_t{64} * 32 * 32;
  const std::int64_t picture_strides[] = {image, 1, 96, 3}, strides[] = {27, 9, 3, 1};
  std::copy(picture_strides, picture_strides + 4, call.picture_strides);
  std::copy(strides, strides + 4, call.result_strides);
  host::require(call.batch * maps > std::int64_t{1} << 32, "not large");
  BFloat16* picture = host::sparse<BFloat16>(call.batch * image);
  BFloat16* map = host::sparse<BFloat16>(call.batch * maps);
  host::Buffer<BFloat16> result(64 * 27);
  const BFloat16 one = from_float<BFloat16>(1.0f);
  std::fill_n(picture + (call.batch - 1) * image, image, one);
  std::fill_n(map + (call.batch - 1) * maps, maps, one);
  call.picture = picture, call.map = map, call.result = result.data();
  auto plan = edge_weight_plan<BFloat16>(call, 132 * 132, 160 * 1024, 256, 1);
  host::require(plan.problem == nullptr && plan.column_tiles == 4, "the plan is another");
  auto a = edge_weight_arguments<BFloat16>(call, plan);
  host::Buffer<float> partials(partial_floats(plan));
  std::fill_n(partials.data(), partials.count(), 0.0f);
  a.partials = partials.data();
  run_block<BFloat16, 4>(a, plan.blocks - 1, 0, 0);
  run_sum(a);
  for (int i = 0; i < 64 * 27; ++i) {
    // A tap at the border misses a row or a column of the 32.
    const int r = i % 9 / 3, s = i % 3;
    const float expected = static_cast<float>((r == 1 ? 32 : 31) * (s == 1 ? 32 : 31));
    host::require(to_float(result.data()[i]) == to_float(from_float<BFloat16>(expected)),
                  "an element is wrong");
  }
}

}  // namespace

int main(int count, char** arguments) {
  if (std::string(arguments[2]) == "large") {
    run_large();
    return 0;
  }
  host::require(count == 29, "28 arguments, see test_conv2d_bias_leaky_relu_weight.py");
  int next = 2;
  const auto number = [&]() -> std::int64_t { return std::atoll(arguments[next++]); };
  const std::string dtype = arguments[next++];
  ImageEdgeWeightCall call{};
  Options options{};
  options.folder = arguments[1];
  options.offset = static_cast<int>(number());
  options.multiprocessors = static_cast<int>(number());
  options.shared_limit = static_cast<int>(number());
  options.threads = static_cast<int>(number());
  options.resident = static_cast<int>(number());
  for (std::int64_t* value :
       {&call.batch, &call.channels, &call.height, &call.width, &call.filters, &call.kernel_h,
        &call.kernel_w, &call.map_height, &call.map_width, &call.stride_h, &call.stride_w,
        &call.padding_h, &call.padding_w}) {
    *value = number();
  }
  for (std::int64_t& stride : call.picture_strides) stride = number();
  for (std::int64_t& stride : call.result_strides) stride = number();
  host::with_dtype(dtype, [&](auto zero) { run<decltype(zero)>(call, options); });
}
