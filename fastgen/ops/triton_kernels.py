"""The Triton kernels as candidates of the router; imported without Triton, which is loaded when a
kernel first runs.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.compiler import is_compiling

from .convolution import Activation
from .fused_kernels import DTYPES, FusedKernels, offer_fused
from .geometry import Geometry, cropped, is_channels_last
from .gradients import is_unwatched
from .layouts import in_channels_last, is_channels_last_like, ordered_like
from .routing import CONVOLUTIONS, allow_tf32, never, offer

TRITON = ["triton"]


_direct: Any = None


def operators() -> Any:
    """`torch.ops.fastgen_triton`, with every operator registered, or the same functions without
    the dispatcher where nothing stands between a call and its kernel.
    """
    global _direct
    if not is_compiling() and _direct is not None and is_unwatched():
        return _direct
    from fastgen.kernels import (  # noqa: F401
        bias_leaky_relu,
        conv2d_bias_leaky_relu,
        conv_transpose2d_bias_leaky_relu,
        registration,
        reparameterize,
        weight_gradient,
    )

    if not is_compiling():
        _direct = registration.DIRECT
    return torch.ops.fastgen_triton


# --- convolutions: tensors in channels_last, one candidate for each tile ---


def _convolution(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    output: Tensor | None,
    activation: Activation,
    geometry: Geometry,
    tile: int,
) -> Tensor:
    result: Tensor
    if not geometry.transposed:
        result = operators().conv2d(
            input,
            weight,
            bias,
            output,
            activation,
            *geometry.numbers(),
            geometry.groups,
            allow_tf32(),
            tile,
        )
        return result
    tanh = activation == "tanh"
    result = operators().conv_transpose2d(
        input,
        weight,
        bias,
        output,
        1.0 if tanh else activation,
        tanh,
        *geometry.numbers(),
        *geometry.transposed_size(input, weight),
        geometry.groups,
        allow_tf32(),
        tile,
    )
    return result


def _forward(
    tile: int,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    activation: Activation,
    geometry: Geometry,
) -> Tensor:
    return _convolution(input, weight, bias, None, activation, geometry, tile)


def _masked_forward(
    tile: int,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    output: Tensor,
    negative_slope: float,
    geometry: Geometry,
) -> Tensor:
    return _convolution(input, weight, bias, output, negative_slope, geometry, tile)


def _input_gradient(
    tile: int, grad: Tensor, weight: Tensor, size: tuple[int, int], geometry: Geometry
) -> Tensor:
    rest = *geometry.numbers(), geometry.groups, allow_tf32(), tile
    if geometry.transposed:
        return cropped(operators().conv2d(grad, weight, None, None, 1.0, *rest), size)
    result: Tensor = operators().conv2d_input_gradient(grad, weight, *size, *rest)
    return result


def _weight_gradient(
    tile: int, input: Tensor, grad: Tensor, weight: Tensor, geometry: Geometry
) -> Tensor:
    # A transposed convolution's weight is that of the convolution from its output to its input.
    left, right = (grad, input) if geometry.transposed else (input, grad)
    result: Tensor = operators().conv2d_weight_gradient(
        left,
        right,
        *weight.shape[2:],
        *geometry.numbers(),
        geometry.groups,
        allow_tf32(),
        tile,
    )
    return result


def _tiles(pass_: str, transposed: bool, dtype: torch.dtype) -> int:
    """How many tiles the kernel of a pass has for this dtype."""
    from fastgen.kernels import (
        conv2d_bias_leaky_relu,
        conv_transpose2d_bias_leaky_relu,
        weight_gradient,
    )

    if pass_ == "weight_gradient":
        tiles = weight_gradient.TILES
    elif transposed == (pass_ == "input_gradient"):
        tiles = conv2d_bias_leaky_relu.TILES
    else:
        tiles = conv_transpose2d_bias_leaky_relu.TILES
    return len(tiles.of(dtype, allow_tf32()))


def _tensors(arguments: tuple[Any, ...]) -> list[Tensor]:
    return [a for a in arguments if isinstance(a, Tensor) and a.dim() == 4]


def _fits(pass_: str, tile: int, *arguments: Any) -> bool:
    operands = _tensors(arguments)
    if operands[0].dtype not in DTYPES or not all(map(is_channels_last_like, operands)):
        return False
    return tile < 0 or tile < _tiles(pass_, arguments[-1].transposed, operands[0].dtype)


def _fits_converted(*arguments: Any) -> bool:
    operands = _tensors(arguments)
    return operands[0].dtype in DTYPES and not all(map(is_channels_last_like, operands))


def _converted(pass_: str, run: Callable[..., Tensor]) -> Callable[..., Tensor]:
    through = in_channels_last(run)

    def converted(*arguments: Any) -> Tensor:
        first, second = _tensors(arguments)[:2]
        result = through(*arguments)
        if pass_ == "weight_gradient":
            return ordered_like(result, arguments[2])
        # Where one operand is channels_last already, so is PyTorch's result.
        if is_channels_last(first, second):
            return result.contiguous(memory_format=torch.channels_last)
        return result

    return converted


MOST_TILES = 8
_PASSES: dict[str, Callable[..., Tensor]] = {
    "forward": _forward,
    "masked_forward": _masked_forward,
    "input_gradient": _input_gradient,
    "weight_gradient": _weight_gradient,
}


for _pass, _function in _PASSES.items():
    _ruled = partial(_function, -1)
    offer(
        "implicit GEMM (Triton)", TRITON, CONVOLUTIONS, [_pass], _ruled,
        fits=partial(_fits, _pass, -1), expected=never,
    )  # fmt: skip
    offer(
        "implicit GEMM through channels_last (Triton)", TRITON, CONVOLUTIONS, [_pass],
        _converted(_pass, _ruled), fits=_fits_converted, expected=never,
    )  # fmt: skip
    for _tile in range(MOST_TILES):
        offer(
            f"implicit GEMM, tile {_tile} (Triton)", TRITON, CONVOLUTIONS, [_pass],
            partial(_function, _tile), fits=partial(_fits, _pass, _tile), expected=never,
        )  # fmt: skip

offer_fused(FusedKernels(operators), "Triton", TRITON, also_plain=())
