"""Winograd's convolutions on a CPU: the compiled operators as passes, what they take, where they
should win.

A wide convolution runs at the CPU's peak in oneDNN; what is left is to multiply less. Two by two
neighbouring outputs of a 3x3 convolution cost 16 products instead of 36, of a 4x4 one with stride 2
9 instead of 16 in each of its four phases (csrc/cpu/winograd_transforms.h). Three operators compute
all passes:

    ===============================  ==========================  ============================
    operator                         of a convolution            of a transposed convolution
    ===============================  ==========================  ============================
    winograd_conv2d                  forward, masked_forward     input_gradient
    winograd_conv_transpose2d        input_gradient              forward, masked_forward
    winograd_conv2d_weight_gradient  weight_gradient             weight_gradient
    ===============================  ==========================  ============================
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import compiled
from .compiled import operators
from .convolution import Activation
from .geometry import Geometry, is_channels_last
from .layouts import is_channels_last_like

DTYPES = frozenset({torch.float32, torch.bfloat16, torch.float64})
KERNELS = {(3, 3): (1, 1), (4, 4): (2, 2)}  # and their strides
CHANNELS = 16  # both numbers are multiples of it; csrc/cpu/winograd.h has the same number


# --- the passes ---


def forward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    activation: Activation,
    geometry: Geometry,
) -> Tensor:
    """activation(fprop(input, weight) + bias)."""
    assert activation != "tanh"
    bias = None if bias is None else bias.contiguous()
    if not geometry.transposed:
        return _convolved(input, weight, bias, None, activation, geometry)
    size = geometry.transposed_size(input, weight)
    return _transposed(input, weight, bias, activation, size, geometry)


def masked_forward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    output: Tensor,
    negative_slope: float,
    geometry: Geometry,
) -> Tensor:
    """mask(fprop(input, weight) + bias; output)."""
    bias = None if bias is None else bias.contiguous()
    if not geometry.transposed:
        return _convolved(input, weight, bias, output, negative_slope, geometry)
    size = geometry.transposed_size(input, weight)
    result = _transposed(input, weight, bias, 1.0, size, geometry)
    operators().leaky_relu_mask_(result, None, output, negative_slope)
    return result


def input_gradient(
    grad: Tensor, weight: Tensor, size: tuple[int, int], geometry: Geometry
) -> Tensor:
    """dgrad(grad, weight) for an input of height and width `size`."""
    if not geometry.transposed:
        return _transposed(grad, weight, None, 1.0, size, geometry)
    result = _convolved(grad, weight, None, None, 1.0, geometry)
    # An output padding of a stride or more adds rows that no input has.
    return result[:, :, : size[0], : size[1]] if tuple(result.shape[2:]) != size else result


def weight_gradient(input: Tensor, grad: Tensor, weight: Tensor, geometry: Geometry) -> Tensor:
    """wgrad(input, grad) in the layout of `weight`."""
    wide, map = (grad, input) if geometry.transposed else (input, grad)
    last = is_channels_last_like(weight) and not weight.is_contiguous()
    result: Tensor = operators().winograd_conv2d_weight_gradient(
        wide, map, *weight.shape[2:], geometry.stride[0], *geometry.padding, last
    )
    return result


def _convolved(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    output: Tensor | None,
    negative_slope: float,
    geometry: Geometry,
) -> Tensor:
    result: Tensor = operators().winograd_conv2d(
        input, weight, bias, output, negative_slope, geometry.stride[0], *geometry.padding
    )
    return result


def _transposed(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    negative_slope: float,
    size: tuple[int, int],
    geometry: Geometry,
) -> Tensor:
    result: Tensor = operators().winograd_conv_transpose2d(
        input, weight, bias, negative_slope, geometry.stride[0], *geometry.padding, *size
    )
    return result


# --- which calls the operators take ---


def takes_forward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    activation: Activation,
    geometry: Geometry,
) -> bool:
    return (
        activation != "tanh"
        and _takes(input, weight, geometry)
        and (
            not geometry.transposed
            or _belongs(geometry.transposed_size(input, weight), input, weight, geometry)
        )
    )


def takes_masked_forward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    output: Tensor,
    negative_slope: float,
    geometry: Geometry,
) -> bool:
    return is_channels_last_like(output) and takes_forward(
        input, weight, bias, negative_slope, geometry
    )


def takes_input_gradient(
    grad: Tensor, weight: Tensor, size: tuple[int, int], geometry: Geometry
) -> bool:
    return _takes(grad, weight, geometry) and (
        geometry.transposed or _belongs(size, grad, weight, geometry)
    )


def takes_weight_gradient(input: Tensor, grad: Tensor, weight: Tensor, geometry: Geometry) -> bool:
    if not (_takes(input, weight, geometry) and is_channels_last_like(grad)):
        return False
    # An output padding of a stride or more adds rows that no input has.
    return not geometry.transposed or _belongs(
        (grad.shape[2], grad.shape[3]), input, weight, geometry
    )


def _belongs(size: tuple[int, int], map: Tensor, weight: Tensor, geometry: Geometry) -> bool:
    """Whether an input of this size has a convolution of the map's size."""
    return all(
        0
        <= size[axis]
        + 2 * geometry.padding[axis]
        - weight.shape[2 + axis]
        - (map.shape[2 + axis] - 1) * geometry.stride[axis]
        < geometry.stride[axis]
        for axis in (0, 1)
    )


def _takes(operand: Tensor, weight: Tensor, geometry: Geometry) -> bool:
    kernel = (weight.shape[2], weight.shape[3])
    return (
        operand.dtype in DTYPES
        and KERNELS.get(kernel) == geometry.stride
        and geometry.groups == 1
        and geometry.dilation == (1, 1)
        and weight.shape[0] % CHANNELS == 0
        and weight.shape[1] % CHANNELS == 0
        and max(geometry.padding) < kernel[0]
        and operand.numel() > 0
        and is_channels_last(operand, weight)
        and is_channels_last_like(operand)
    )


# --- where they win ---


def wins(*arguments: Any) -> bool:
    """Whether a pass should."""
    operand: Tensor = arguments[0]
    return operand.dtype in (torch.float32, torch.bfloat16) and compiled.cpu_version() != "portable"
