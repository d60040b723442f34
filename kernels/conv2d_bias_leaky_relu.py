"""Convolution with bias and leaky ReLU as one implicit matrix product, and its weight gradient.

    conv2d                   leaky_relu(conv2d(x, w) + b), or (conv2d(x, w) + b) masked by a given y
    conv2d_weight_gradient   the gradient with respect to w (see `weight_gradient`)

The input gradient is a transposed convolution and lives in `conv_transpose2d_bias_leaky_relu`.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from . import tiling
from .implicit_gemm import accumulate, finish, multiply, tile_of
from .launching import launch
from .registration import operator
from .tiling import INTERPRETED, Tile, Tiles


@triton.jit(do_not_specialize=["batch", "height", "width", "negative_slope"])
def conv2d_kernel(
    input,
    weight,
    bias,
    output,
    result,
    batch,
    height,
    width,
    channels,
    features,
    negative_slope,
    FEW_CHANNELS: tl.constexpr,
    GROUPS: tl.constexpr,
    KERNEL_H: tl.constexpr,
    KERNEL_W: tl.constexpr,
    STRIDE_H: tl.constexpr,
    STRIDE_W: tl.constexpr,
    PADDING_H: tl.constexpr,
    PADDING_W: tl.constexpr,
    DILATION_H: tl.constexpr,
    DILATION_W: tl.constexpr,
    CHECK_CHANNELS: tl.constexpr,
    INDEX: tl.constexpr,
    PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """One tile of output pixels and features; `channels` and `features` are those of one group."""
    CHECK_PIXELS: tl.constexpr = PADDING_H > 0 or PADDING_W > 0
    out_h = (height + 2 * PADDING_H - DILATION_H * (KERNEL_H - 1) - 1) // STRIDE_H + 1
    out_w = (width + 2 * PADDING_W - DILATION_W * (KERNEL_W - 1) - 1) // STRIDE_W + 1
    pixels = batch.to(INDEX) * out_h * out_w
    row_tile, column_tile = tile_of(pixels, features, BLOCK_M, BLOCK_N, GROUP=8)
    group = tl.program_id(1)

    # Rows past the end compute the last pixel again, so that no load needs a mask for them.
    row = row_tile.to(INDEX) * BLOCK_M + tl.arange(0, BLOCK_M)
    place = tl.minimum(row, pixels - 1)
    line = place // out_w
    row_w = (place - line * out_w) * STRIDE_W - PADDING_W
    picture = line // out_h
    row_h = (line - picture * out_h) * STRIDE_H - PADDING_H
    pixel = channels * GROUPS
    start = ((picture * height + row_h) * width + row_w) * pixel + group * channels

    column = column_tile * BLOCK_N + tl.arange(0, BLOCK_N)
    column_mask = column < features
    feature = group * features + column
    # Columns past the end compute the last feature again, for the same reason. Only loads use this:
    # consecutive numbers are stored in 16-byte pieces, and the minimum of them is not consecutive.
    known = tl.minimum(feature, group * features + features - 1)
    depth = tl.arange(0, BLOCK_K)

    if FEW_CHANNELS > 0:
        accumulator = accumulate_few_channels(
            input,
            weight + known[None, :] * (KERNEL_H * KERNEL_W * FEW_CHANNELS),
            start,
            row_h,
            row_w,
            height,
            width,
            FEW_CHANNELS,
            GROUPS,
            KERNEL_H,
            KERNEL_W,
            DILATION_H,
            DILATION_W,
            INDEX,
            PRECISION,
            UPCAST,
            BLOCK_M,
            BLOCK_N,
            BLOCK_K,
        )
    else:
        accumulator = accumulate(
            input + (start[:, None] + depth[None, :]),
            weight + (known[None, :] * (KERNEL_H * KERNEL_W * channels) + depth[:, None]),
            row_h,
            row_w,
            column_mask,
            height,
            width,
            channels,
            pixel,
            KERNEL_H,
            KERNEL_W,
            KERNEL_W * channels,
            channels,
            1,
            DILATION_H,
            DILATION_W,
            CHECK_PIXELS,
            False,
            CHECK_CHANNELS,
            INDEX,
            PRECISION,
            UPCAST,
            BLOCK_M,
            BLOCK_N,
            BLOCK_K,
        )
    finish(
        accumulator,
        bias,
        output,
        result,
        row[:, None] * (features * GROUPS) + feature[None, :],
        (row < pixels)[:, None] & column_mask[None, :],
        known,
        negative_slope,
        TANH=False,
    )


@triton.jit
def accumulate_few_channels(
    input,
    weight,
    start,
    row_h,
    row_w,
    height,
    width,
    CHANNELS: tl.constexpr,
    GROUPS: tl.constexpr,
    KERNEL_H: tl.constexpr,
    KERNEL_W: tl.constexpr,
    DILATION_H: tl.constexpr,
    DILATION_W: tl.constexpr,
    INDEX: tl.constexpr,
    PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """The block where channels are fewer than the 16 that a tensor core multiplies at once.

    The reduction runs over (tap, channel) pairs flattened, as they lie in a channels_last weight:
    a 4x4 kernel over 3 channels takes 48 steps of depth instead of 16 x 16.
    """
    accumulator = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for begin in range(0, KERNEL_H * KERNEL_W * CHANNELS, BLOCK_K):
        pair = begin + tl.arange(0, BLOCK_K)
        tap = pair // CHANNELS
        tap_h = (tap // KERNEL_W) * DILATION_H
        tap_w = (tap % KERNEL_W) * DILATION_W
        inside = pair < KERNEL_H * KERNEL_W * CHANNELS
        shift = (tap_h.to(INDEX) * width + tap_w) * (CHANNELS * GROUPS) + pair % CHANNELS

        h = row_h[:, None] + tap_h[None, :]
        w = row_w[:, None] + tap_w[None, :]
        left_mask = (h >= 0) & (h < height) & (w >= 0) & (w < width) & inside[None, :]
        a = tl.load(input + (start[:, None] + shift[None, :]), mask=left_mask, other=0.0)
        b = tl.load(weight + pair[:, None], mask=inside[:, None], other=0.0)
        accumulator = multiply(a, b, accumulator, PRECISION, UPCAST)
    return accumulator


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


def _conv2d_fake(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    output: Tensor | None,
    negative_slope: float,
    *geometry: int,
) -> Tensor:
    return tiling.empty(input, *tiling.conv2d_shape(input, weight, *geometry[:7]))


@operator(
    "conv2d(Tensor input, Tensor weight, Tensor? bias, Tensor? output, float negative_slope, "
    "int stride_h, int stride_w, int padding_h, int padding_w, int dilation_h, int dilation_w, "
    "int groups, bool allow_tf32, int configuration=-1) -> Tensor",
    fake=_conv2d_fake,
)
def conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    output: Tensor | None,
    negative_slope: float,
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
    """leaky_relu(conv2d(input, weight) + bias), or (conv2d + bias) (output > 0 ? 1 : slope).

    input (N, C, H, W), weight (K, C / groups, R, S), output and the result (N, K, P, Q), all in
    channels_last memory; bias (K,). float32, bfloat16 or float16, added up in float32. With
    `output`, the answer of the layer that is differentiated, the result is its tangent.
    """
    tiling.channels_last(input, input=input, weight=weight, output=output)
    tiling.epilogue(input, weight.shape[0], bias)
    batch, _, height, width = input.shape
    features, channels, kernel_h, kernel_w = weight.shape
    shape = tiling.conv2d_shape(
        input, weight, stride_h, stride_w, padding_h, padding_w, dilation_h, dilation_w, groups
    )
    tiling.same_shape("output", output, shape)
    result = tiling.empty(input, *shape)
    if result.numel() == 0:
        return result

    rows, columns = batch * shape[2] * shape[3], features // groups
    tiles = TILES.of(input.dtype, allow_tf32)
    tile = tiling.pick(
        tiles, configuration, rows, columns, groups, input.device, output is not None
    )
    few = channels < tiling.SMALLEST_DEPTH
    block_k = tiling.depth(tile, channels)
    if few:
        pairs = kernel_h * kernel_w * channels
        block_k = min(32, max(tiling.SMALLEST_DEPTH, tiling.power_of_two(pairs)))
    reach = (dilation_h * kernel_h + padding_h) * width + dilation_w * kernel_w + padding_w
    grid = (tiling.ceil_div(rows, tile.m) * tiling.ceil_div(columns, tile.n), groups)
    launch(
        conv2d_kernel,
        grid,
        input,
        weight,
        bias,
        output,
        result,
        batch,
        height,
        width,
        channels,
        columns,
        negative_slope,
        FEW_CHANNELS=channels if few else 0,
        GROUPS=groups,
        KERNEL_H=kernel_h,
        KERNEL_W=kernel_w,
        STRIDE_H=stride_h,
        STRIDE_W=stride_w,
        PADDING_H=padding_h,
        PADDING_W=padding_w,
        DILATION_H=dilation_h,
        DILATION_W=dilation_w,
        CHECK_CHANNELS=channels % block_k != 0,
        INDEX=tiling.index_type(
            input.numel() + reach * channels * groups, result.numel() + tile.m * features
        ),
        PRECISION=tiling.precision(input.dtype, allow_tf32),
        UPCAST=INTERPRETED,
        BLOCK_M=tile.m,
        BLOCK_N=tile.n,
        BLOCK_K=block_k,
        num_warps=tile.warps if few else tiling.warps(tile, channels),
        num_stages=tile.stages,
    )
    return result
