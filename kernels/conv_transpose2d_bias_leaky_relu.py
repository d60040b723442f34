"""Transposed convolution with its epilogue, which is also the input gradient of a convolution.

    conv_transpose2d        act(conv_transpose2d(x, w) + b): leaky ReLU, tanh or the mask of a y
    conv2d_input_gradient   the same kernel without bias, linear

Output pixel y of a transposed convolution with stride s sees only the taps t for which y + padding
- dilation t is a multiple of s. So the pixels y = s q + phase of one phase are a dense convolution
with every (s / gcd(s, dilation))-th tap, and no inserted zero is ever multiplied. All s x s phases
run in one launch; a phase that no tap reaches (kernel 1, stride 2) is the epilogue of zero.
"""

from __future__ import annotations

from math import gcd

import triton
import triton.language as tl
from torch import Tensor

from . import tiling
from .implicit_gemm import accumulate, finish, tile_of
from .launching import launch
from .registration import operator
from .tiling import INTERPRETED, Tile, Tiles


@triton.jit
def first_tap(
    phase,
    KERNEL: tl.constexpr,
    STRIDE: tl.constexpr,
    PADDING: tl.constexpr,
    DILATION: tl.constexpr,
    APART: tl.constexpr,
):
    """The first tap that reaches the phase (KERNEL: none does) and how many follow, APART apart."""
    tap = phase * 0 + KERNEL
    for back in tl.static_range(1, KERNEL + 1):
        reaches = (phase + PADDING - (KERNEL - back) * DILATION) % STRIDE == 0
        tap = tl.where(reaches, KERNEL - back, tap)
    return tap, (KERNEL - tap + APART - 1) // APART


@triton.jit(do_not_specialize=["batch", "height", "width", "out_h", "out_w", "negative_slope"])
def conv_transpose2d_kernel(
    input,
    weight,
    bias,
    output,
    result,
    batch,
    height,
    width,
    out_h,
    out_w,
    channels,
    features,
    negative_slope,
    GROUPS: tl.constexpr,
    KERNEL_H: tl.constexpr,
    KERNEL_W: tl.constexpr,
    STRIDE_H: tl.constexpr,
    STRIDE_W: tl.constexpr,
    PADDING_H: tl.constexpr,
    PADDING_W: tl.constexpr,
    DILATION_H: tl.constexpr,
    DILATION_W: tl.constexpr,
    APART_H: tl.constexpr,
    APART_W: tl.constexpr,
    TANH: tl.constexpr,
    CHECK_CHANNELS: tl.constexpr,
    INDEX: tl.constexpr,
    PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """One tile of the output pixels of one phase.

    `channels` are those of the input, `features` those of the output, both of one group; the weight
    lies in memory as (channels of all groups, KERNEL_H, KERNEL_W, features).
    """
    phase_h = tl.program_id(1) // STRIDE_W
    phase_w = tl.program_id(1) % STRIDE_W
    group = tl.program_id(2)
    tap_h, taps_h = first_tap(phase_h, KERNEL_H, STRIDE_H, PADDING_H, DILATION_H, APART_H)
    tap_w, taps_w = first_tap(phase_w, KERNEL_W, STRIDE_W, PADDING_W, DILATION_W, APART_W)

    # The phases of one side differ in length by at most one pixel: all get the longest one's rows.
    lines = (out_h + STRIDE_H - 1) // STRIDE_H
    places = (out_w + STRIDE_W - 1) // STRIDE_W
    pixels = batch.to(INDEX) * lines * places
    row_tile, column_tile = tile_of(pixels, features, BLOCK_M, BLOCK_N, GROUP=8)
    row = row_tile.to(INDEX) * BLOCK_M + tl.arange(0, BLOCK_M)
    place = tl.minimum(row, pixels - 1)
    line = place // places
    out_x = (place - line * places) * STRIDE_W + phase_w
    picture = line // lines
    out_y = (line - picture * lines) * STRIDE_H + phase_h

    # Exact where a tap reaches the phase, and unused elsewhere. The next tap lies a step before.
    row_h = (out_y + PADDING_H - tap_h * DILATION_H) // STRIDE_H
    row_w = (out_x + PADDING_W - tap_w * DILATION_W) // STRIDE_W
    pixel = channels * GROUPS
    start = ((picture * height + row_h) * width + row_w) * pixel + group * channels

    column = column_tile * BLOCK_N + tl.arange(0, BLOCK_N)
    column_mask = column < features
    depth = tl.arange(0, BLOCK_K)
    taps = KERNEL_H * KERNEL_W * features
    first = (tap_h * KERNEL_W + tap_w) * features + group * channels * taps
    accumulator = accumulate(
        input + (start[:, None] + depth[None, :]),
        weight + first + (depth[:, None] * taps + column[None, :]),
        row_h,
        row_w,
        column_mask,
        height,
        width,
        channels,
        pixel,
        taps_h,
        taps_w,
        APART_H * KERNEL_W * features,
        APART_W * features,
        taps,
        -(APART_H * DILATION_H // STRIDE_H),
        -(APART_W * DILATION_W // STRIDE_W),
        True,
        True,
        CHECK_CHANNELS,
        INDEX,
        PRECISION,
        UPCAST,
        BLOCK_M,
        BLOCK_N,
        BLOCK_K,
    )
    real = (row < pixels) & (out_y < out_h) & (out_x < out_w)
    position = (picture * out_h + out_y) * out_w + out_x
    feature = group * features + column
    finish(
        accumulator,
        bias,
        output,
        result,
        position[:, None] * (features * GROUPS) + feature[None, :],
        real[:, None] & column_mask[None, :],
        tl.minimum(feature, features * GROUPS - 1),
        negative_slope,
        TANH,
    )


TILES = Tiles(
    half=(
        Tile(128, 256, 64, 8, 3),
        Tile(128, 128, 64, 8, 3),
        Tile(128, 64, 64, 4, 3),
        Tile(64, 64, 64, 4, 3),
        Tile(128, 32, 64, 4, 3),
        Tile(128, 16, 64, 4, 3),
    ),
    tf32=(
        Tile(128, 128, 32, 8, 3),
        Tile(128, 64, 32, 4, 3),
        Tile(64, 64, 32, 4, 3),
        Tile(128, 32, 32, 4, 3),
        Tile(128, 16, 32, 4, 3),
    ),
    float32=(
        Tile(128, 64, 32, 8, 3),
        Tile(64, 64, 32, 8, 3),
        Tile(128, 32, 32, 8, 3),
        Tile(128, 16, 32, 8, 3),
    ),
)


def _conv_transpose2d_fake(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    output: Tensor | None,
    negative_slope: float,
    tanh: bool,
    *geometry: int,
) -> Tensor:
    output_h, output_w, groups = geometry[6:9]
    return tiling.empty(input, input.shape[0], weight.shape[1] * groups, output_h, output_w)


@operator(
    "conv_transpose2d(Tensor input, Tensor weight, Tensor? bias, Tensor? output, "
    "float negative_slope, bool tanh, int stride_h, int stride_w, int padding_h, int padding_w, "
    "int dilation_h, int dilation_w, int output_h, int output_w, int groups, bool allow_tf32, "
    "int configuration=-1) -> Tensor",
    fake=_conv_transpose2d_fake,
)
def conv_transpose2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    output: Tensor | None,
    negative_slope: float,
    tanh: bool,
    stride_h: int,
    stride_w: int,
    padding_h: int,
    padding_w: int,
    dilation_h: int,
    dilation_w: int,
    output_h: int,
    output_w: int,
    groups: int,
    allow_tf32: bool,
    configuration: int = -1,
) -> Tensor:
    """act(conv_transpose2d(input, weight) + bias), cut or filled up to output_h x output_w pixels.

    input (N, C, H, W), weight (C, K / groups, R, S), output and the result (N, K, output_h,
    output_w), all in channels_last memory; bias (K,). float32, bfloat16 or float16, added up in
    float32. The activation is tanh where asked for, else leaky ReLU; with `output`, the answer of
    the layer that is differentiated, its slope is taken from there and the result is its tangent.
    Pixels that no tap reaches are act(bias).
    """
    tiling.channels_last(input, input=input, weight=weight, output=output)
    channels, columns, kernel_h, kernel_w = weight.shape
    features = columns * groups
    tiling.epilogue(input, features, bias)
    if tanh and output is not None:
        raise ValueError("tanh and output exclude each other: a given output means leaky ReLU")
    if input.shape[1] != channels or channels % groups:
        raise ValueError(
            f"input must have {channels} channels for a weight of shape {tuple(weight.shape)}, "
            f"and groups={groups} must divide them (got {tuple(input.shape)})"
        )
    batch, _, height, width = input.shape
    shape = batch, features, output_h, output_w
    tiling.same_shape("output", output, shape)
    result = tiling.empty(input, *shape)
    if result.numel() == 0:
        return result
    channels //= groups

    rows = batch * tiling.ceil_div(output_h, stride_h) * tiling.ceil_div(output_w, stride_w)
    phases = stride_h * stride_w
    tiles = TILES.of(input.dtype, allow_tf32)
    tile = tiling.pick(
        tiles, configuration, rows, columns, groups * phases, input.device, output is not None
    )
    block_k = tiling.depth(tile, channels)
    # The first tap may lie as far outside the input as the output and the kernel reach.
    lines = tiling.ceil_div(output_h + padding_h, stride_h) + dilation_h * kernel_h
    places = tiling.ceil_div(output_w + padding_w, stride_w) + dilation_w * kernel_w
    reach = (batch * height + lines) * width + places
    grid = (
        tiling.ceil_div(rows, tile.m) * tiling.ceil_div(columns, tile.n),
        phases,
        groups,
    )
    launch(
        conv_transpose2d_kernel,
        grid,
        input,
        weight,
        bias,
        output,
        result,
        batch,
        height,
        width,
        output_h,
        output_w,
        channels,
        columns,
        negative_slope,
        GROUPS=groups,
        KERNEL_H=kernel_h,
        KERNEL_W=kernel_w,
        STRIDE_H=stride_h,
        STRIDE_W=stride_w,
        PADDING_H=padding_h,
        PADDING_W=padding_w,
        DILATION_H=dilation_h,
        DILATION_W=dilation_w,
        APART_H=stride_h // gcd(stride_h, dilation_h),
        APART_W=stride_w // gcd(stride_w, dilation_w),
        TANH=tanh,
        CHECK_CHANNELS=channels % block_k != 0,
        INDEX=tiling.index_type(reach * channels * groups, result.numel() + tile.m * features),
        PRECISION=tiling.precision(input.dtype, allow_tf32),
        UPCAST=INTERPRETED,
        BLOCK_M=tile.m,
        BLOCK_N=tile.n,
        BLOCK_K=block_k,
        num_warps=tiling.warps(tile, channels),
        num_stages=tile.stages,
    )
    return result


def _conv2d_input_gradient_fake(
    grad: Tensor, weight: Tensor, height: int, width: int, *geometry: int
) -> Tensor:
    groups = geometry[6]
    return tiling.empty(grad, grad.shape[0], weight.shape[1] * groups, height, width)


@operator(
    "conv2d_input_gradient(Tensor grad, Tensor weight, int height, int width, "
    "int stride_h, int stride_w, int padding_h, int padding_w, int dilation_h, int dilation_w, "
    "int groups, bool allow_tf32, int configuration=-1) -> Tensor",
    fake=_conv2d_input_gradient_fake,
)
def conv2d_input_gradient(
    grad: Tensor,
    weight: Tensor,
    height: int,
    width: int,
    stride_h: int,
    stride_w: int,
    padding_h: int,
    padding_w: int,
    dilation_h: int,
    dilation_w: int,
    groups: int,
    allow_tf32: bool,
    configuration: int = -1,
) -> Tensor:
    """The gradient of conv2d(x, weight) with respect to x of `height` x `width` pixels.

    grad (N, K, P, Q), weight (K, C / groups, R, S), the result (N, C, height, width), all in
    channels_last memory. Pixels that no tap read are 0.
    """
    return conv_transpose2d(
        grad,
        weight,
        None,
        None,
        1.0,
        False,
        stride_h,
        stride_w,
        padding_h,
        padding_w,
        dilation_h,
        dilation_w,
        height,
        width,
        groups,
        allow_tf32,
        configuration,
    )
