"""Leaky ReLU and ReLU by fastgen's operations, and what of PyTorch's stands for them.

PyTorch's leaky ReLU gives its input a gradient of zeros in the second order, which autograd then
pushes through the whole first forward graph. Ours leaves it undefined.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastgen.ops import backend, checks
from fastgen.ops.bias_leaky_relu import BiasLeakyReLU
from fastgen.ops.convolution import Activation
from fastgen.ops.gradients import applier, is_last_order


class Call(NamedTuple):
    """One application of an activation.

    Attributes:
        activation: the slope of a leaky ReLU, or "tanh".
        inplace: whether it overwrites its input.
        keeps_output: whether PyTorch's own keeps its output for the backward, as a fused layer
            does: then nobody may overwrite that output anyway. LeakyReLU out of place keeps its
            input, and what comes behind is free to overwrite the output.
    """

    activation: Activation
    inplace: bool
    keeps_output: bool


def _relu_call(inplace: bool) -> Call:
    return Call(0.0, inplace, keeps_output=True)


def _leaky_relu_call(negative_slope: float, inplace: bool) -> Call:
    return Call(negative_slope, inplace, keeps_output=inplace)


TANH = Call("tanh", inplace=False, keeps_output=True)


# --- what is an activation ---


def is_slope(value: object) -> bool:
    """Whether a leaky ReLU of this slope can be ours."""
    return isinstance(value, (int, float)) and 0 <= value <= 1


MODULES: dict[type[nn.Module], Callable[[Any], Call]] = {
    nn.ReLU: lambda module: _relu_call(module.inplace),
    nn.LeakyReLU: lambda module: _leaky_relu_call(module.negative_slope, module.inplace),
    nn.Tanh: lambda module: TANH,
}


def _relu(input: Any, inplace: bool = False) -> tuple[Any, Call]:
    return input, _relu_call(inplace)


def _relu_(input: Any) -> tuple[Any, Call]:
    return input, _relu_call(True)


def _leaky_relu(
    input: Any, negative_slope: float = 0.01, inplace: bool = False
) -> tuple[Any, Call]:
    return input, _leaky_relu_call(negative_slope, inplace)


def _leaky_relu_(input: Any, negative_slope: float = 0.01) -> tuple[Any, Call]:
    return input, _leaky_relu_call(negative_slope, True)


def _tanh(input: Any) -> tuple[Any, Call]:
    return input, TANH


FUNCTIONS: dict[Any, Callable[..., tuple[Any, Call]]] = {
    F.relu: _relu,
    torch.relu: _relu,
    torch.Tensor.relu: _relu,
    torch.relu_: _relu_,
    torch.Tensor.relu_: _relu_,
    F.leaky_relu: _leaky_relu,
    F.leaky_relu_: _leaky_relu_,
    torch.tanh: _tanh,
    torch.Tensor.tanh: _tanh,
}
"""Functions and methods, each with what reads its arguments: the input and the activation."""


# --- ours ---


class KeepsInput(BiasLeakyReLU):
    """leaky_relu(input), the sign taken from the input in the backward, as PyTorch's own does: then
    whoever comes after may overwrite the output.
    """

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        ctx.set_materialize_grads(False)
        input, _, ctx.negative_slope, ctx.kernels = inputs
        ctx.save_for_backward(input if ctx.negative_slope != 1 else None)


class InPlace(BiasLeakyReLU):
    """leaky_relu of the input, in the input's own memory."""

    @staticmethod
    def forward(input: Tensor, bias: Tensor | None, negative_slope: float, kernels: Any) -> Tensor:
        changed: Tensor = torch.ops.aten.leaky_relu_(input, negative_slope)
        return changed

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        ctx.mark_dirty(output)
        BiasLeakyReLU.setup_context(ctx, inputs, output)


_apply_in_place, _apply_keeps_input = applier(InPlace), applier(KeepsInput)
_apply_keeps_output = applier(BiasLeakyReLU)


def leaky_relu(input: Tensor, call: Call) -> Tensor:
    """The leaky ReLU of a call: the values of PyTorch's, and what it keeps, fastgen's gradients.

    PyTorch's own where ours does not fit: another dtype, tensor class or kind of memory, a view or
    a leaf overwritten in place, a slope outside of [0, 1].
    """
    slope, inplace, keeps_output = call
    assert slope != "tanh"
    if not _fits(input, slope, inplace):
        return F.relu(input, inplace) if slope == 0 else F.leaky_relu(input, slope, inplace)
    kernels = backend.select("bias_leaky_relu", "auto", input.device)
    if is_last_order():
        only: Tensor = kernels.forward(input, None, float(slope))
        return only
    apply = (
        _apply_in_place if inplace else _apply_keeps_output if keeps_output else _apply_keeps_input
    )
    output: Tensor = apply(input, None, float(slope), kernels)
    return output


def _fits(input: Tensor, negative_slope: object, inplace: bool) -> bool:
    if type(input) not in (Tensor, nn.Parameter) or input.dtype not in checks.DTYPES:
        return False
    if not is_slope(negative_slope) or input.layout != torch.strided or input.is_nested:
        return False
    if backend.is_composed(backend.AUTO, input):
        return False
    # While a graph is traced nothing is overwritten: torch 2.11 gets such a Function wrong.
    return not inplace or not (
        torch.compiler.is_compiling()
        or input._is_view()
        or not torch.is_grad_enabled()
        or not input.requires_grad
        or input.is_leaf
    )
