// Pictures on a CPU from one layout into the other, in blocks that stay in registers: from 65536
// numbers on PyTorch's copy takes two to sixteen times as long.
#pragma once

#include "cpu/reorder.h"
#include "ops/common.h"

namespace fastgen::operators {

// Whether the memory of a tensor is, up to dimensions of extent 1, that of a contiguous or
// channels_last tensor, as asked.
inline bool has_layout(const Tensor& tensor, bool channels_last) {
  return channels_last ? is_channels_last(tensor) : tensor.is_contiguous();
}

// The layout is asked for, not read off the input: with one channel, an input has both.
inline Tensor new_image(const Tensor& like, std::int64_t batch, std::int64_t channels,
                        std::int64_t height, std::int64_t width, bool channels_last) {
  using torch::headeronly::MemoryFormat;
  return torch::stable::empty(
      {batch, channels, height, width}, like.scalar_type(), std::nullopt, like.device(),
      std::nullopt, channels_last ? MemoryFormat::ChannelsLast : MemoryFormat::Contiguous);
}

// Copies a picture of one layout into one of the other, of the same shape and dtype.
inline void reorder(const Tensor& from, const Tensor& to, bool into_channels_last) {
  const std::int64_t channels = from.size(1), pixels = from.size(2) * from.size(3);
  if (from.numel() == 0) return;
  cpu::ReorderCall call{};
  call.from = from.const_data_ptr();
  call.to = to.mutable_data_ptr();
  call.matrices = from.size(0);
  call.rows = into_channels_last ? channels : pixels;
  call.columns = into_channels_last ? pixels : channels;
  call.element_size = from.element_size();
  call.plan = cpu::reorder_plan(call.matrices, call.rows, call.columns);
  run_pieces(cpu::reorder_kernel(), call, call.plan.pieces, from.numel() / call.plan.pieces);
}

// A dense picture in the layout that is asked for: itself, or a copy.
inline Tensor in_layout(const Tensor& picture, bool channels_last) {
  if (has_layout(picture, channels_last)) return picture;
  const Tensor copy = in_kept_memory(new_image(picture, picture.size(0), picture.size(1),
                                               picture.size(2), picture.size(3), channels_last));
  reorder(picture, copy, channels_last);
  return copy;
}

}  // namespace fastgen::operators
