"""Convolutions that are one matrix product, as candidates on a CPU: every pass by plain PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from . import matrix_product
from .convolution import Activation
from .geometry import Geometry
from .gradients import is_followed
from .torch_bias_leaky_relu import activate_, mask_


def _product(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    activation: Activation,
    geometry: Geometry,
) -> Tensor:
    return activate_(matrix_product.fprop(input, weight, geometry, bias), activation)


def _product_masked(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    output: Tensor,
    negative_slope: float,
    geometry: Geometry,
) -> Tensor:
    return mask_(matrix_product.fprop(input, weight, geometry, bias), output, negative_slope)


LEAST = 4096
"""Multiplications from which a product gains on the time that its call takes."""


def _pays(operand: Tensor, weight: Tensor) -> bool:
    """Whether a product should be faster than oneDNN: where the kernel covers the picture, 1.5 to
    17 times on one core, float32 and bfloat16, batches of 1 to 64. One tap over larger pictures
    takes oneDNN from half to twice as long.
    """
    one_tap = weight.shape[2] * weight.shape[3] == 1
    return (
        not is_followed()
        and operand.device.type == "cpu"
        and operand.dtype in (torch.float32, torch.bfloat16, torch.float64)
        and not (one_tap and operand.shape[2] * operand.shape[3] > 1)
        and len(operand) * weight.numel() >= LEAST
    )


def forward_is_product(*arguments: Any) -> bool:
    """Of the arguments of a forward or a masked one."""
    input, weight, geometry = arguments[0], arguments[1], arguments[-1]
    return _pays(input, weight) and matrix_product.takes_fprop(input, weight, geometry)


def _input_gradient_is_product(*arguments: Any) -> bool:
    grad, weight, _, _ = arguments
    return _pays(grad, weight) and matrix_product.takes_input_gradient(*arguments)


def _weight_gradient_is_product(*arguments: Any) -> bool:
    input, _, weight, _ = arguments
    return _pays(input, weight) and matrix_product.takes_weight_gradient(*arguments)


PRODUCTS: dict[str, tuple[Callable[..., Tensor], Callable[..., bool]]] = {
    "forward": (_product, forward_is_product),
    "masked_forward": (_product_masked, forward_is_product),
    "input_gradient": (matrix_product.input_gradient, _input_gradient_is_product),
    "weight_gradient": (matrix_product.weight_gradient, _weight_gradient_is_product),
}
"""By pass, the product and whether a call is one that pays."""
