// What the operators of both image-edge convolutions check and allocate.
#pragma once

#include <cstdlib>
#include <memory>

#include "cpu/image_edge.h"
#include "ops/reorder.h"

namespace fastgen::operators {

inline void check_four_dimensions(const Tensor& tensor, const char* name) {
  STD_TORCH_CHECK(tensor.dim() == 4, name, " must have four dimensions (got ", tensor.dim(), ")");
}

inline void check_step(std::int64_t stride_h, std::int64_t stride_w, std::int64_t padding_h,
                       std::int64_t padding_w) {
  STD_TORCH_CHECK(stride_h >= 1 && stride_w >= 1, "stride must be at least 1 (got ", stride_h,
                  " and ", stride_w, ")");
  STD_TORCH_CHECK(padding_h >= 0 && padding_w >= 0, "padding must not be negative (got ", padding_h,
                  " and ", padding_w, ")");
}

inline void check_kernel(std::int64_t kernel_h, std::int64_t kernel_w) {
  STD_TORCH_CHECK(kernel_h >= 1 && kernel_w >= 1, "the kernel must not be empty");
  STD_TORCH_CHECK(kernel_h <= cpu::kMostKernel && kernel_w <= cpu::kMostKernel,
                  "the kernel must be at most ", cpu::kMostKernel, " by ", cpu::kMostKernel,
                  " (got ", kernel_h, " by ", kernel_w, ")");
}

inline void check_bias(const std::optional<Tensor>& bias, std::int64_t channels,
                       const Tensor& input) {
  if (bias.has_value()) check_per_channel(*bias, "bias", channels, input, "input");
}

inline void copy_strides(const Tensor& tensor, std::int64_t (&strides)[4]) {
  for (int d = 0; d < 4; ++d) strides[d] = tensor.stride(d);
}

// ------------------------------------------------------------------------------------------- CPU

inline Dtype cpu_dtype_of(const Tensor& tensor, const char* name) {
  const Dtype dtype = dtype_of(tensor, name);
  STD_TORCH_CHECK(dtype != Dtype::float16, name,
                  " must be float32, bfloat16 or float64 on a CPU (got Half)");
  return dtype;
}

// Memory for the kernels' own use: a kept block, on pages that are large where the system has such.
// A sanitizer sees what lies beyond it.
class Workspace {
 public:
#if defined(__SANITIZE_ADDRESS__)
  explicit Workspace(std::int64_t bytes)
      : data_(std::aligned_alloc(cpu::kImageEdgeAlignment,
                                 ceil_div(bytes, cpu::kImageEdgeAlignment) *
                                     cpu::kImageEdgeAlignment)) {}
  ~Workspace() { std::free(data_); }
#else
  explicit Workspace(std::int64_t bytes) : data_(take_block(bytes, &size_)) {}
  ~Workspace() { give_block(data_, size_); }
#endif
  Workspace(const Workspace&) = delete;
  Workspace& operator=(const Workspace&) = delete;
  void* data() const { return data_; }

 private:
  std::size_t size_ = 0;  // before data_, which writes it
  void* data_;
};

// Operations that a thread should have: below it another thread does not pay.
constexpr std::int64_t kGrainOperations = 1000000;

// Runs a kernel over the pieces of its plan on torch's threads.
template <typename Call>
void run_plan(void (*kernel)(const Call&, std::int64_t, std::int64_t, void*), const Call& call) {
  const auto& plan = call.plan;
  const std::int64_t grain = kGrainOperations / plan.piece_operations + 1;
  const auto run = [&](std::int64_t begin, std::int64_t end) {
    const Workspace scratch(plan.scratch_bytes);
    kernel(call, begin, end, scratch.data());
  };
  if (plan.pieces <= grain) {
    if (plan.pieces > 0) run(0, plan.pieces);
    return;
  }
  torch::stable::parallel_for(0, plan.pieces, grain, run);
}

}  // namespace fastgen::operators
