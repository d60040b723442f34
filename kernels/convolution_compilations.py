"""What the convolution kernels are compiled to ahead of time: every tile and every switch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import triton.language as tl

from . import conv2d_bias_leaky_relu as conv2d
from . import conv_transpose2d_bias_leaky_relu as transposed
from . import tiling, weight_gradient
from .compilation import Compilation
from .tiling import LARGEST_MASKED, Tile, Tiles

# (name, Triton's name, the tiles' field, the precision of tl.dot)
FAMILIES = (
    ("bfloat16", "bf16", "half", "tf32"),
    ("float16", "fp16", "half", "tf32"),
    ("tf32", "fp32", "tf32", "tf32"),
    ("float32", "fp32", "float32", "tf32x3"),
)
# Two layers stand for all: a DCGAN layer, whose phases have four taps each, and a 3x3 one.
LAYERS = {
    "k4s2": dict(KERNEL=4, STRIDE=2, PADDING=1, DILATION=1),
    "k3s1": dict(KERNEL=3, STRIDE=1, PADDING=1, DILATION=1),
}
POINTERS = ("input", "weight", "grad", "bias", "output", "result")


def constants(layer: str, precision: str, tile: Tile, **more: Any) -> dict[str, Any]:
    """The compile-time arguments that all convolution kernels share."""
    sides = {f"{name}_{side}": value for name, value in LAYERS[layer].items() for side in "HW"}
    shared = dict(GROUPS=1, INDEX=tl.int32, PRECISION=precision, UPCAST=False)
    blocks = dict(BLOCK_M=tile.m, BLOCK_N=tile.n, BLOCK_K=tile.k)
    return {**sides, **shared, **blocks, **more}


def compilation(
    name: str, kernel: Any, pointer: str, tile: Tile, constexprs: dict[str, Any], **options: Any
) -> Compilation:
    """One configuration of `kernel` with pointers of the type `pointer`.

    Options: `result`, another type of pointer for the result; `odd`, arguments that 16 does not
    divide; the rest goes to Compilation.
    """
    result, odd = options.pop("result", pointer), options.pop("odd", ())
    types = dict.fromkeys(POINTERS, f"*{pointer}")
    types |= {"result": f"*{result}", "negative_slope": "fp32"}
    signature: dict[str, str] = {}
    attrs: dict[tuple[int, ...], list[list[Any]]] = {}
    for position, argument in enumerate(kernel.arg_names):
        if argument in constexprs:
            signature[argument] = "constexpr"
            continue
        signature[argument] = types.get(argument, "i32")
        divisible = argument in POINTERS or argument in ("channels", "features")
        if divisible and argument not in odd:
            attrs[position,] = [["tt.divisibility", 16]]
    return Compilation(
        name,
        kernel,
        signature,
        constexprs,
        attrs,
        tile.warps,
        tile.stages,
        tensor_cores=True,
        **options,
    )


def odd(tile: Tile) -> Tile:
    """The tile as it is launched for channels that 16 does not divide."""
    return tile._replace(k=tiling.depth(tile, 17), warps=tiling.warps(tile, 17))


def tiles_of(tiles: Tiles) -> list[tuple[str, str, str, Tile]]:
    """(family and tile as a name, pointer type, precision, tile) for everything that is compiled.

    float16 takes the same code as bfloat16: its first tile stands for it.
    """
    return [
        (f"{family}-{tile.m}x{tile.n}x{tile.k}", pointer, precision, tile)
        for family, pointer, field, precision in FAMILIES
        for tile in getattr(tiles, field)[: 1 if family == "float16" else None]
    ]


def _conv2d() -> Iterator[Compilation]:
    kernel = conv2d.conv2d_kernel
    for name, pointer, precision, tile in tiles_of(conv2d.TILES):
        common = dict(FEW_CHANNELS=0, CHECK_CHANNELS=False)
        forward = constants("k4s2", precision, tile, **common, output=None)
        yield compilation(f"conv2d-{name}", kernel, pointer, tile, forward)
        if tile.m * tile.n <= LARGEST_MASKED:
            tangent = constants("k3s1", precision, tile, **common, bias=None)
            yield compilation(f"conv2d-mask-{name}", kernel, pointer, tile, tangent)
    # Channel counts that 16 does not divide, and those below the 16 of a tensor core.
    for family, pointer, field, precision in FAMILIES[::2]:
        for tile in getattr(conv2d.TILES, field):
            common = dict(FEW_CHANNELS=0, CHECK_CHANNELS=True)
            constexprs = constants("k4s2", precision, odd(tile), **common, output=None)
            name = f"conv2d-odd-{family}-{tile.m}x{tile.n}"
            yield compilation(name, kernel, pointer, odd(tile), constexprs, odd=("channels",))
        tile = next(tile for tile in getattr(conv2d.TILES, field) if tile.n <= 64)
        common = dict(FEW_CHANNELS=3, CHECK_CHANNELS=True)
        constexprs = constants("k4s2", precision, tile, **common, output=None)
        constexprs["BLOCK_K"] = 32
        name = f"conv2d-3-channels-{family}-{tile.m}x{tile.n}"
        yield compilation(name, kernel, pointer, tile, constexprs, odd=("channels",))


def _transposed() -> Iterator[Compilation]:
    kernel = transposed.conv_transpose2d_kernel
    common = dict(APART_H=2, APART_W=2, CHECK_CHANNELS=False)
    for name, pointer, precision, tile in tiles_of(transposed.TILES):
        forward = constants("k4s2", precision, tile, **common, TANH=False, output=None)
        yield compilation(f"conv_transpose2d-{name}", kernel, pointer, tile, forward)
    for family, pointer, field, precision in FAMILIES[::2]:
        tile = next(t for t in getattr(transposed.TILES, field) if t.m * t.n <= LARGEST_MASKED)
        tangent = constants("k4s2", precision, tile, **common, TANH=False, bias=None)
        name = f"conv_transpose2d-mask-{family}-{tile.m}x{tile.n}"
        yield compilation(name, kernel, pointer, tile, tangent)
        narrow = getattr(transposed.TILES, field)[-1]
        bounded = constants("k4s2", precision, narrow, **common, TANH=True, output=None)
        for tile in getattr(transposed.TILES, field):
            switches = {**common, "CHECK_CHANNELS": True}
            uneven = constants("k4s2", precision, odd(tile), **switches, TANH=False, output=None)
            name = f"conv_transpose2d-odd-{family}-{tile.m}x{tile.n}"
            yield compilation(name, kernel, pointer, odd(tile), uneven, odd=("channels",))
        name = f"conv_transpose2d-tanh-{family}-{narrow.m}x{narrow.n}"
        yield compilation(name, kernel, pointer, narrow, bounded, odd=("features",))


def _weight_gradient() -> Iterator[Compilation]:
    kernel = weight_gradient.weight_gradient_kernel
    for name, pointer, precision, tile in tiles_of(weight_gradient.TILES):
        constexprs = constants("k3s1", precision, tile, FLAT=False)
        yield compilation(
            f"conv2d_weight_gradient-{name}", kernel, pointer, tile, constexprs, result="fp32"
        )
    for family, pointer, field, precision in FAMILIES[::2]:
        tile = getattr(weight_gradient.TILES, field)[-1]
        constexprs = constants("k4s2", precision, tile, FLAT=True)
        constexprs["BLOCK_K"] = min(32, tile.k)
        name = f"conv2d_weight_gradient-flat-{family}-{tile.m}x{tile.n}"
        odd = ("channels",)
        yield compilation(name, kernel, pointer, tile, constexprs, result=pointer, odd=odd)
    yield Compilation(
        "conv2d_weight_gradient-combine",
        weight_gradient.combine_kernel,
        {"partials": "*fp32", "result": "*bf16", "size": "i32", "splits": "i32"}
        | {"BLOCK": "constexpr"},
        {"BLOCK": 1024},
        {(0,): [["tt.divisibility", 16]], (1,): [["tt.divisibility", 16]]},
        4,
        1,
    )


COMPILATIONS = (*_conv2d(), *_transposed(), *_weight_gradient())
