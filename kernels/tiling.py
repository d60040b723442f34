"""How the convolution kernels are launched: tiles, the rule that picks one, checks of operands."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

INTERPRETED = bool(triton.knobs.runtime.interpret)
LARGEST_INT32 = 2**31 - 1
# A tensor core multiplies 16 channels at once, and Triton's tl.dot takes no fewer.
SMALLEST_DEPTH = 16
# Numbers in a tile: with 128 x 256 the masked epilogue spills registers (sm_90: 120 bytes).
LARGEST_MASKED = 128 * 128


class Tile(NamedTuple):
    """One way to cut a matrix product: a program's block, its depth, its warps and its stages."""

    m: int
    n: int
    k: int
    warps: int
    stages: int


class Tiles(NamedTuple):
    """A kernel's tiles, largest first, for each kind of product. `configuration` indexes one.

    half:    bfloat16 and float16
    tf32:    float32 rounded to TF32, where torch's own setting allows it
    float32: float32 by three TF32 products (tf32x3). Splitting a number into two TF32 parts keeps
             22 bits beside the sign, and the product left out is below 2^-22 of the result, so a
             sum of some products is as exact as in float32. Plain float32 ("ieee") would run on
             the ordinary cores, at a fraction of the rate, and spills registers with large tiles.
    """

    half: tuple[Tile, ...]
    tf32: tuple[Tile, ...]
    float32: tuple[Tile, ...]

    def of(self, dtype: torch.dtype, allow_tf32: bool) -> tuple[Tile, ...]:
        """The tiles that `configuration` indexes for this dtype and setting."""
        if dtype != torch.float32:
            return self.half
        return self.tf32 if allow_tf32 else self.float32


def precision(dtype: torch.dtype, allow_tf32: bool) -> str:
    """The `input_precision` of tl.dot; it only matters for float32."""
    return "tf32x3" if dtype == torch.float32 and not allow_tf32 else "tf32"


@functools.cache
def processors(device: torch.device) -> int:
    """Multiprocessors of a CUDA device; on a CPU, where Triton interprets, a small number."""
    if device.type != "cuda":
        return 4
    return int(torch.cuda.get_device_properties(device).multi_processor_count)


def ceil_div(number: int, by: int) -> int:
    return -(-number // by)


def power_of_two(number: int) -> int:
    """The smallest power of two that is not below `number`."""
    return 1 << max(number - 1, 0).bit_length()


def numbered(tiles: tuple[Tile, ...], configuration: int) -> Tile:
    if not 0 <= configuration < len(tiles):
        raise ValueError(
            f"configuration must lie in [0, {len(tiles) - 1}], or be -1 for the rule's choice "
            f"(got {configuration})"
        )
    return tiles[configuration]


def pick(
    tiles: tuple[Tile, ...],
    configuration: int,
    rows: int,
    columns: int,
    copies: int,
    device: torch.device,
    masked: bool,
) -> Tile:
    """Tile number `configuration`; for -1 the rule's choice.

    The rule: among the tiles that are not wider than the columns need (rounded up to a power of
    two), the largest that gives every multiprocessor a program; where none does, the one with the
    most programs. `copies` are the groups and phases, each a product of its own. A tile too large
    for the `masked` epilogue, whose block of outputs needs registers of its own, gives way to the
    next one.
    """
    if masked and tiles[0].m * tiles[0].n > LARGEST_MASKED:
        tiles = (tiles[1], *tiles[1:])
    if configuration != -1:
        return numbered(tiles, configuration)
    needed = max(power_of_two(columns), tiles[-1].n)
    enough, best, most = processors(device), tiles[-1], 0
    for tile in tiles:
        if tile.n > needed:
            continue
        programs = ceil_div(rows, tile.m) * ceil_div(columns, tile.n) * copies
        if programs >= enough:
            return tile
        if programs > most:
            best, most = tile, programs
    return best


def depth(tile: Tile, reduction: int) -> int:
    """The tile's depth, or less where the whole reduction is shorter.

    Channels that 16 does not divide are fetched one by one: a shallow block keeps their addresses
    in registers (128x64 with depth 32 spills 92 bytes a thread on sm_80).
    """
    if reduction % SMALLEST_DEPTH:
        return SMALLEST_DEPTH
    return min(tile.k, max(SMALLEST_DEPTH, power_of_two(reduction)))


def warps(tile: Tile, reduction: int) -> int:
    """The tile's warps; eight where channels come one by one, to share their addresses."""
    return tile.warps if reduction % SMALLEST_DEPTH == 0 else 8


def index_type(*extents: int) -> Any:
    """The integers that offsets are counted in: 64 bits where 32 do not reach."""
    return tl.int64 if max(extents) > LARGEST_INT32 else tl.int32


def empty(like: Tensor, *shape: int) -> Tensor:
    return torch.empty(
        shape, dtype=like.dtype, device=like.device, memory_format=torch.channels_last
    )


def channels_last(like: Tensor, **tensors: Tensor | None) -> None:
    """Refuse four-dimensional tensors that the kernels cannot address, naming the argument."""
    for name, tensor in tensors.items():
        if tensor is None:
            continue
        if tensor.dim() != 4 or not tensor.is_contiguous(memory_format=torch.channels_last):
            raise ValueError(
                f"{name} must have four dimensions and lie in memory as channels_last "
                f"(got shape {tuple(tensor.shape)}, strides {tensor.stride()}): call "
                f".contiguous(memory_format=torch.channels_last)"
            )
        _same_kind(name, tensor, like)


def epilogue(like: Tensor, features: int, bias: Tensor | None) -> None:
    """Refuse a bias that is not one dense number per output channel."""
    if bias is None:
        return
    if bias.shape != (features,) or not bias.is_contiguous():
        raise ValueError(
            f"bias must be a dense vector of {features} numbers, one per output channel "
            f"(got shape {tuple(bias.shape)}, strides {bias.stride()})"
        )
    _same_kind("bias", bias, like)


def same_shape(name: str, tensor: Tensor | None, shape: tuple[int, ...]) -> None:
    """Refuse a tensor of another shape than the result's."""
    if tensor is not None and tuple(tensor.shape) != shape:
        raise ValueError(f"{name} must have shape {shape} (got {tuple(tensor.shape)})")


def _same_kind(name: str, tensor: Tensor, like: Tensor) -> None:
    if tensor.dtype != like.dtype or tensor.device != like.device:
        raise TypeError(
            f"{name} must be {like.dtype} on {like.device}, as the first argument is "
            f"(got {tensor.dtype} on {tensor.device})"
        )
    if tensor.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        raise TypeError(f"{name} must be float32, bfloat16 or float16 (got {tensor.dtype})")


def conv2d_shape(
    input: Tensor,
    weight: Tensor,
    stride_h: int,
    stride_w: int,
    padding_h: int,
    padding_w: int,
    dilation_h: int,
    dilation_w: int,
    groups: int,
) -> tuple[int, int, int, int]:
    """Shape of a convolution's output; refuses operands that do not fit each other."""
    if input.shape[1] != weight.shape[1] * groups or weight.shape[0] % groups:
        raise ValueError(
            f"input must have {weight.shape[1] * groups} channels for a weight of shape "
            f"{tuple(weight.shape)} and groups={groups}, which must divide {weight.shape[0]} "
            f"(got {input.shape[1]} in {tuple(input.shape)})"
        )
    out_h = length(input.shape[2], weight.shape[2], stride_h, padding_h, dilation_h)
    out_w = length(input.shape[3], weight.shape[3], stride_w, padding_w, dilation_w)
    if out_h < 1 or out_w < 1:
        raise ValueError(
            f"input of {tuple(input.shape[2:])} with padding {(padding_h, padding_w)} is smaller "
            f"than the kernel {tuple(weight.shape[2:])} with dilation {(dilation_h, dilation_w)}"
        )
    return input.shape[0], weight.shape[0], out_h, out_w


def length(size: int, kernel: int, stride: int, padding: int, dilation: int) -> int:
    """Height or width of a convolution's output."""
    return (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
