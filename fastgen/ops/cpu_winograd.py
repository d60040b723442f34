"""Winograd's convolutions on a CPU: the compiled operators as passes, what they take, where they
should win.

A wide convolution runs at the CPU's peak in oneDNN; what is left is to multiply less
(csrc/cpu/winograd_method.h). Products of a channel and a filter in a tile of outputs:

    kernel, stride  2x2 outputs    3x3 outputs
    3x3, 1          16 for 36
    3x3, 2          25 for 36      49 for 81
    4x4, 2          36 for 64      64 for 144
    5x5, 2          49 for 100

Three operators compute all passes:

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

from . import compiled, variables
from .compiled import operators
from .convolution import Activation
from .geometry import (
    Geometry,
    belongs,
    cropped,
    input_gradient_belongs,
    is_channels_last,
    size_of,
    weight_gradient_belongs,
)
from .layouts import dense, is_channels_last_like, is_dense, same_order

DTYPES = frozenset({torch.float32, torch.bfloat16, torch.float64})
# Kernels and strides, as csrc/ops/winograd.h takes them and csrc/cpu/winograd_method.h names them.
KINDS = (((3, 3), (1, 1)), ((3, 3), (2, 2)), ((4, 4), (2, 2)), ((5, 5), (2, 2)))
CHANNELS = 16  # both numbers are multiples of it; csrc/cpu/winograd.h has the same number
# Pixels of all maps from which tiles of three are used with two taps in a phase, as in
# csrc/cpu/winograd_plan.h; for a convolution there must be as many too as its weight has pairs of
# channels over MIXED_SHARE.
MIXED_PIXELS, MIXED_PIXELS_OF_WEIGHT_GRADIENT, MIXED_SHARE = 256, 1024, 128


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
    if not geometry.transposed:
        return _convolved(input, weight, bias, output, negative_slope, geometry)
    size = geometry.transposed_size(input, weight)
    result = _transposed(input, weight, bias, 1.0, size, geometry)
    if not same_order(result, output):
        masked: Tensor = operators().leaky_relu_mask(result, None, output, negative_slope)
        return masked
    operators().leaky_relu_mask_(result, None, output, negative_slope)
    return result


def input_gradient(
    grad: Tensor, weight: Tensor, size: tuple[int, int], geometry: Geometry
) -> Tensor:
    """dgrad(grad, weight) for an input of height and width `size`."""
    if not geometry.transposed:
        return _transposed(grad, weight, None, 1.0, size, geometry)
    return cropped(_convolved(grad, weight, None, None, 1.0, geometry), size)


def weight_gradient(input: Tensor, grad: Tensor, weight: Tensor, geometry: Geometry) -> Tensor:
    """wgrad(input, grad) in the layout of `weight`."""
    wide, map = (grad, input) if geometry.transposed else (input, grad)
    last = is_channels_last_like(weight) and not weight.is_contiguous()
    result: Tensor = operators().winograd_conv2d_weight_gradient(
        dense(wide, channels_last=last), dense(map, channels_last=last), *weight.shape[2:],
        geometry.stride[0], *geometry.padding, last,
    )  # fmt: skip
    return result


def _convolved(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    output: Tensor | None,
    negative_slope: float,
    geometry: Geometry,
) -> Tensor:
    bias = None if bias is None else bias.contiguous()
    last = is_channels_last(input, weight)
    result: Tensor = operators().winograd_conv2d(
        dense(input, channels_last=last), weight, bias, output, negative_slope, geometry.stride[0],
        *geometry.padding, last,
    )  # fmt: skip
    return result


def _transposed(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    negative_slope: float,
    size: tuple[int, int],
    geometry: Geometry,
) -> Tensor:
    bias = None if bias is None else bias.contiguous()
    last = is_channels_last(input, weight)
    result: Tensor = operators().winograd_conv_transpose2d(
        dense(input, channels_last=last), weight, bias, negative_slope, geometry.stride[0],
        *geometry.padding, *size, last,
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
    return (
        activation != "tanh"
        and _takes(input, weight, geometry)
        and (
            not geometry.transposed
            or belongs(geometry.transposed_size(input, weight), input, weight, geometry)
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
    return is_dense(output) and takes_forward(input, weight, bias, negative_slope, geometry)


def takes_input_gradient(
    grad: Tensor, weight: Tensor, size: tuple[int, int], geometry: Geometry
) -> bool:
    return _takes(grad, weight, geometry) and input_gradient_belongs(grad, weight, size, geometry)


def takes_weight_gradient(input: Tensor, grad: Tensor, weight: Tensor, geometry: Geometry) -> bool:
    return _takes(input, weight, geometry) and weight_gradient_belongs(
        input, grad, weight, geometry
    )


def _is_kind(height: int, width: int, stride: tuple[int, int]) -> bool:
    """Whether KINDS has it; one number after the other, since torch.compile with symbols for sizes
    would work on `in` for minutes.
    """
    for (rows, columns), (down, right) in KINDS:
        if height == rows and width == columns and stride[0] == down and stride[1] == right:
            return True
    return False


def _takes(operand: Tensor, weight: Tensor, geometry: Geometry) -> bool:
    return (
        operand.dtype in DTYPES
        and _is_kind(weight.shape[2], weight.shape[3], geometry.stride)
        and geometry.groups == 1
        and geometry.dilation == (1, 1)
        and weight.shape[0] % CHANNELS == 0
        and weight.shape[1] % CHANNELS == 0
        and max(geometry.padding) < weight.shape[2]
        and operand.numel() > 0
    )


# --- where they win: measured on one core of an AMD EPYC (AVX-512 with bfloat16) ---
#
# PyTorch's time over theirs, at equal layout, smallest to largest over 80 random calls each as the
# rule below takes them, of 16 to 256 channels on either side, maps of 2x2 to 28x28 and 1 to 64
# pictures; the mean in brackets. In channels_last and, below, in contiguous memory, where ours puts
# maps in channels_last and back:
#
#     kernel  dtype     forward              input gradient       weight gradient
#     3x3, 1  float32   1.23 to 2.58 (1.78)  1.01 to 2.39 (1.61)  0.87 to 3.36 (1.91)
#     3x3, 1  bfloat16  1.17 to 2.79 (1.80)  0.89 to 2.65 (1.68)  1.52 to 3.71 (2.24)
#     3x3, 2  float32   1.00 to 2.60 (1.41)  0.81 to 2.59 (1.57)  1.00 to 2.92 (1.74)
#     3x3, 2  bfloat16  0.99 to 2.42 (1.54)  1.12 to 3.31 (1.88)  1.21 to 3.39 (1.91)
#     4x4, 2  float32   1.09 to 2.76 (1.74)  1.12 to 3.44 (1.83)  1.22 to 3.23 (1.91)
#     4x4, 2  bfloat16  1.30 to 3.11 (1.91)  1.30 to 4.20 (1.93)  0.87 to 4.15 (2.10)
#     5x5, 2  float32   1.18 to 2.10 (1.59)  1.07 to 3.39 (1.71)  1.11 to 3.25 (1.83)
#     5x5, 2  bfloat16  1.13 to 2.81 (1.63)  1.22 to 3.90 (1.86)  1.31 to 3.52 (2.00)
#
#     3x3, 1  float32   1.14 to 2.54 (1.70)  1.02 to 3.74 (1.66)  1.13 to 2.82 (1.87)
#     3x3, 1  bfloat16  1.11 to 3.23 (1.81)  0.92 to 2.65 (1.68)  1.46 to 3.33 (2.16)
#     3x3, 2  float32   0.97 to 3.10 (1.49)  0.92 to 4.49 (1.96)  0.89 to 2.90 (1.46)
#     3x3, 2  bfloat16  0.86 to 2.74 (1.52)  1.26 to 3.06 (2.00)  1.08 to 2.91 (1.74)
#     4x4, 2  float32   1.02 to 2.93 (1.75)  1.29 to 3.29 (2.06)  1.08 to 2.46 (1.66)
#     4x4, 2  bfloat16  0.94 to 3.00 (1.77)  1.81 to 3.82 (2.38)  0.99 to 2.99 (1.95)
#     5x5, 2  float32   1.07 to 2.60 (1.58)  1.25 to 2.62 (1.79)  1.13 to 2.80 (1.59)
#     5x5, 2  bfloat16  1.00 to 2.88 (1.53)  1.27 to 3.35 (1.96)  1.19 to 2.74 (1.73)
#
# A tile that is not full costs as much: maps of 3x3 and 1x1 in tiles of two took up to three times
# PyTorch's time. Below 8 tiles the transform of a wide weight is the larger part; with 16 channels
# in bfloat16 that of large maps. Contiguous pictures of 2x2 pixels took up to 1.7 times its time.

LEAST_TILES = 8  # of two by two
FULL = 0.76  # of the tiles, at least
# Calls so small that PyTorch takes longer over them than their products do.
SMALL_PAIRS, SMALL_PRODUCTS = 8192, 1 << 22  # of channels, and of all pixels by the definition
LEAST_SMALL_TILES, FULL_SMALL = 2, 0.5
# In contiguous memory, which is put in order first: pixels of the convolution's input.
LEAST_PIXELS = 16
# Of a weight gradient whose phases have unequal taps: to one pixel of all maps. With more the sums
# of all points take as long to put together as to add up.
UNEVEN_PAIRS_OF_A_PIXEL = 128
# Of layers with few channels on a side: up to how many pixels of all maps, and numbers of the other
# side in those, transforms and orders of memory take less than the products that are saved. With
# stride 2 that holds for contiguous float32 alone, and there not from the map to the input.
FEW_CHANNELS, FEW_PIXELS, FEW_NUMBERS = 16, 2048, 1 << 18


def mixes(kernel: int, stride: int) -> bool:
    """Whether there are tiles of three beside those of two: with two taps in a phase."""
    return -(-kernel // stride) == 2


def products(size: int, kernel: int, stride: int, *, mixed: bool) -> int:
    """Along one side of a map: how often a channel is multiplied, in all phases together, as
    csrc/cpu/winograd_plan.h cuts the side into tiles of two (`mixed`: and of three).
    """
    two, three = kernel + stride, kernel + 2 * stride
    if not mixed or size == 1:
        return -(-size // 2) * two
    twos = -size % 3
    return (size - 2 * twos) // 3 * three + twos * two


def forward_wins(*arguments: Any) -> bool:
    """Whether `forward` or `masked_forward` should."""
    input, weight, geometry = arguments[0], arguments[1], arguments[-1]
    return _wins(input, weight, geometry, operand_is_map=geometry.transposed)


def input_gradient_wins(
    grad: Tensor, weight: Tensor, size: tuple[int, int], geometry: Geometry
) -> bool:
    return _wins(grad, weight, geometry, operand_is_map=not geometry.transposed)


def weight_gradient_wins(input: Tensor, grad: Tensor, weight: Tensor, geometry: Geometry) -> bool:
    return _wins(
        input, weight, geometry, operand_is_map=geometry.transposed, weight_gradient=True
    )  # fmt: skip


def _wins(
    operand: Tensor,
    weight: Tensor,
    geometry: Geometry,
    *,
    operand_is_map: bool,
    weight_gradient: bool = False,
) -> bool:
    height, width = size_of(operand) if operand_is_map else geometry.convolved_size(operand, weight)
    kernel, stride = weight.shape[2], geometry.stride[0]
    pixels, pairs = len(operand) * height * width, weight.shape[0] * weight.shape[1]
    if weight_gradient:
        mixed_pixels = MIXED_PIXELS_OF_WEIGHT_GRADIENT
    else:
        mixed_pixels = max(MIXED_PIXELS, 0 if operand_is_map else pairs // MIXED_SHARE)
    small = pairs <= SMALL_PAIRS and pixels * pairs * kernel**2 <= SMALL_PRODUCTS
    least_tiles, full = (LEAST_SMALL_TILES, FULL_SMALL) if small else (LEAST_TILES, FULL)
    return (
        operand.dtype in (torch.float32, torch.bfloat16)
        and len(operand) * -(-height // 2) * -(-width // 2) >= least_tiles
        and _tiles_are_full(height, width, kernel, stride, full, mixed=pixels >= mixed_pixels)
        and (is_channels_last(operand, weight) or height * width * stride * stride >= LEAST_PIXELS)
        and not (
            weight_gradient and kernel % stride != 0 and pairs > UNEVEN_PAIRS_OF_A_PIXEL * pixels
        )
        and _pays_with_few_channels(
            operand,
            weight,
            pixels,
            stride,
            back=operand_is_map and not weight_gradient,
            weight_gradient=weight_gradient,
        )
        and compiled.cpu_version() != "portable"
        and variables.read("FASTGEN_WINOGRAD") != "off"
    )


def _tiles_are_full(
    height: int, width: int, kernel: int, stride: int, full: float, *, mixed: bool
) -> bool:
    """Whether so large a part of what is multiplied belongs to outputs of the map."""
    mixed = mixed and mixes(kernel, stride)
    rows = products(height, kernel, stride, mixed=mixed)
    columns = products(width, kernel, stride, mixed=mixed)
    return height * width * (kernel + stride) ** 2 / 4 >= full * rows * columns


def _pays_with_few_channels(
    operand: Tensor,
    weight: Tensor,
    pixels: int,
    stride: int,
    *,
    back: bool,
    weight_gradient: bool,
) -> bool:
    """`back`: from the map to the convolution's input."""
    if min(weight.shape[:2]) > FEW_CHANNELS:
        return True
    large = pixels * max(weight.shape[:2]) >= FEW_NUMBERS
    if operand.dtype == torch.bfloat16:
        return stride == 2 or weight_gradient or not (large or pixels > FEW_PIXELS)
    return is_channels_last(operand, weight) or not large or (stride == 2 and back)
