"""The image-edge operators on a CPU: what they take there, and where they should win.

The passes are those of `image_edge`; operands that do not fill their memory are copied first, and
the weight gradient takes both layouts.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import compiled, image_edge
from .compiled import operators
from .convolution import Activation
from .geometry import (
    Geometry,
    belongs,
    input_gradient_belongs,
    is_channels_last,
    weight_gradient_belongs,
)
from .layouts import dense, is_channels_last_like

DTYPES = frozenset({torch.float32, torch.bfloat16, torch.float64})
KERNEL = 16  # rows or columns, at most; csrc/cpu/image_edge.h has the same number


# --- the passes ---


def forward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    activation: Activation,
    geometry: Geometry,
) -> Tensor:
    """activation(fprop(input, weight) + bias)."""
    if geometry.transposed:
        input = dense(input, channels_last=is_channels_last(input, weight))
    return image_edge.forward(input, weight, bias, activation, geometry)


def input_gradient(
    grad: Tensor, weight: Tensor, size: tuple[int, int], geometry: Geometry
) -> Tensor:
    """dgrad(grad, weight) for an input of height and width `size`."""
    if not geometry.transposed:
        grad = dense(grad, channels_last=is_channels_last(grad, weight))
    return image_edge.input_gradient(grad, weight, size, geometry)


def weight_gradient(input: Tensor, grad: Tensor, weight: Tensor, geometry: Geometry) -> Tensor:
    """wgrad(input, grad) in the layout of `weight`."""
    picture, other = (grad, input) if geometry.transposed else (input, grad)
    last = is_channels_last_like(weight) and not weight.is_contiguous()
    result: Tensor = operators().image_edge_conv2d_weight_gradient(
        picture, dense(other, channels_last=is_channels_last_like(picture)), *weight.shape[2:],
        *geometry.stride, *geometry.padding, last,
    )  # fmt: skip
    return result


# --- which calls the operators take ---


def takes_forward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    activation: Activation,
    geometry: Geometry,
) -> bool:
    if not geometry.transposed:
        return activation != "tanh" and _takes(input, weight, geometry)
    return _takes(input, weight, geometry) and belongs(
        geometry.transposed_size(input, weight), input, weight, geometry
    )


def takes_masked_forward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    output: Tensor,
    negative_slope: float,
    geometry: Geometry,
) -> bool:
    return (
        not geometry.transposed
        and _takes(input, weight, geometry)
        and image_edge.is_twin_of_result(output, input, weight)
    )


def takes_input_gradient(
    grad: Tensor, weight: Tensor, size: tuple[int, int], geometry: Geometry
) -> bool:
    return _takes(grad, weight, geometry) and input_gradient_belongs(grad, weight, size, geometry)


def takes_weight_gradient(input: Tensor, grad: Tensor, weight: Tensor, geometry: Geometry) -> bool:
    return _takes(input, weight, geometry) and weight_gradient_belongs(
        input, grad, weight, geometry
    )


def _takes(operand: Tensor, weight: Tensor, geometry: Geometry) -> bool:
    return (
        operand.dtype in DTYPES
        and weight.shape[1] <= image_edge.CHANNELS
        and geometry.groups == 1
        and geometry.dilation == (1, 1)
        and max(weight.shape[2:]) <= KERNEL
        and operand.numel() > 0
    )


# --- where they win: measured on one core of an AMD EPYC (AVX-512), batch 32, no page faults ---
#
# Times over those of oneDNN with the same fusion, contiguous / channels_last:
#
#     pass             dtype      3->32 64x64 4x4 s2  3->64 64x64 3x3  3->64 64x64 1x1  1->64 4x4 s2
#     forward          float32    0.98 / 0.93         0.71 / 0.96      0.32 / 0.74      0.97
#     forward          bfloat16   0.76 / 0.70         0.76 / 0.89      0.52 / 1.14      0.67
#     masked forward   float32    1.11 / 0.88         0.99 / 1.18      0.72 / 0.96      0.91
#     masked forward   bfloat16   0.72 / 0.60         0.71 / 0.94      0.51 / 0.74      0.56
#     input gradient   float32    0.36 / 0.39         0.25 / 0.37      0.75 / 0.61      0.38 / 0.19
#     input gradient   bfloat16   0.33 / 0.34         0.31 / 0.32      0.54 / 0.81      0.44 / 0.24
#     weight gradient  float32    0.90 / 0.86         0.65 / 0.73      0.37 / 1.45      1.04 / 0.91
#     weight gradient  bfloat16   0.82 / 0.74         0.39 / 0.82      0.22 / 0.70      0.58 / 0.69
#
# Where the C library takes fresh memory for a result, more than 32 MiB, ours has been there before
# (csrc/ops/kept_memory.h): 3->64 64x64 3x3 forward 6.5 against 48 ms, channels_last 5.2 against 25.
# Without instructions for bfloat16, oneDNN takes 3 to 60 times as long as ours.

FRESH = 32 << 20  # bytes from which the C library takes fresh memory every time


def _measured(weight: Tensor, geometry: Geometry) -> bool:
    return (
        compiled.cpu_version() != "portable"
        and max(weight.shape[2:]) <= 7
        and max(geometry.stride) <= 2
    )


def wins(*arguments: Any) -> bool:
    """Whether a forward or an input gradient should."""
    operand, weight, geometry = arguments[0], arguments[1], arguments[-1]
    if operand.dtype not in (torch.float32, torch.bfloat16) or not _measured(weight, geometry):
        return False
    if _taps(weight) > 1:
        return True
    if operand.dtype == torch.float32:
        return len(operand) > 1  # for one picture PyTorch has a product, 1.3 to 6 times as fast
    return not is_channels_last(operand, weight)


def masked_forward_wins(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    output: Tensor,
    negative_slope: float,
    geometry: Geometry,
) -> bool:
    if not wins(input, weight, geometry):
        return False
    # In float32 both wait for memory, and oneDNN waits as well as we do.
    few_rows = geometry.stride[0] > 1 and is_channels_last(input, weight)
    fresh = output.numel() * output.element_size() > FRESH
    return input.dtype == torch.bfloat16 or few_rows or fresh


def weight_gradient_wins(input: Tensor, grad: Tensor, weight: Tensor, geometry: Geometry) -> bool:
    bfloat16 = input.dtype == torch.bfloat16
    if not _measured(weight, geometry) or input.dtype not in (torch.float32, torch.bfloat16):
        return False
    if bfloat16 and compiled.cpu_version() != "avx512bf16":
        return True
    filters, channels, height, width = weight.shape
    # A row of the kernel has to fill the registers with sums, unless oneDNN is slow too.
    fills = height * width > 1 and channels * width >= 4
    planes = channels > 1 and (grad if geometry.transposed else input).is_contiguous()
    return (fills or planes) and (bfloat16 or filters <= 128)


# --- of a convolution that writes a picture (turned_edge), over oneDNN's, 2 to 64 pictures of 8x8
# to 128x128, 8 to 512 channels, kernels of 3 to 7, contiguous and channels_last: forward 1.3 to 3.9
# times as fast, weight gradient 1.3 to 6, input gradient 1.0 to 9 but for what is left out here ---


def turned_forward_wins(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    activation: Activation,
    geometry: Geometry,
) -> bool:
    if not _turned_measured(input, weight, geometry):
        return False
    # One tap: 1.0 to 1.4 times as fast in float32, 0.7 to 2.4 in bfloat16.
    return _taps(weight) > 1 or (len(input) > 1 and input.dtype == torch.float32)


def turned_input_gradient_wins(
    grad: Tensor, weight: Tensor, size: tuple[int, int], geometry: Geometry
) -> bool:
    if not _turned_measured(grad, weight, geometry):
        return False
    contiguous, wide = not is_channels_last(grad, weight), weight.shape[1] >= 64
    if grad.dtype == torch.bfloat16:
        return _taps(weight) > 1 and (contiguous or not wide or _taps(weight) > 9)
    return _taps(weight) > 1 or (len(grad) > 1 and (contiguous or wide))


def turned_weight_gradient_wins(
    input: Tensor, grad: Tensor, weight: Tensor, geometry: Geometry
) -> bool:
    return _turned_measured(input, weight, geometry) and (_taps(weight) > 1 or len(input) > 1)


def _turned_measured(operand: Tensor, weight: Tensor, geometry: Geometry) -> bool:
    return operand.dtype in (torch.float32, torch.bfloat16) and _measured(weight, geometry)


def _taps(weight: Tensor) -> int:
    return weight.shape[2] * weight.shape[3]
