// Plays every thread of the kernels in csrc/cuda/bias_leaky_relu.cu, block by block.

#include "cuda/bias_leaky_relu_body.h"
#include "host.h"

using namespace fastgen;
using namespace fastgen::cuda;

namespace {

struct Case {
  std::string folder, operation;
  bool shift, in_place;
  std::int64_t outer, channels, inner;
  float slope;
  int offset, multiprocessors;
};

void tree(float* values, int copies, int columns, int threads) {
  for (; copies > 1; copies = rows_left(copies)) {
    for (int t = 0; t < threads; ++t) wide_tree_level(values, copies, columns, t, threads);
  }
}

constexpr const char* kNames[] = {"flat", "columns", "planes"};

template <typename T, int V, bool kMask, bool kSum>
void run_block(const BiasArguments<T>& a, std::int64_t block) {
  const BiasPlan& plan = a.plan;
  if (plan.pass == BiasPass::flat) {
    host::require(!kSum && plan.threads == kBiasThreads, "a flat pass with a sum");
    for (int t = 0; t < kBiasThreads; ++t) bias_flat<T, V, kMask, kFlatUnroll<kMask>>(a, block, t);
    return;
  }
  host::Buffer<float> shared(kBiasThreads * V);
  for (int thread = 0; thread < plan.threads; ++thread) {
    float sums[V];
    if (plan.pass == BiasPass::planes) {
      shared.data()[thread] = bias_planes<T, V, kMask, kSum, kWalkUnroll>(a, block, thread);
      continue;
    }
    const bool used = bias_columns<T, V, kMask, kSum, kWalkUnroll>(a, block, thread, sums);
    if (!kSum) continue;
    if (plan.tiles == 1) put_columns<V>(shared.data(), thread, sums);
    if (plan.tiles > 1 && used) write_tile_columns<T, V>(a, block, thread, sums);
  }
  if (!kSum) return;
  if (plan.pass == BiasPass::planes) {
    tree(shared.data(), plan.threads, 1, plan.threads);
    a.partials[block] = shared.data()[0];
  } else if (plan.tiles == 1) {
    tree(shared.data(), column_copies<T, V>(a), column_base(a), plan.threads);
    for (int t = 0; t < plan.threads; ++t) write_tree_columns(a, shared.data(), block, t);
  }
}

template <typename T>
void add_partials(const PartialSums& sums, T* result) {
  const int columns = sum_columns(sums);
  for (std::int64_t block = 0; block * columns < sums.channels; ++block) {
    host::Buffer<float> shared(kSumThreads);
    for (int t = 0; t < kSumThreads; ++t) shared.data()[t] = partial_sum(sums, block, t);
    tree(shared.data(), kSumThreads / columns, columns, kSumThreads);
    for (int t = 0; t < kSumThreads; ++t) write_sum(sums, result, shared.data(), block, t);
  }
}

template <typename T, int V, bool kMask, bool kSum>
void run(const Case& c) {
  const std::int64_t count = c.outer * c.channels * c.inner;
  host::Buffer<T> input(count, c.offset), output(kMask ? count : 0, c.offset),
      shift(c.shift ? c.channels : 0), separate(count, c.offset), sum(kSum ? c.channels : 0);
  input.read(c.folder + "/input.bin");
  if (kMask) output.read(c.folder + "/output.bin");
  if (c.shift) shift.read(c.folder + "/shift.bin");
  const BiasPlan plan = bias_plan(c.outer, c.channels, c.inner, V, kSum || c.shift, kSum,
                                  c.multiprocessors, kFlatUnroll<kMask>);
  host::require(!plan.too_large, "the plan says too large");
  host::Buffer<float> partials(kSum ? plan.partial_rows * c.channels * plan.partial_inner : 0);

  host::Buffer<T>& result = c.in_place ? input : separate;
  const BiasArguments<T> a{input.data(), c.shift ? shift.data() : nullptr,
                           kMask ? output.data() : nullptr, result.data(), partials.data(),
                           c.outer, c.channels, c.inner, c.slope, plan};
  // Backwards, so that no block can lean on one before it.
  for (std::int64_t block = plan.blocks - 1; block >= 0; --block) {
    run_block<T, V, kMask, kSum>(a, block);
  }
  result.write(c.folder + "/result.bin");
  if (!kSum) return;
  add_partials(PartialSums{partials.data(), plan.partial_rows, c.channels, plan.partial_inner,
                           FastDivide(static_cast<std::uint32_t>(plan.partial_inner)), 1.0f},
               sum.data());
  sum.write(c.folder + "/sum.bin");
  partials.write(c.folder + "/partials.bin");
  std::printf("%s %lld blocks\n", kNames[static_cast<int>(plan.pass)],
              static_cast<long long>(plan.blocks));
}

template <typename T, int V>
void run(const Case& c) {
  if (c.operation == "forward") return run<T, V, false, false>(c);
  if (c.operation == "mask") return run<T, V, true, false>(c);
  if (c.operation == "mask_sum") return run<T, V, true, true>(c);
  host::require(false, "unknown operation " + c.operation);
}

// The blocks that meet the end of a tensor of more than 2^32 elements, in place: the last elements
// are 1 on entry; on return every one that was taken is slope * (1 - 2) = -slope, the last too, and
// no other changed.
template <int V>
void run_large(std::int64_t outer, std::int64_t channels, std::int64_t inner) {
  const std::int64_t count = outer * channels * inner;
  host::require(count > std::int64_t{1} << 32, "not large");
  BFloat16* data = host::sparse<BFloat16>(count);
  host::Buffer<BFloat16> shift(channels);
  for (std::int64_t i = 0; i < channels; ++i) shift.data()[i] = from_float<BFloat16>(-2.0f);
  const BiasPlan plan = bias_plan(outer, channels, inner, V, true, false, 132, kFlatUnroll<false>);
  host::require(!plan.too_large, "the plan says too large");
  const std::int64_t tail = 1 << 16;
  for (std::int64_t i = count - tail; i < count; ++i) data[i] = from_float<BFloat16>(1.0f);
  const BiasArguments<BFloat16> a{data,  shift.data(), nullptr, data, nullptr, outer,
                                  channels, inner, 0.5f, plan};
  if (plan.pass == BiasPass::columns) {
    host::require(plan.tiles == 1, "more than one tile");
    // The block of the last whole row, and the one that takes what is left.
    run_block<BFloat16, V, false, false>(a, (plan.whole_rows - 1) / plan.block_rows);
    run_block<BFloat16, V, false, false>(a, 0);
  } else if (plan.pass == BiasPass::flat) {
    run_block<BFloat16, V, false, false>(a, plan.blocks - 1);
    run_block<BFloat16, V, false, false>(a, plan.blocks - 2);
  } else {  // the last two of the last channel
    run_block<BFloat16, V, false, false>(a, plan.blocks - 1);
    run_block<BFloat16, V, false, false>(a, plan.blocks - 1 - channels);
  }
  std::int64_t taken = 0;
  for (std::int64_t i = count - tail; i < count; ++i) {
    const float value = to_float(data[i]);
    host::require(value == 1.0f || value == -0.5f, "wrong value");
    taken += value == -0.5f;
  }
  host::require(to_float(data[count - 1]) == -0.5f, "the last element was not reached");
  host::require(taken >= 256, "hardly anything was reached");
  std::printf("%s %lld\n", kNames[static_cast<int>(plan.pass)], static_cast<long long>(taken));
}

}  // namespace

int main(int count, char** arguments) {
  if (std::string(arguments[2]) == "large") {
    host::require(count == 6, "usage: folder large outer channels inner");
    run_large<8>(std::atoll(arguments[3]), std::atoll(arguments[4]), std::atoll(arguments[5]));
    return 0;
  }
  host::require(count == 13,
                "usage: folder operation dtype wide shift in_place outer channels inner slope "
                "offset multiprocessors");
  const Case c{arguments[1], arguments[2], std::atoi(arguments[5]) != 0,
               std::atoi(arguments[6]) != 0, std::atoll(arguments[7]), std::atoll(arguments[8]),
               std::atoll(arguments[9]), std::strtof(arguments[10], nullptr),
               std::atoi(arguments[11]), std::atoi(arguments[12])};
  host::with_dtype(arguments[3], [&](auto zero) {
    using T = decltype(zero);
    if (std::atoi(arguments[4]) != 0) return run<T, kWideExtent<T>>(c);
    return run<T, 1>(c);
  });
}
