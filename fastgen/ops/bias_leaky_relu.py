"""Bias + leaky ReLU as one differentiable operation."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.autograd import Function

from . import backend as backends
from . import checks, reference
from .gradients import applier, channel_sum, is_last_order, mask, mask_sum, sheltered, wanted


class BiasLeakyReLU(Function):
    """leaky_relu(input + bias)."""

    @staticmethod
    def forward(input: Tensor, bias: Tensor | None, negative_slope: float, kernels: Any) -> Tensor:
        output: Tensor = kernels.forward(input, bias, negative_slope)
        return output

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        ctx.set_materialize_grads(False)
        _, _, ctx.negative_slope, ctx.kernels = inputs
        ctx.save_for_backward(output if ctx.negative_slope != 1 else None)

    @staticmethod
    @sheltered
    def backward(ctx: Any, grad: Tensor | None) -> Any:
        if grad is None:
            return None, None, None, None
        (output,) = ctx.saved_tensors

        grad_bias = None
        if output is None:
            grad_bias = channel_sum(grad) if wanted(ctx, 1) else None
        elif wanted(ctx, 1):
            grad, grad_bias = mask_sum(grad, output, ctx.negative_slope, ctx.kernels)
        else:
            grad = mask(grad, None, output, ctx.negative_slope, ctx.kernels)
        return grad if wanted(ctx, 0) else None, grad_bias, None, None


_apply = applier(BiasLeakyReLU)


def bias_leaky_relu(
    input: Tensor, bias: Tensor | None = None, negative_slope: float = 0.2, *, backend: str = "auto"
) -> Tensor:
    r"""Add one bias per channel and apply leaky ReLU.

    .. math:: y_{n c \dots} = \mathrm{leakyReLU}(x_{n c \dots} + b_c), \quad
        \mathrm{leakyReLU}(a) = \max(a, 0) + \mathrm{negative\_slope} \cdot \min(a, 0)

    Args:
        input: shape (N, C, ...), any number of further dimensions and any layout; float32,
            bfloat16, float16 or float64. Without a bias any shape will do.
        bias: shape (C,), dtype and device of `input`, or None.
        negative_slope: in [0, 1]; 0 is ReLU, 1 adds the bias and nothing else.
        backend: ``"auto"`` or the name of a backend (see :func:`fastgen.backend`).

    Returns:
        the shape, dtype and layout of `input`; never `input` itself.

    **Gradients** of any order with respect to input and bias. Saved for backward: the output alone
    (nothing at slope 1). The mask's own derivative is 0 almost everywhere and stays undefined
    (``None``).

    Raises:
        TypeError, ValueError: an argument does not fit; the message names it and what is allowed.
        BackendUnavailable: the backend named cannot run here.
    """
    checks.floating_tensor("input", input)
    slope = checks.slope(negative_slope)
    if bias is not None:
        checks.floating_tensor("bias", bias)
        checks.same_kind("bias", bias, input)
        if input.dim() < 2:
            raise ValueError(
                f"input must have shape (N, C, ...) for a bias (got {tuple(input.shape)})"
            )
        checks.vector("bias", bias, input.shape[1], "one number per channel (dimension 1 of input)")

    kernels = backends.select("bias_leaky_relu", backend, input.device)
    if backends.is_composed(backend, input, bias):
        return reference.bias_leaky_relu(input, bias, slope)
    if is_last_order():
        only: Tensor = kernels.forward(input, bias, slope)
        return only
    output: Tensor = _apply(input, bias, slope, kernels)
    return output
