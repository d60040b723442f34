"""The weight gradient of a convolution as an implicit matrix product with a split reduction.

    gradient[f, (i, j, c)] = sum over output pixels m of grad[m, f] input[pixel(m) + tap(i, j), c]

The product is small (features x taps channels) and its reduction long (every output pixel of the
batch), so the pixels are shared out among as many programs as fill the device. Each writes its own
float32 partial sum, and a second kernel adds the partials in order: no atomics, the same bits on
every run.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import tiling
from .implicit_gemm import multiply, tile_of
from .launching import launch
from .registration import operator
from .tiling import INTERPRETED, Tile, Tiles


@triton.jit(do_not_specialize=["batch", "height", "width", "share"])
def weight_gradient_kernel(
    input,
    grad,
    result,
    batch,
    height,
    width,
    channels,
    features,
    share,
    GROUPS: tl.constexpr,
    KERNEL_H: tl.constexpr,
    KERNEL_W: tl.constexpr,
    STRIDE_H: tl.constexpr,
    STRIDE_W: tl.constexpr,
    PADDING_H: tl.constexpr,
    PADDING_W: tl.constexpr,
    DILATION_H: tl.constexpr,
    DILATION_W: tl.constexpr,
    FLAT: tl.constexpr,
    INDEX: tl.constexpr,
    PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """One tile of one partial sum: `share` output pixels of one group.

    FLAT: a tile's columns run over (tap, channel) pairs, as they lie in the weight; otherwise each
    tile belongs to one tap, which makes its columns one run of channels.
    """
    out_h = (height + 2 * PADDING_H - DILATION_H * (KERNEL_H - 1) - 1) // STRIDE_H + 1
    out_w = (width + 2 * PADDING_W - DILATION_W * (KERNEL_W - 1) - 1) // STRIDE_W + 1
    pixels = batch.to(INDEX) * out_h * out_w
    split = tl.program_id(1)
    group = tl.program_id(2)

    pairs = KERNEL_H * KERNEL_W * channels
    if FLAT:
        row_tile, column_tile = tile_of(features, pairs, BLOCK_M, BLOCK_N, GROUP=8)
        pair = column_tile * BLOCK_N + tl.arange(0, BLOCK_N)
        column_mask = pair < pairs
        tap = pair // channels
        channel = pair - tap * channels
    else:
        chunks = tl.cdiv(channels, BLOCK_N)
        row_tile, column_tile = tile_of(
            features, KERNEL_H * KERNEL_W * chunks * BLOCK_N, BLOCK_M, BLOCK_N, GROUP=8
        )
        tap = column_tile // chunks
        channel = (column_tile - tap * chunks) * BLOCK_N + tl.arange(0, BLOCK_N)
        column_mask = channel < channels
        pair = tap * channels + channel
    tap_h = (tap // KERNEL_W) * DILATION_H - PADDING_H
    tap_w = (tap % KERNEL_W) * DILATION_W - PADDING_W

    row = row_tile * BLOCK_M + tl.arange(0, BLOCK_M)
    row_mask = row < features
    pixel = channels * GROUPS
    left_pixel = features * GROUPS

    # Where the pixels of a block lie is divided once and counted on from there.
    begin = split.to(INDEX) * share
    end = tl.minimum(begin + share, pixels)
    place = begin + tl.arange(0, BLOCK_K)
    line = place // out_w
    x = (place - line * out_w).to(tl.int32)
    picture = line // out_h
    y = (line - picture * out_h).to(tl.int32)
    on_line = BLOCK_K // out_w
    on_x = BLOCK_K - on_line * out_w
    on_picture = on_line // out_h
    on_y = on_line - on_picture * out_h

    left = grad + (place[None, :] * left_pixel + (group * features + row)[:, None])
    shift = (tap_h.to(INDEX) * width + tap_w) * pixel + group * channels + channel
    right = input + shift[None, :]
    accumulator = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for _ in range(tl.cdiv(end - begin, BLOCK_K)):
        inside = place < end
        if FLAT:
            h = (y * STRIDE_H)[:, None] + tap_h[None, :]
            w = (x * STRIDE_W)[:, None] + tap_w[None, :]
            right_mask = (h >= 0) & (h < height) & (w >= 0) & (w < width) & inside[:, None]
        else:
            h = y * STRIDE_H + tap_h
            w = x * STRIDE_W + tap_w
            right_mask = ((h >= 0) & (h < height) & (w >= 0) & (w < width) & inside)[:, None]
        at = ((picture * height + y * STRIDE_H) * width + x * STRIDE_W) * pixel
        a = tl.load(left, mask=row_mask[:, None] & inside[None, :], other=0.0)
        b = tl.load(right + at[:, None], mask=right_mask & column_mask[None, :], other=0.0)
        accumulator = multiply(a, b, accumulator, PRECISION, UPCAST)

        left += BLOCK_K * left_pixel
        place += BLOCK_K
        x += on_x
        y += on_y + (x >= out_w).to(tl.int32)
        x = tl.where(x >= out_w, x - out_w, x)
        picture += on_picture + (y >= out_h).to(tl.int32)
        y = tl.where(y >= out_h, y - out_h, y)

    target = (group * features + row)[:, None] * pairs + pair[None, :]
    tl.store(
        result + split.to(tl.int64) * left_pixel * pairs + target,
        accumulator.to(result.dtype.element_ty),
        mask=row_mask[:, None] & column_mask[None, :],
    )


@triton.jit
def combine_kernel(partials, result, size, splits, BLOCK: tl.constexpr):
    """result = the sum of the `splits` partials of `size` numbers each, in order."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = at < size
    total = tl.zeros((BLOCK,), tl.float32)
    for _ in range(splits):
        total += tl.load(partials + at, mask=mask, other=0.0)
        partials += size
    tl.store(result + at, total.to(result.dtype.element_ty), mask=mask)


TILES = Tiles(
    half=(
        Tile(128, 128, 64, 8, 3),
        Tile(128, 64, 64, 4, 3),
        Tile(64, 64, 64, 4, 3),
        Tile(16, 64, 64, 4, 3),
        Tile(64, 32, 64, 4, 3),
    ),
    tf32=(
        Tile(128, 128, 32, 8, 3),
        Tile(128, 64, 32, 4, 3),
        Tile(64, 64, 32, 8, 3),
        Tile(16, 64, 32, 4, 3),
    ),
    float32=(
        Tile(128, 64, 32, 8, 3),
        Tile(64, 64, 32, 4, 3),
        Tile(16, 64, 32, 4, 3),
    ),
)
# Programs per multiprocessor that the split aims at, and the fewest steps worth a program.
PROGRAMS, STEPS = 2, 4


def _fake(input: Tensor, grad: Tensor, kernel_h: int, kernel_w: int, *geometry: int) -> Tensor:
    groups = geometry[6]
    return tiling.empty(input, grad.shape[1], input.shape[1] // groups, kernel_h, kernel_w)


@operator(
    "conv2d_weight_gradient(Tensor input, Tensor grad, int kernel_h, int kernel_w, "
    "int stride_h, int stride_w, int padding_h, int padding_w, int dilation_h, int dilation_w, "
    "int groups, bool allow_tf32, int configuration=-1) -> Tensor",
    fake=_fake,
)
def conv2d_weight_gradient(
    input: Tensor,
    grad: Tensor,
    kernel_h: int,
    kernel_w: int,
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
    """The gradient of conv2d(input, w) with respect to w, of shape (K, C / groups, R, S).

    input (N, C, H, W), grad (N, K, P, Q) and the result in channels_last memory; float32, bfloat16
    or float16, added up in float32 and rounded once. Deterministic: the same device gives the same
    bits. For a transposed convolution its input and gradient change places.
    """
    tiling.channels_last(input, input=input, grad=grad)
    batch, channels, height, width = input.shape
    features = grad.shape[1]
    if channels % groups or features % groups:
        raise ValueError(f"groups must divide {channels} and {features} channels (got {groups})")
    out_h = tiling.length(height, kernel_h, stride_h, padding_h, dilation_h)
    out_w = tiling.length(width, kernel_w, stride_w, padding_w, dilation_w)
    tiling.same_shape("grad", grad, (batch, features, out_h, out_w))
    channels //= groups
    result = tiling.empty(input, features, channels, kernel_h, kernel_w)
    pixels = batch * out_h * out_w
    if pixels == 0:
        return result.zero_()

    rows, pairs = features // groups, kernel_h * kernel_w * channels
    tile = pick(TILES.of(input.dtype, allow_tf32), configuration, rows, pairs)
    flat = channels < tile.n
    # Channels at any address come one by one: a shallower block keeps their pointers in registers.
    block_k = min(tile.k, 32) if channels % 16 else tile.k
    columns = (
        tiling.ceil_div(pairs, tile.n)
        if flat
        else kernel_h * kernel_w * tiling.ceil_div(channels, tile.n)
    )
    tiles = tiling.ceil_div(rows, tile.m) * columns
    share, splits = split(pixels, block_k, tiles * groups, tiling.processors(input.device))
    target = (
        result
        if splits == 1
        else torch.empty(splits * result.numel(), dtype=torch.float32, device=input.device)
    )
    reach = (dilation_h * kernel_h + padding_h + stride_h) * width
    reach += dilation_w * kernel_w + padding_w + stride_w
    launch(
        weight_gradient_kernel,
        (tiles, splits, groups),
        input,
        grad,
        target,
        batch,
        height,
        width,
        channels,
        rows,
        share,
        GROUPS=groups,
        KERNEL_H=kernel_h,
        KERNEL_W=kernel_w,
        STRIDE_H=stride_h,
        STRIDE_W=stride_w,
        PADDING_H=padding_h,
        PADDING_W=padding_w,
        DILATION_H=dilation_h,
        DILATION_W=dilation_w,
        FLAT=flat,
        INDEX=tiling.index_type(
            input.numel() + (reach + block_k) * channels * groups,
            (pixels + share + block_k) * features,
        ),
        PRECISION=tiling.precision(input.dtype, allow_tf32),
        UPCAST=INTERPRETED,
        BLOCK_M=tile.m,
        BLOCK_N=tile.n,
        BLOCK_K=block_k,
        num_warps=tile.warps,
        num_stages=tile.stages,
    )
    if splits > 1:
        size = result.numel()
        launch(
            combine_kernel,
            (tiling.ceil_div(size, 1024),),
            target,
            result,
            size,
            splits,
            BLOCK=1024,
            num_warps=4,
        )
    return result


def pick(tiles: tuple[Tile, ...], configuration: int, rows: int, columns: int) -> Tile:
    """Tile number `configuration`; for -1 the largest that pads the product least.

    The split gives every multiprocessor its program, so only padding counts: up to a quarter more
    than the least is accepted for a larger tile, which reads its operands less often.
    """
    if configuration != -1:
        return tiling.numbered(tiles, configuration)
    padded = [
        tiling.ceil_div(rows, tile.m) * tile.m * tiling.ceil_div(columns, tile.n) * tile.n
        for tile in tiles
    ]
    least = min(padded)
    return next(tile for tile, area in zip(tiles, padded, strict=True) if 4 * area <= 5 * least)


def split(pixels: int, block: int, programs: int, processors: int) -> tuple[int, int]:
    """Pixels per share, whole blocks of them, and the number of shares."""
    blocks = tiling.ceil_div(pixels, block)
    wanted = min(tiling.ceil_div(PROGRAMS * processors, programs), tiling.ceil_div(blocks, STEPS))
    share = tiling.ceil_div(blocks, wanted) * block
    return share, tiling.ceil_div(pixels, share)
