"""Bias + leaky ReLU in one pass, and its derivative with the gradient of the bias in one pass.

    bias_leaky_relu     y = leaky_relu(x + b)
    leaky_relu_mask     m = (g + s) * (1 if y > 0 else slope)
    leaky_relu_mask_sum m and its sum per channel

A dense tensor is an (outer, channels, inner) array, cut into tiles of a matrix in one of two ways:

* a row per (outer, channel), where inner is long: each row has one bias;
* a row per outer element, or per several of them (`repeats`, so that 16 divides the row and every
  access is 16 bytes wide): each column has one bias, and no element computes its channel.

Sums are deterministic: each program writes its own partial sum, a second kernel adds them in order.
"""

from __future__ import annotations

import functools
import itertools
import math
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .compilation import compilation
from .formulas import leaky_relu, leaky_relu_mask
from .launching import launch
from .registration import operator
from .sums import DTYPES, INDICES, LARGEST_INT32, add_partials, ceil_div, processors

WARPS = 8
# Tiles hold 4096 numbers: two to four 16-byte accesses to each tensor per thread.
ROW_TILES = ((1, 4096), (4, 1024), (16, 256))
COLUMN_TILES = ((16, 256), (64, 64))
SHORTEST_ROW = 256  # inner from which each (outer, channel) is a row of its own


@triton.jit
def one_tile(
    input,
    shift,
    column_shift,
    output,
    result,
    partial,
    rows,
    columns,
    channels,
    numel,
    down,
    column,
    inside,
    negative_slope,
    PER_ROW: tl.constexpr,
    EXACT: tl.constexpr,
    INDEX: tl.constexpr,
    BLOCK_R: tl.constexpr,
):
    """Tile number `down` of some columns: the activation written, and its values where inside."""
    row = down.to(INDEX) * BLOCK_R + tl.arange(0, BLOCK_R)
    offset = row[:, None] * columns + column[None, :]
    mask = (row < rows)[:, None] & inside[None, :]
    if not EXACT:
        width = tl.minimum(numel - row.to(INDEX) * columns, columns)
        mask = column[None, :] < width[:, None]

    x = tl.load(input + offset, mask=mask, other=0.0).to(tl.float32)
    if shift is not None:
        if PER_ROW:
            row_shift = tl.load(shift + row % channels, mask=row < rows, other=0.0)
            x += row_shift.to(tl.float32)[:, None]
        else:
            x += column_shift[None, :]
    if output is not None:
        y = tl.load(output + offset, mask=mask, other=0.0).to(tl.float32)
        x = leaky_relu_mask(x, y, negative_slope)
    else:
        x = leaky_relu(x, negative_slope)
    tl.store(result + offset, x.to(result.dtype.element_ty), mask=mask)

    if partial is not None:
        x = tl.where(mask, x, 0.0)
        if PER_ROW:
            tiles = tl.cdiv(columns, column.shape[0])
            across = tl.program_id(0) % tiles
            tl.store(partial + row * tiles + across, tl.sum(x, 1), mask=row < rows)
    return x


@triton.jit(do_not_specialize=["rows", "numel", "share", "negative_slope"])
def bias_leaky_relu_kernel(
    input,
    shift,
    output,
    result,
    partial,
    rows,
    columns,
    channels,
    inner,
    numel,
    share,
    negative_slope,
    PER_ROW: tl.constexpr,
    REPEATED: tl.constexpr,
    EXACT: tl.constexpr,
    INDEX: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """`share` tiles below each other: activation of input + shift, by its sign or by `output`'s.

    With `partial`, also the float32 sums of the tiles: per row, or per column of this program.
    EXACT is off where the last row ends early.
    """
    column_tiles = tl.cdiv(columns, BLOCK_C)
    program = tl.program_id(0)
    down = program // column_tiles
    across = program % column_tiles
    column = across * BLOCK_C + tl.arange(0, BLOCK_C)
    inside = column < columns

    column_shift = 0.0
    if shift is not None and not PER_ROW:
        channel = column // inner
        if REPEATED:
            channel = channel % channels
        column_shift = tl.load(shift + channel, mask=inside, other=0.0).to(tl.float32)
    if PER_ROW or partial is None:
        one_tile(
            input, shift, column_shift, output, result, partial, rows, columns, channels, numel,
            down, column, inside, negative_slope, PER_ROW, EXACT, INDEX, BLOCK_R,
        )  # fmt: skip
    else:
        total = tl.zeros((BLOCK_R, BLOCK_C), tl.float32)
        for step in range(share):
            total += one_tile(
                input, shift, column_shift, output, result, partial, rows, columns, channels, numel,
                down * share + step, column, inside, negative_slope, PER_ROW, EXACT, INDEX, BLOCK_R,
            )  # fmt: skip
        tl.store(partial + down.to(INDEX) * columns + column, tl.sum(total, 0), mask=inside)


class Cut(NamedTuple):
    """How a tensor is cut: the matrix, what a row or column means, the tile."""

    per_row: bool
    repeats: int
    rows: int
    columns: int
    tile: tuple[int, int]

    @property
    def tiles(self) -> tuple[int, int]:
        return ceil_div(self.rows, self.tile[0]), ceil_div(self.columns, self.tile[1])


@functools.lru_cache(maxsize=1024)
def cut(outer: int, channels: int, inner: int) -> Cut:
    """The cut of an (outer, channels, inner) view that leaves the fewest numbers of tiles idle."""
    if inner >= SHORTEST_ROW:
        return _least_idle(True, 1, outer * channels, inner, ROW_TILES)
    width = channels * inner
    repeats = 1 if width % 16 == 0 else 16 // math.gcd(width, 16)
    # A row as wide as a tile, unless the last one would end early.
    while width * repeats < COLUMN_TILES[0][1] and (
        outer % (2 * repeats) == 0 or width * repeats < COLUMN_TILES[1][1]
    ):
        repeats *= 2
    return _least_idle(False, repeats, ceil_div(outer, repeats), width * repeats, COLUMN_TILES)


def _least_idle(
    per_row: bool, repeats: int, rows: int, columns: int, tiles: tuple[tuple[int, int], ...]
) -> Cut:
    def covered(tile: tuple[int, int]) -> int:
        return ceil_div(rows, tile[0]) * tile[0] * ceil_div(columns, tile[1]) * tile[1]

    return Cut(per_row, repeats, rows, columns, min(tiles, key=covered))


def view(tensor: Tensor, shift: Tensor | None, *, summed: bool = False) -> tuple[int, int, int]:
    """(outer, channels, inner) of a dense tensor; without a bias or a sum, (numel, 1, 1)."""
    if tensor.is_contiguous():
        if shift is None and not summed:
            return tensor.numel(), 1, 1
        return tensor.shape[0], tensor.shape[1], math.prod(tensor.shape[2:])
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    memory_format = formats.get(tensor.dim())
    if memory_format is None or not tensor.is_contiguous(memory_format=memory_format):
        raise ValueError(
            f"input must be dense, contiguous or channels_last (got shape {tuple(tensor.shape)}, "
            f"strides {tensor.stride()}): call .contiguous()"
        )
    if shift is None and not summed:
        return tensor.numel(), 1, 1
    return tensor.numel() // max(tensor.shape[1], 1), tensor.shape[1], 1


def _check(input: Tensor, shift: Tensor | None, output: Tensor | None) -> None:
    if input.dtype not in DTYPES:
        raise TypeError(f"input must be float32, bfloat16 or float16 (got {input.dtype})")
    for name, tensor in (("bias", shift), ("output", output)):
        if tensor is not None and (tensor.dtype, tensor.device) != (input.dtype, input.device):
            raise TypeError(
                f"{name} must be {input.dtype} on {input.device}, as the first argument is "
                f"(got {tensor.dtype} on {tensor.device})"
            )
    if shift is not None and (
        input.dim() < 2 or shift.shape != input.shape[1:2] or not shift.is_contiguous()
    ):
        raise ValueError(
            f"bias must be a dense vector of one number per channel (got shape "
            f"{tuple(shift.shape)} for an input of shape {tuple(input.shape)})"
        )
    if output is not None and (output.shape != input.shape or not _same_order(input, output)):
        raise ValueError(
            f"output must have the shape and memory order of grad, {tuple(input.shape)} with "
            f"strides {input.stride()} (got {tuple(output.shape)} with {output.stride()})"
        )


def _same_order(left: Tensor, right: Tensor) -> bool:
    return left.stride() == right.stride() or all(
        extent == 1 or a == b
        for extent, a, b in zip(left.shape, left.stride(), right.stride(), strict=True)
    )


def _warps(summed: bool, exact: bool) -> int:
    # Sums over rows that end early address one number at a time: with 8 warps they spill.
    return 2 * WARPS if summed and not exact else WARPS


def _run(
    input: Tensor,
    shift: Tensor | None,
    output: Tensor | None,
    result: Tensor,
    negative_slope: float,
    *,
    summed: bool = False,
) -> Tensor | None:
    """Launch; the sums per channel where they are wanted."""
    _check(input, shift, output)
    outer, channels, inner = view(input, shift, summed=summed)
    if input.numel() == 0:
        return input.new_zeros(channels) if summed else None
    how = cut(outer, channels, inner)
    down, across = how.tiles

    exact = how.rows * how.columns == input.numel()
    share, partial = 1, None
    if summed and how.per_row:
        partial = input.new_empty(how.rows * across, dtype=torch.float32)
    elif summed:
        # Enough programs to fill the device, few enough to leave few partial sums.
        share = ceil_div(down, max(1, ceil_div(8 * processors(input.device), across)))
        down = ceil_div(down, share)
        partial = input.new_empty(down * how.columns, dtype=torch.float32)

    # A masked-out tile still has its offsets computed.
    reach = (down * share + 1) * how.tile[0] * how.columns + how.tile[1]
    launch(
        bias_leaky_relu_kernel,
        (down * across,),
        input,
        shift,
        output,
        result,
        partial,
        how.rows,
        how.columns,
        channels,
        inner,
        input.numel(),
        share,
        negative_slope,
        PER_ROW=how.per_row,
        REPEATED=shift is not None and how.repeats > 1,
        EXACT=exact,
        INDEX=INDICES[reach > LARGEST_INT32],
        BLOCK_R=how.tile[0],
        BLOCK_C=how.tile[1],
        num_warps=_warps(summed, exact),
        num_stages=1,
    )
    if partial is None:
        return None
    if how.per_row:
        return add_partials(partial, outer, channels, across, input.dtype)
    return add_partials(partial, down * how.repeats, channels, inner, input.dtype)


def _like(input: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(input)


def _nothing(*_: Any) -> None:
    return None


@operator("bias_leaky_relu(Tensor input, Tensor? bias, float negative_slope) -> Tensor", fake=_like)
def bias_leaky_relu(input: Tensor, bias: Tensor | None, negative_slope: float) -> Tensor:
    """leaky_relu(input + bias), one bias per channel (dimension 1), in the layout of `input`."""
    result = torch.empty_like(input)
    _run(input, bias, None, result, negative_slope)
    return result


@operator(
    "bias_leaky_relu_(Tensor(a!) input, Tensor? bias, float negative_slope) -> ()", fake=_nothing
)
def bias_leaky_relu_(input: Tensor, bias: Tensor | None, negative_slope: float) -> None:
    """The same in place."""
    _run(input, bias, None, input, negative_slope)


@operator(
    "leaky_relu_mask(Tensor grad, Tensor? shift, Tensor output, float negative_slope) -> Tensor",
    fake=_like,
)
def leaky_relu_mask_of(
    grad: Tensor, shift: Tensor | None, output: Tensor, negative_slope: float
) -> Tensor:
    """(grad + shift) * (1 if output > 0 else negative_slope), one shift per channel."""
    result = torch.empty_like(grad)
    _run(grad, shift, output, result, negative_slope)
    return result


@operator(
    "leaky_relu_mask_(Tensor(a!) grad, Tensor? shift, Tensor output, float negative_slope) -> ()",
    fake=_nothing,
)
def leaky_relu_mask_(
    grad: Tensor, shift: Tensor | None, output: Tensor, negative_slope: float
) -> None:
    """The same in place."""
    _run(grad, shift, output, grad, negative_slope)


def _fake_sum(grad: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return torch.empty_like(grad), grad.new_empty(grad.shape[1])


@operator(
    "leaky_relu_mask_sum(Tensor grad, Tensor? shift, Tensor output, float negative_slope)"
    " -> (Tensor, Tensor)",
    fake=_fake_sum,
)
def leaky_relu_mask_sum(
    grad: Tensor, shift: Tensor | None, output: Tensor, negative_slope: float
) -> tuple[Tensor, Tensor]:
    """`leaky_relu_mask` and its sum per channel, accumulated in float32; deterministic."""
    result = torch.empty_like(grad)
    total = _run(grad, shift, output, result, negative_slope, summed=True)
    assert total is not None
    return result, total


def _compilations() -> Any:
    kernel = bias_leaky_relu_kernel
    uses = {
        "forward": ("output", "partial"),
        "plain forward": ("shift", "output", "partial"),
        "mask": ("partial",),
        "plain mask": ("shift", "partial"),
        "mask sum": (),
        "plain mask sum": ("shift",),
    }
    cuts = [(False, tile) for tile in COLUMN_TILES] + [(True, tile) for tile in ROW_TILES]
    for dtype, pointer in (("float32", "*fp32"), ("bfloat16", "*bf16"), ("float16", "*fp16")):
        types = dict.fromkeys(("input", "shift", "output", "result"), pointer)
        types |= {"partial": "*fp32", "negative_slope": "fp32"}
        for use, absent in uses.items():
            for per_row, tile in cuts:
                first = (per_row, tile) == cuts[0]
                # Without a bias or a sum there are no channels to be a row of; float16 takes the
                # same code as bfloat16, so one tile stands for it.
                flat = {"shift", "partial"} <= set(absent)
                if (flat and per_row) or (dtype == "float16" and not first):
                    continue
                for wide in (False, True) if first else (False,):
                    constexprs = dict.fromkeys(absent) | dict(
                        PER_ROW=per_row, REPEATED=False, EXACT=True, INDEX=INDICES[wide],
                        BLOCK_R=tile[0], BLOCK_C=tile[1],
                    )  # fmt: skip
                    shape = f"{'rows' if per_row else 'columns'} {tile[0]}x{tile[1]}"
                    yield compilation(
                        f"bias_leaky_relu {use} {dtype} {shape}{' int64' if wide else ''}",
                        kernel,
                        types,
                        constexprs if per_row else constexprs | {"inner": 1},
                        odd=("rows", "channels", "numel", "share"),
                        num_warps=WARPS,
                        memory_bound=True,
                    )
        if dtype == "float16":
            continue
        # Pictures whose planes are shorter than a row, channels that repeat within one, a last row
        # that ends early.
        for use, absent in uses.items():
            for tile, exact in itertools.product(COLUMN_TILES, (True, False)):
                yield compilation(
                    f"bias_leaky_relu {use} {dtype} {tile[0]}x{tile[1]}"
                    f" {'repeated' if exact else 'odd'}",
                    kernel,
                    types,
                    dict.fromkeys(absent) | dict(
                        PER_ROW=False, REPEATED="shift" not in absent, EXACT=exact, INDEX=tl.int32,
                        BLOCK_R=tile[0], BLOCK_C=tile[1],
                    ),
                    odd=("rows", "channels", "inner", "numel", "share"),
                    num_warps=_warps("partial" not in absent, exact),
                    memory_bound=exact,
                )  # fmt: skip


COMPILATIONS = tuple(_compilations())
