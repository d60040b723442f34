"""What the convolution kernels share: the implicit matrix product, its epilogue, its tiles.

A convolution is a matrix product whose left operand is never stored. Row m is an output pixel,
column n an output channel, and the reduction runs over channels and taps:

    result[m, n] = sum over c, i, j of input[pixel(m) + tap(i, j), c] weight[n, tap(i, j), c]

In channels_last memory every (pixel, tap) is a run of channels, so a block of the left operand is
BLOCK_M runs of BLOCK_K numbers, fetched asynchronously like a block of any matrix. Taps run inside
channels: the runs of the next tap are, but for a border, the ones the cache has just seen. Which
tap and which channels come next is counted, not divided: the loop holds no integer division.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .formulas import leaky_relu, leaky_relu_mask, round_to_tf32


@triton.jit
def tile_of(rows, columns, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, GROUP: tl.constexpr):
    """This program's (row, column) tile, in bands of GROUP row tiles.

    Programs that run together then share both their rows and their columns in the L2 cache.
    """
    program = tl.program_id(0)
    row_tiles = tl.cdiv(rows, BLOCK_M).to(tl.int32)
    column_tiles = tl.cdiv(columns, BLOCK_N)
    band = program // (GROUP * column_tiles)
    height = tl.minimum(row_tiles - band * GROUP, GROUP)
    within = program % (GROUP * column_tiles)
    return band * GROUP + within % height, within // height


@triton.jit
def multiply(a, b, accumulator, PRECISION: tl.constexpr, UPCAST: tl.constexpr):
    """accumulator + a b, in float32.

    UPCAST: the interpreter multiplies neither in bfloat16 nor in TF32.
    """
    if UPCAST:
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    elif a.dtype == tl.float32 and PRECISION == "tf32":
        a = round_to_tf32(a)
        b = round_to_tf32(b)
    return tl.dot(a, b, accumulator, input_precision=PRECISION)


@triton.jit
def accumulate(
    input,
    weight,
    row_h,
    row_w,
    column_mask,
    height,
    width,
    channels,
    pixel,
    taps_h,
    taps_w,
    weight_step_h,
    weight_step_w,
    weight_step_c,
    STEP_H: tl.constexpr,
    STEP_W: tl.constexpr,
    CHECK_PIXELS: tl.constexpr,
    CHECK_COLUMNS: tl.constexpr,
    CHECK_CHANNELS: tl.constexpr,
    INDEX: tl.constexpr,
    PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """The (BLOCK_M, BLOCK_N) block of the product, in float32.

    `input` and `weight` are blocks of pointers, (BLOCK_M, BLOCK_K) and (BLOCK_K, BLOCK_N), to the
    first tap and channels; `row_h`, `row_w` say where each row's first tap lies in the picture.
    Neighbouring taps lie STEP pixels of `pixel` numbers apart; a step may be negative.
    CHECK_PIXELS is off where no tap can leave the picture, CHECK_CHANNELS where BLOCK_K divides the
    channels. UPCAST: the interpreter cannot multiply bfloat16.
    """
    accumulator = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    depth = tl.arange(0, BLOCK_K)
    i = tl.full((), 0, INDEX)
    j = tl.full((), 0, INDEX)
    c = tl.full((), 0, INDEX)
    for _ in range(taps_h * taps_w * tl.cdiv(channels, BLOCK_K)):
        tap_h = i * STEP_H
        tap_w = j * STEP_W
        left = input + ((tap_h * width + tap_w) * pixel + c)
        right = weight + (i * weight_step_h + j * weight_step_w + c * weight_step_c)

        if CHECK_CHANNELS:
            inside = c + depth < channels
        if CHECK_PIXELS:
            h = row_h + tap_h
            w = row_w + tap_w
            left_mask = ((h >= 0) & (h < height) & (w >= 0) & (w < width))[:, None]
            if CHECK_CHANNELS:
                left_mask = left_mask & inside[None, :]
            a = tl.load(left, mask=left_mask, other=0.0)
        elif CHECK_CHANNELS:
            a = tl.load(left, mask=inside[None, :], other=0.0)
        else:
            a = tl.load(left)
        if CHECK_COLUMNS and CHECK_CHANNELS:
            b = tl.load(right, mask=inside[:, None] & column_mask[None, :], other=0.0)
        elif CHECK_COLUMNS:
            b = tl.load(right, mask=column_mask[None, :], other=0.0)
        elif CHECK_CHANNELS:
            b = tl.load(right, mask=inside[:, None], other=0.0)
        else:
            b = tl.load(right)
        accumulator = multiply(a, b, accumulator, PRECISION, UPCAST)

        j += 1
        end_of_row = j == taps_w
        j = tl.where(end_of_row, 0, j)
        i = tl.where(end_of_row, i + 1, i)
        end_of_taps = i == taps_h
        i = tl.where(end_of_taps, 0, i)
        c = tl.where(end_of_taps, c + BLOCK_K, c)
    return accumulator


@triton.jit
def tanh(x):
    """Hyperbolic tangent, within 3 float32 roundings of the exact value.

    Below 0.625, where (1 - e) / (1 + e) would cancel, a polynomial fitted to
    (tanh(x) / x - 1) / x^2 at 400 Chebyshev points of x^2: within 1.5 roundings.
    """
    square = x * x
    series = (0.02100364 - 0.00610495 * square) * square - 0.0538525
    series = (series * square + 0.13332783) * square - 0.33333328
    size = tl.abs(x)
    e = tl.exp(-2.0 * size)
    large = (1.0 - e) / (1.0 + e)
    return tl.where(size < 0.625, x + x * square * series, tl.where(x < 0, -large, large))


@triton.jit
def finish(
    accumulator,
    bias,
    output,
    result,
    offsets,
    mask,
    feature,
    negative_slope,
    TANH: tl.constexpr,
):
    """Bias and activation in float32, rounded once, stored at `result + offsets`.

    With `output` given, leaky ReLU's slope is taken from its sign there instead: the tangent of the
    layer that answered `output`.
    """
    if bias is not None:
        shift = tl.load(bias + feature).to(tl.float32)
        accumulator += shift[None, :]
    if TANH:
        accumulator = tanh(accumulator)
    elif output is not None:
        answered = tl.load(output + offsets, mask=mask, other=0.0).to(tl.float32)
        accumulator = leaky_relu_mask(accumulator, answered, negative_slope)
    else:
        accumulator = leaky_relu(accumulator, negative_slope)
    tl.store(result + offsets, accumulator.to(result.dtype.element_ty), mask=mask)
