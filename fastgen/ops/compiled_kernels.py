"""The compiled CUDA kernels as candidates of the router.

The written rule, in this order: the image-edge kernels for layers with a picture on one side; one
matrix product where a convolution is one; PyTorch's convolution (cuDNN) and one pass over its
output for all others. The Hopper kernels are taken only where they were measured to be faster.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from . import compiled, image_edge, matrix_product
from .compiled import operators
from .convolution import Activation
from .fused_kernels import FusedKernels, computes, offer_fused
from .geometry import Geometry, cropped
from .layouts import is_channels_last_like
from .routing import CONVOLUTIONS, never, offer
from .turned_edge import TurnedEdge

CONV, TRANSPOSED = CONVOLUTIONS

FUSED = FusedKernels(operators, any_order=True)


# --- Hopper: bfloat16 and float16 in channels_last, groups 1 ---


@functools.cache
def _is_hopper(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.get_device_capability(device) == (9, 0)


TILES = 3  # csrc/ops/conv2d_bias_leaky_relu_sm90.cpp names them; a test holds the number


def _hopper_fits(input: Tensor, weight: Tensor, geometry: Geometry) -> bool:
    if torch.compiler.is_compiling() or not compiled.has_cutlass():
        return False
    aligned = all(t.storage_offset() * t.element_size() % 16 == 0 for t in (input, weight))
    return (
        input.dtype in (torch.bfloat16, torch.float16)
        and geometry.groups == 1
        and aligned
        and input.numel() > 0
        and is_channels_last_like(input)
        and is_channels_last_like(weight)
        and _is_hopper(input.device)
        and bool(
            operators().hopper_conv2d_fits(
                *input.shape, weight.shape[0], *weight.shape[2:], *geometry.numbers()
            )
        )
    )


def _hopper(
    tile: int,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    activation: Activation,
    geometry: Geometry,
) -> Tensor:
    bias = None if bias is None else bias.contiguous()
    output: Tensor = operators().hopper_conv2d(
        input, weight, bias, activation, *geometry.numbers(), tile
    )
    return output


def _hopper_masked(
    tile: int,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    output: Tensor,
    negative_slope: float,
    geometry: Geometry,
) -> Tensor:
    result = _hopper(tile, input, weight, bias, 1.0, geometry)
    return FUSED.mask_(result, None, output, negative_slope)


def _hopper_input_gradient(
    tile: int, grad: Tensor, weight: Tensor, size: tuple[int, int], geometry: Geometry
) -> Tensor:
    """Of a transposed convolution: the convolution of the gradient."""
    return cropped(_hopper(tile, grad, weight, None, 1.0, geometry), size)


def _fits_forward(*arguments: Any) -> bool:
    return arguments[3] != "tanh" and _hopper_fits(arguments[0], arguments[1], arguments[-1])


def _fits_linear(*arguments: Any) -> bool:
    return _hopper_fits(arguments[0], arguments[1], arguments[-1])


# --- image edges: both layouts (weight gradients: channels_last), every dtype of the operators,
# groups 1 ---


def _takes(check: Callable[..., bool]) -> Callable[..., bool]:
    def takes(*arguments: Any) -> bool:
        return computes(*arguments) and check(*arguments)

    return takes


# --- convolutions that are one matrix product, by cuBLAS ---


def _product(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    activation: float,
    geometry: Geometry,
) -> Tensor:
    return FUSED.activate_(matrix_product.fprop(input, weight, geometry), bias, activation)


def _product_masked(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    output: Tensor,
    negative_slope: float,
    geometry: Geometry,
) -> Tensor:
    result = matrix_product.fprop(input, weight, geometry)
    return FUSED.mask_(result, bias, output, negative_slope)


def _product_fits(*arguments: Any) -> bool:
    input, weight, geometry = arguments[0], arguments[1], arguments[-1]
    tanh = isinstance(arguments[3], str)
    return not tanh and matrix_product.takes_fprop(input, weight, geometry)


# --- the candidates, in the order of the rule ---

_EDGE = "image edge (CUDA)"
offer(_EDGE, ["cuda"], [CONV, TRANSPOSED], ["forward"], image_edge.forward,
      fits=_takes(image_edge.takes_forward))  # fmt: skip
offer(_EDGE, ["cuda"], [CONV], ["masked_forward"], image_edge.masked_forward,
      fits=_takes(image_edge.takes_masked_forward))  # fmt: skip
offer(_EDGE, ["cuda"], [CONV, TRANSPOSED], ["input_gradient"], image_edge.input_gradient,
      fits=_takes(image_edge.takes_input_gradient))  # fmt: skip
offer(_EDGE, ["cuda"], [CONV, TRANSPOSED], ["weight_gradient"], image_edge.weight_gradient,
      fits=_takes(image_edge.takes_weight_gradient))  # fmt: skip
_turned = TurnedEdge(image_edge)
for _pass in ("forward", "input_gradient", "weight_gradient"):
    offer("image edge, turned round (CUDA)", ["cuda"], [CONV], [_pass], getattr(_turned, _pass),
          fits=_takes(getattr(_turned, f"takes_{_pass}")))  # fmt: skip
_PRODUCT = "matrix product (CUDA)"
offer(_PRODUCT, ["cuda"], [CONV, TRANSPOSED], ["forward"], _product, fits=_takes(_product_fits))
offer(_PRODUCT, ["cuda"], [CONV, TRANSPOSED], ["masked_forward"], _product_masked,
      fits=_takes(_product_fits))  # fmt: skip
offer(_PRODUCT, ["cuda"], [CONV, TRANSPOSED], ["input_gradient"], matrix_product.input_gradient,
      fits=_takes(matrix_product.takes_input_gradient))  # fmt: skip
offer(_PRODUCT, ["cuda"], [CONV, TRANSPOSED], ["weight_gradient"], matrix_product.weight_gradient,
      fits=_takes(matrix_product.takes_weight_gradient))  # fmt: skip
offer_fused(FUSED, "CUDA", ["cuda"], also_plain=("input_gradient", "weight_gradient"))
for _tile in range(TILES):
    _name = f"Hopper implicit GEMM, tile {_tile} (CUDA)"
    offer(_name, ["cuda"], [CONV], ["forward"], partial(_hopper, _tile),
          fits=_fits_forward, expected=never)  # fmt: skip
    offer(_name, ["cuda"], [CONV], ["masked_forward"], partial(_hopper_masked, _tile),
          fits=_fits_linear, expected=never)  # fmt: skip
    offer(_name, ["cuda"], [TRANSPOSED], ["input_gradient"], partial(_hopper_input_gradient, _tile),
          fits=_fits_linear, expected=never)  # fmt: skip
