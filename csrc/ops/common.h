// What every operator file needs: arguments checked, memory layout decoded, the current CUDA stream.
//
// Only the LibTorch stable ABI (target 2.11) is used, so that one build runs on every torch since.
// Below target 2.13 a failing torch call reports no more than a file and a line: check arguments
// first, with a message that says what was given and what is allowed.
#pragma once

#include <dlfcn.h>

#include <array>
#include <cstdint>
#include <optional>
#include <tuple>

#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include "dtype.h"
#include "ops/kept_memory.h"

namespace fastgen {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// ---------------------------------------------------------------------------------------- dtypes

inline Dtype dtype_of(const Tensor& tensor, const char* name) {
  switch (tensor.scalar_type()) {
    case ScalarType::Float:
      return Dtype::float32;
    case ScalarType::BFloat16:
      return Dtype::bfloat16;
    case ScalarType::Half:
      return Dtype::float16;
    case ScalarType::Double:
      if (!tensor.is_cuda()) return Dtype::float64;
      [[fallthrough]];
    default:
      STD_TORCH_CHECK(false, name, " must be float32, bfloat16",
                      tensor.is_cuda() ? " or float16 (got " : ", float16 or float64 (got ",
                      torch::headeronly::toString(tensor.scalar_type()), ")");
  }
  return Dtype::float32;  // not reached: the check above throws
}

// -------------------------------------------------------------------------------- memory layouts

// A dense tensor of shape (N, C, *) as its memory runs: element (o * channels + c) * inner + i.
// Contiguous: outer = N, inner = the product of the rest. Channels last: outer = N * the rest,
// inner = 1.
struct ChannelView {
  std::int64_t outer;
  std::int64_t channels;
  std::int64_t inner;
  bool channels_last;  // true only where the order of memory differs from the contiguous one
};

// Whether memory runs N, *, C for a tensor of shape (N, C, *). Strides of dimensions of extent 1 say
// nothing about memory and are not looked at, which is torch's own rule.
inline bool is_channels_last(const Tensor& tensor) {
  const std::int64_t dim = tensor.dim();
  if (dim < 3) return false;
  std::int64_t expected = 1;
  const auto fits = [&](std::int64_t d) {
    const std::int64_t extent = tensor.size(d);
    if (extent != 1 && tensor.stride(d) != expected) return false;
    expected *= extent;
    return true;
  };
  if (!fits(1)) return false;
  for (std::int64_t d = dim - 1; d >= 2; --d) {
    if (!fits(d)) return false;
  }
  return fits(0);
}

inline bool is_dense(const Tensor& tensor) {
  return tensor.is_contiguous() || is_channels_last(tensor);
}

// The channel view of a dense tensor; throws for any other layout (Python makes those dense first).
// A shape of one dimension is C alone.
inline ChannelView channel_view(const Tensor& tensor, const char* name) {
  const std::int64_t dim = tensor.dim();
  STD_TORCH_CHECK(dim >= 1, name, " must have at least one dimension, (C) or (N, C, *)");
  std::int64_t rest = 1;
  for (std::int64_t d = 2; d < dim; ++d) rest *= tensor.size(d);
  const std::int64_t batch = dim == 1 ? 1 : tensor.size(0);
  const std::int64_t channels = dim == 1 ? tensor.size(0) : tensor.size(1);
  if (tensor.is_contiguous()) return {batch, channels, rest, false};
  STD_TORCH_CHECK(is_channels_last(tensor), name,
                  " must be contiguous or channels_last; call .contiguous() first");
  return {batch * rest, channels, 1, true};
}

// ---------------------------------------------------------------------------------------- checks

inline void check_same_device(const Tensor& tensor, const char* name, const Tensor& other,
                              const char* other_name) {
  STD_TORCH_CHECK(tensor.is_cuda() == other.is_cuda() &&
                      tensor.get_device_index() == other.get_device_index(),
                  name, " must be on the device of ", other_name);
}

inline void check_same_dtype(const Tensor& tensor, const char* name, const Tensor& other,
                             const char* other_name) {
  STD_TORCH_CHECK(tensor.scalar_type() == other.scalar_type(), name, " must have the dtype of ",
                  other_name, ", ", torch::headeronly::toString(other.scalar_type()), " (got ",
                  torch::headeronly::toString(tensor.scalar_type()), ")");
}

inline void check_same_shape(const Tensor& tensor, const char* name, const Tensor& other,
                             const char* other_name) {
  bool same = tensor.dim() == other.dim();
  for (std::int64_t d = 0; same && d < tensor.dim(); ++d) same = tensor.size(d) == other.size(d);
  STD_TORCH_CHECK(same, name, " must have the shape of ", other_name);
}

// Same device, dtype, shape and order of memory: element i of one belongs to element i of the other.
inline void check_twin(const Tensor& tensor, const char* name, const Tensor& other,
                       const char* other_name) {
  check_same_device(tensor, name, other, other_name);
  check_same_dtype(tensor, name, other, other_name);
  check_same_shape(tensor, name, other, other_name);
  for (std::int64_t d = 0; d < tensor.dim(); ++d) {
    STD_TORCH_CHECK(tensor.size(d) == 1 || tensor.numel() == 0 ||
                        tensor.stride(d) == other.stride(d),
                    name, " must have the memory layout of ", other_name);
  }
}

// A vector with one contiguous entry per channel, such as a bias.
inline void check_per_channel(const Tensor& vector, const char* name, std::int64_t channels,
                              const Tensor& like, const char* like_name) {
  check_same_device(vector, name, like, like_name);
  check_same_dtype(vector, name, like, like_name);
  STD_TORCH_CHECK(vector.dim() == 1 && vector.size(0) == channels && vector.is_contiguous(), name,
                  " must be a contiguous vector with one entry per channel, ", channels);
}

inline void check_negative_slope(double negative_slope) {
  STD_TORCH_CHECK(negative_slope >= 0 && negative_slope <= 1,
                  "negative_slope must lie in [0, 1] (got ", negative_slope,
                  "): below 0 the sign of the output no longer tells the sign of the input");
}

// The data pointer of an optional tensor: nullptr where there is none.
inline const void* data_or_null(const std::optional<Tensor>& tensor) {
  return tensor.has_value() ? tensor->const_data_ptr() : nullptr;
}

// ------------------------------------------------------------------------------------------- CPU

// Elements that a thread should have, torch's own measure: below it another thread does not pay.
constexpr std::int64_t kGrain = 32768;

// Runs a CPU kernel over its pieces, of about `piece_elements` elements each, on torch's threads.
template <typename Call>
void run_pieces(void (*kernel)(const Call&, std::int64_t, std::int64_t), const Call& call,
                std::int64_t pieces, std::int64_t piece_elements) {
  const std::int64_t grain = piece_elements >= kGrain ? 1 : kGrain / (piece_elements + 1) + 1;
  if (pieces <= grain) {
    kernel(call, 0, pieces);
    return;
  }
  torch::stable::parallel_for(
      0, pieces, grain,
      [&](std::int64_t begin, std::int64_t end) { kernel(call, begin, end); });
}

// A fresh tensor on the CPU, with its memory from the kept blocks if it is large: see
// kept_memory.h. Its values are undefined, as before. Its storage cannot be resized.
inline Tensor in_kept_memory(const Tensor& fresh) {
  const std::size_t bytes =
      static_cast<std::size_t>(fresh.numel()) * static_cast<std::size_t>(fresh.element_size());
  if (fresh.is_cuda() || bytes < kLeastKept) return fresh;
  std::size_t size = 0;
  void* block = take_block(bytes, &size);
  return torch::stable::from_blob(block, fresh.sizes(), fresh.strides(), fresh.device(),
                                  fresh.scalar_type(),
                                  [size](void* memory) { give_block(memory, size); });
}

// The type that a CPU kernel computes in.
inline ScalarType wide_type(const Tensor& tensor) {
  return tensor.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

// ------------------------------------------------------------------------------------------ CUDA

// Makes the device of a CUDA tensor current while it lives; launches and streams belong to it.
class OnDeviceOf {
 public:
  explicit OnDeviceOf(const Tensor& tensor) : guard_(tensor.get_device_index()) {}

 private:
  torch::stable::accelerator::DeviceGuard guard_;
};

// The stream on which torch runs now for the device of `tensor`, a cudaStream_t.
//
// Looked up in the torch that this process has loaded, not linked: the same module then serves a
// CPU build of torch, in which the function does not exist.
inline void* current_cuda_stream(const Tensor& tensor) {
  using Lookup = std::int32_t (*)(std::int32_t device, void** stream);
  static const Lookup lookup = []() -> Lookup {
    void* library = dlopen("libtorch_cuda.so", RTLD_LAZY | RTLD_NOLOAD);
    if (library == nullptr) return nullptr;
    return reinterpret_cast<Lookup>(dlsym(library, "aoti_torch_get_current_cuda_stream"));
  }();
  STD_TORCH_CHECK(lookup != nullptr,
                  "a CUDA tensor needs a CUDA build of torch; this process runs a CPU build");
  void* stream = nullptr;
  STD_TORCH_CHECK(lookup(tensor.get_device_index(), &stream) == 0,
                  "torch has no current CUDA stream for device ", tensor.get_device_index());
  return stream;
}

// Launchers answer nullptr when all went well and the CUDA error text otherwise.
inline void check_launch(const char* error) {
  STD_TORCH_CHECK(error == nullptr, "a fastgen CUDA kernel could not be launched: ", error);
}

}  // namespace fastgen
