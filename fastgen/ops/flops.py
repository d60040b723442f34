"""What fastgen's convolutions multiply, for `torch.utils.flop_counter.FlopCounterMode`.

Importing this before a counter is made enters a formula for each operator: the products of the
definition, as PyTorch counts those of its own operators, also where Winograd's method takes fewer.
It is not imported by anything, as the counter takes longer to import than all of fastgen.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import torch
from torch.utils.flop_counter import conv_flop_count, flop_registry, register_flop_formula

from . import triton_kernels
from .backend import BACKENDS

Shape = Sequence[int]


def _fprop(input: Shape, weight: Shape, *rest: Any, out_shape: Any, **more: Any) -> int:
    return conv_flop_count([*input], [*weight], [*out_shape])


def _transposed(input: Shape, weight: Shape, *rest: Any, out_shape: Any, **more: Any) -> int:
    return conv_flop_count([*input], [*weight], [*out_shape], transposed=True)


def _weight_gradient(input: Shape, grad: Shape, *rest: Any, out_shape: Any, **more: Any) -> int:
    return conv_flop_count([*input], [*out_shape], [*grad])


# Image edges may be convolutions turned round, whose input is the smaller map and not the output.


def _edge(input: Shape, weight: Shape, *rest: Any, out_shape: Any, **more: Any) -> int:
    return _fprop(input, weight, out_shape=_smaller(input, out_shape))


def _edge_weight_gradient(
    input: Shape, grad: Shape, *rest: Any, out_shape: Any, **more: Any
) -> int:
    return _weight_gradient(input, _smaller(grad, input), out_shape=out_shape)


def _smaller(one: Shape, other: Shape) -> Shape:
    return min(one, other, key=lambda shape: prod(shape[2:]))


FORMULAS: dict[str, dict[str, Callable[..., int]]] = {
    "fastgen": {
        "winograd_conv2d": _fprop,
        "winograd_conv_transpose2d": _transposed,
        "winograd_conv2d_weight_gradient": _weight_gradient,
        "image_edge_conv2d": _edge,
        "image_edge_conv_transpose2d": _edge,
        "image_edge_conv2d_weight_gradient": _edge_weight_gradient,
        "hopper_conv2d": _fprop,
    },
    "fastgen_triton": {
        "conv2d": _fprop,
        "conv_transpose2d": _transposed,
        "conv2d_input_gradient": _transposed,
        "conv2d_weight_gradient": _weight_gradient,
    },
    # oneDNN's with the activation inside, which PyTorch does not count either.
    "mkldnn": {
        "_convolution_pointwise": _fprop,
        "_convolution_transpose_pointwise": _transposed,
    },
}


def _register() -> None:
    if BACKENDS["triton"].missing() is None:
        triton_kernels.operators()  # defines them
    for namespace, formulas in FORMULAS.items():
        operators = getattr(torch.ops, namespace)
        for name, formula in formulas.items():
            operator = getattr(operators, name, None)
            if operator is not None and operator not in flop_registry:
                register_flop_formula(operator)(formula)


_register()
