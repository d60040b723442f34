// What the operators of both image-edge convolutions check and allocate.
#pragma once

#include "ops/common.h"

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

inline void check_bias(const std::optional<Tensor>& bias, std::int64_t channels,
                       const Tensor& input) {
  if (bias.has_value()) check_per_channel(*bias, "bias", channels, input, "input");
}

// The layout is asked for, not read off the input: with one channel, an input has both.
inline Tensor new_image(const Tensor& like, std::int64_t batch, std::int64_t channels,
                        std::int64_t height, std::int64_t width, bool channels_last) {
  using torch::headeronly::MemoryFormat;
  return torch::stable::empty(
      {batch, channels, height, width}, like.scalar_type(), std::nullopt, like.device(),
      std::nullopt, channels_last ? MemoryFormat::ChannelsLast : MemoryFormat::Contiguous);
}

inline void copy_strides(const Tensor& tensor, std::int64_t (&strides)[4]) {
  for (int d = 0; d < 4; ++d) strides[d] = tensor.stride(d);
}

// Whether the memory of a tensor is, up to dimensions of extent 1, that of a contiguous or
// channels_last tensor, as asked.
inline bool has_layout(const Tensor& tensor, bool channels_last) {
  return channels_last ? is_channels_last(tensor) : tensor.is_contiguous();
}

}  // namespace fastgen::operators
