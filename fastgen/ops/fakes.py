"""Shapes, dtypes and layouts of what the compiled operators return, for tracing without data.

`torch.compile`, `torch.export` and fake tensors ask here instead of running a kernel.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .layouts import is_dense


def _like(tensor: Tensor) -> Tensor:
    """Empty, in the tensor's layout if it is dense, else contiguous."""
    if is_dense(tensor):
        return torch.empty_like(tensor)
    return torch.empty_like(tensor, memory_format=torch.contiguous_format)


def _size(input: int, kernel: int, stride: int, padding: int, dilation: int = 1) -> int:
    return (input + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1


def _pictures(like: Tensor, shape: tuple[int, ...], *, channels_last: bool) -> Tensor:
    layout = torch.channels_last if channels_last else torch.contiguous_format
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=layout)


def bias_leaky_relu(input: Tensor, bias: Tensor | None, negative_slope: float) -> Tensor:
    return torch.empty_like(input)


def bias_leaky_relu_(input: Tensor, bias: Tensor | None, negative_slope: float) -> None:
    return None


def leaky_relu_mask(
    grad: Tensor, shift: Tensor | None, output: Tensor, negative_slope: float
) -> Tensor:
    return torch.empty_like(output)


def leaky_relu_mask_(
    grad: Tensor, shift: Tensor | None, output: Tensor, negative_slope: float
) -> None:
    return None


def leaky_relu_mask_sum(
    grad: Tensor, shift: Tensor | None, output: Tensor, negative_slope: float
) -> tuple[Tensor, Tensor]:
    return torch.empty_like(output), grad.new_empty(grad.shape[1] if grad.dim() > 1 else len(grad))


def reparameterize(mu: Tensor, logvar: Tensor, seed: Tensor) -> Tensor:
    return _like(mu)


def reparameterize_kl(mu: Tensor, logvar: Tensor, seed: Tensor) -> tuple[Tensor, Tensor]:
    return _like(mu), mu.new_empty(len(mu), dtype=torch.promote_types(mu.dtype, torch.float32))


def reparameterize_backward(
    grad_z: Tensor | None, grad_kl: Tensor | None, mu: Tensor, logvar: Tensor, seed: Tensor
) -> tuple[Tensor, Tensor]:
    return _like(mu), _like(mu)


def scaled_noise(scale: Tensor, logvar: Tensor, seed: Tensor) -> Tensor:
    return _like(logvar)


def image_edge_conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    output: Tensor | None,
    negative_slope: float,
    stride_h: int,
    stride_w: int,
    padding_h: int,
    padding_w: int,
    channels_last: bool,
    allow_tf32: bool,
) -> Tensor:
    height = _size(input.shape[2], weight.shape[2], stride_h, padding_h)
    width = _size(input.shape[3], weight.shape[3], stride_w, padding_w)
    shape = (input.shape[0], weight.shape[0], height, width)
    return _pictures(input, shape, channels_last=channels_last)


def image_edge_conv2d_weight_gradient(
    input: Tensor,
    grad: Tensor,
    kernel_h: int,
    kernel_w: int,
    stride_h: int,
    stride_w: int,
    padding_h: int,
    padding_w: int,
    channels_last: bool,
    allow_tf32: bool = False,
) -> Tensor:
    shape = (grad.shape[1], input.shape[1], kernel_h, kernel_w)
    return _pictures(input, shape, channels_last=channels_last)


def image_edge_conv_transpose2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    negative_slope: float,
    tanh: bool,
    stride_h: int,
    stride_w: int,
    padding_h: int,
    padding_w: int,
    output_h: int,
    output_w: int,
    channels_last: bool,
    allow_tf32: bool,
) -> Tensor:
    shape = (input.shape[0], weight.shape[1], output_h, output_w)
    return _pictures(input, shape, channels_last=channels_last)


def winograd_conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    output: Tensor | None,
    negative_slope: float,
    stride: int,
    padding_h: int,
    padding_w: int,
    channels_last: bool,
) -> Tensor:
    height = _size(input.shape[2], weight.shape[2], stride, padding_h)
    width = _size(input.shape[3], weight.shape[3], stride, padding_w)
    shape = (input.shape[0], weight.shape[0], height, width)
    return _pictures(input, shape, channels_last=channels_last)


def winograd_conv2d_weight_gradient(
    input: Tensor,
    grad: Tensor,
    kernel_h: int,
    kernel_w: int,
    stride: int,
    padding_h: int,
    padding_w: int,
    channels_last: bool,
) -> Tensor:
    shape = (grad.shape[1], input.shape[1], kernel_h, kernel_w)
    return _pictures(input, shape, channels_last=channels_last)


def winograd_conv_transpose2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    negative_slope: float,
    stride: int,
    padding_h: int,
    padding_w: int,
    output_h: int,
    output_w: int,
    channels_last: bool,
) -> Tensor:
    shape = (input.shape[0], weight.shape[1], output_h, output_w)
    return _pictures(input, shape, channels_last=channels_last)


def hopper_conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    negative_slope: float,
    stride_h: int,
    stride_w: int,
    padding_h: int,
    padding_w: int,
    dilation_h: int,
    dilation_w: int,
    tile: int,
) -> Tensor:
    height = _size(input.shape[2], weight.shape[2], stride_h, padding_h, dilation_h)
    width = _size(input.shape[3], weight.shape[3], stride_w, padding_w, dilation_w)
    shape = (input.shape[0], weight.shape[0], height, width)
    return _pictures(input, shape, channels_last=True)


OPERATORS = (
    bias_leaky_relu,
    bias_leaky_relu_,
    leaky_relu_mask,
    leaky_relu_mask_,
    leaky_relu_mask_sum,
    reparameterize,
    reparameterize_kl,
    reparameterize_backward,
    scaled_noise,
    image_edge_conv2d,
    image_edge_conv2d_weight_gradient,
    image_edge_conv_transpose2d,
    winograd_conv2d,
    winograd_conv2d_weight_gradient,
    winograd_conv_transpose2d,
)
CUTLASS_OPERATORS = (hopper_conv2d,)


def register(*, cutlass: bool) -> None:
    """Enter all of them; called once, when the module that defines the operators is loaded."""
    for fake in (*OPERATORS, *(CUTLASS_OPERATORS if cutlass else ())):
        torch.library.register_fake(f"fastgen::{fake.__name__}", fake)
