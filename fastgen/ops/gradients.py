"""What the autograd Functions of all operations share: which gradients are wanted, and the mask.

Two rules make a second gradient cheap (the third, to compute weight gradients by the
weight-gradient primitive, lives in `convolution`):

1. An undefined gradient stays undefined: `ctx.set_materialize_grads(False)`, `None` in, `None` out.
   Otherwise autograd pushes tensors of zeros through the whole forward graph.
2. A gradient that nobody waits for is not computed. `ctx.needs_input_grad` is fixed at the forward
   and says True for every weight, also while `torch.autograd.grad(scores, images)` runs; the
   engine knows.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

_engine_will_execute = getattr(torch._C, "_will_engine_execute_node", None)


def wanted(ctx: Any, index: int) -> bool:
    """Whether the backward pass that is running asks for the gradient of tensor argument `index`.

    Every tensor argument of the Function must come before its other arguments, the optional ones
    last, so that arguments and edges of the graph have the same numbers.

    The engine is asked about the node behind the argument. It answers for every node but one: a
    leaf whose gradient `torch.autograd.grad` returns; there it raises, so the error itself means
    yes. Where the question does not exist, or while a graph is traced, whatever is differentiable
    counts as asked for.
    """
    if not ctx.needs_input_grad[index]:
        return False
    if _engine_will_execute is None or torch.compiler.is_compiling():
        return True
    try:
        return bool(_engine_will_execute(ctx.next_functions[index][0]))
    except (RuntimeError, AttributeError):
        return True


class Mask(Function):
    """mask(g, y) = g * (1 if y > 0 else negative_slope): leaky ReLU's derivative from its output.

    Linear in g, so its own derivative is the mask again: every order closes. In y it is piecewise
    constant; that derivative is 0 almost everywhere and stays undefined.
    """

    @staticmethod
    def forward(grad: Tensor, output: Tensor, negative_slope: float, kernels: Any) -> Tensor:
        result: Tensor = kernels.mask(grad, output, negative_slope)
        return result

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        ctx.set_materialize_grads(False)
        _, saved, ctx.negative_slope, ctx.kernels = inputs
        ctx.save_for_backward(saved)

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None) -> Any:
        if grad is None or not wanted(ctx, 0):
            return None, None, None, None
        (output,) = ctx.saved_tensors
        return mask(grad, output, ctx.negative_slope, ctx.kernels), None, None, None


def mask(grad: Tensor, output: Tensor, negative_slope: float, kernels: Any) -> Tensor:
    """`grad` where `output` is positive, `negative_slope * grad` elsewhere; differentiable in
    `grad`.
    """
    # The edge to `output` stays, though nothing flows back on it: what is masked then requires a
    # gradient exactly where PyTorch's own composition does, and a backward through it alone is no
    # error.
    masked: Tensor = Mask.apply(grad, output, negative_slope, kernels)  # type: ignore[no-untyped-call]
    return masked


def channel_sum(grad: Tensor) -> Tensor:
    """The gradient of a bias: the sum over everything but the channels (dimension 1)."""
    # The dtype is named because autocast would answer in float32.
    return grad.sum([d for d in range(grad.dim()) if d != 1], dtype=grad.dtype)
