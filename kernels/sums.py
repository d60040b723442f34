"""Adding partial sums in a fixed order, and what the elementwise kernels share at launch."""

from __future__ import annotations

import functools

import torch
import triton
import triton.language as tl
from torch import Tensor

from .compilation import compilation
from .launching import launch

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
LARGEST_INT32 = 2**31 - 1
INDICES = (tl.int32, tl.int64)  # what offsets are counted in: 64 bits where 32 do not reach
BLOCK = 512
WARPS = 4
# Rows by channels, by how many rows there are: one or few rounds of many loads. A row of eight
# numbers is 32 bytes, the least that memory gives.
FEW_ROWS, MANY_ROWS = (256, 32), (1024, 8)
ROW_WARPS = 16


@triton.jit(do_not_specialize=["count", "factor"])
def add_partials_kernel(partial, result, count, channels, inner, factor, BLOCK: tl.constexpr):
    """result[c] = factor * sum over o, i of partial[o, c, i]: one program per channel."""
    channel = tl.program_id(0).to(tl.int64)
    total = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, count, BLOCK):
        k = start + tl.arange(0, BLOCK)
        offset = ((k // inner).to(tl.int64) * channels + channel) * inner + k % inner
        total += tl.load(partial + offset, mask=k < count, other=0.0)
    value = tl.sum(total, 0) * factor
    tl.store(result + channel, value.to(result.dtype.element_ty))


@triton.jit(do_not_specialize=["rows", "factor"])
def add_rows_kernel(
    partial, result, rows, channels, factor, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr
):
    """result[c] = factor * sum over r of partial[r, c]: one program for neighbouring channels."""
    channel = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    inside = channel < channels
    total = tl.zeros((BLOCK_R, BLOCK_C), tl.float32)
    for start in range(0, rows, BLOCK_R):
        row = start + tl.arange(0, BLOCK_R)
        offset = row.to(tl.int64)[:, None] * channels + channel[None, :]
        mask = (row < rows)[:, None] & inside[None, :]
        total += tl.load(partial + offset, mask=mask, other=0.0)
    value = tl.sum(total, 0) * factor
    tl.store(result + channel, value.to(result.dtype.element_ty), mask=inside)


def add_partials(
    partial: Tensor, outer: int, channels: int, inner: int, dtype: torch.dtype, factor: float = 1.0
) -> Tensor:
    """The sum of a float32 (outer, channels, inner) array per channel, times `factor`."""
    result = partial.new_empty(channels, dtype=dtype)
    if inner == 1 and channels > 1:
        block_r, block_c = FEW_ROWS if outer <= FEW_ROWS[0] else MANY_ROWS
        launch(
            add_rows_kernel, (ceil_div(channels, block_c),),
            partial, result, outer, channels, factor,
            BLOCK_R=block_r, BLOCK_C=block_c, num_warps=ROW_WARPS, num_stages=1,
        )  # fmt: skip
        return result
    launch(
        add_partials_kernel, (channels,),
        partial, result, outer * inner, channels, inner, factor,
        BLOCK=BLOCK, num_warps=WARPS, num_stages=1,
    )  # fmt: skip
    return result


@functools.cache
def processors(device: torch.device) -> int:
    """Multiprocessors of a CUDA device; on a CPU, where Triton interprets, a small number."""
    if device.type != "cuda":
        return 1
    return int(torch.cuda.get_device_properties(device).multi_processor_count)


def ceil_div(number: int, by: int) -> int:
    return -(-number // by)


COMPILATIONS = tuple(
    compilation(
        f"sums {pointer[1:]} {tile[0]}x{tile[1]}{' odd' if odd else ''}",
        add_rows_kernel,
        {"partial": "*fp32", "result": pointer, "factor": "fp32"},
        {"BLOCK_R": tile[0], "BLOCK_C": tile[1]},
        odd=("rows", "channels") if odd else ("rows",),
        num_warps=ROW_WARPS,
    )
    for pointer in ("*fp32", "*bf16", "*fp16")
    for tile in (FEW_ROWS, MANY_ROWS)
    for odd in (False, True)
) + tuple(
    compilation(
        f"sums {pointer[1:]}{' dense' if dense else ''}",
        add_partials_kernel,
        {"partial": "*fp32", "result": pointer, "factor": "fp32"},
        {"BLOCK": BLOCK} | ({"inner": 1} if dense else {}),
        odd=("count", "channels", "inner"),
        num_warps=WARPS,
    )
    for pointer in ("*fp32", "*bf16", "*fp16")
    for dense in (False, True)
)
