"""Bias, leaky ReLU and its mask by plain PyTorch operators, on every device, without autograd."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .convolution import Activation
from .gradients import channel_sum, is_followed

# `torch.ops.aten` takes longer over a call than PyTorch's own bindings, which stand here where they
# exist.
aten = torch.ops.aten

SMALL = {torch.float32: 1 << 17, torch.bfloat16: 1 << 15}
"""Numbers up to which these passes, two for a mask and its sums, cost no more than one of the
compiled kernels, all of it in a CPU's cache: a call of an operator of the stable ABI takes the host
1 to 5 us longer.
"""


def activate_(output: Tensor, activation: Activation) -> Tensor:
    """The activation in place; a slope of 1 is linear and costs nothing.

    Not in place while a graph is traced, where it gains nothing and torch 2.11 gets the gradients
    of a Function wrong (all zero) whose forward changes a tensor in place; nor under a transform.
    """
    if activation == 1:
        return output
    if activation == "tanh":
        return torch.tanh(output) if is_followed() else output.tanh_()
    if is_followed():
        traced: Tensor = aten.leaky_relu(output, activation)
        return traced
    return F.leaky_relu_(output, activation)


def per_channel(vector: Tensor, tensor: Tensor) -> Tensor:
    return vector.view(-1, *[1] * (tensor.dim() - 2))


def mask(grad: Tensor, shift: Tensor | None, output: Tensor, negative_slope: float) -> Tensor:
    """`(grad + shift) * (1 if output > 0 else negative_slope)` in the layout of `output`."""
    if shift is not None:
        grad = grad + per_channel(shift, grad)
    if grad.stride() == output.stride() or is_followed():
        result: Tensor = aten.leaky_relu_backward.default(grad, output, negative_slope, True)
        return result
    # A gradient that arrives in another layout (behind a flatten, say) takes ours in this very
    # pass.
    result = torch.empty_like(output)
    aten.leaky_relu_backward.grad_input(grad, output, negative_slope, True, grad_input=result)
    return result


def mask_(fresh: Tensor, output: Tensor, negative_slope: float) -> Tensor:
    """The mask in place, on a tensor that nobody else holds; out of place as in `activate_`."""
    if is_followed() or fresh.stride() != output.stride():
        return mask(fresh, None, output, negative_slope)
    aten.leaky_relu_backward.grad_input(fresh, output, negative_slope, True, grad_input=fresh)
    return fresh


class TorchMask:
    """The mask, alone and with the gradient of a bias."""

    mask = staticmethod(mask)

    @staticmethod
    def mask_sum(grad: Tensor, output: Tensor, negative_slope: float) -> tuple[Tensor, Tensor]:
        through = mask(grad, None, output, negative_slope)
        return through, channel_sum(through)


class TorchBiasLeakyReLU(TorchMask):
    """Bias and leaky ReLU: one addition and one pass in place."""

    @staticmethod
    def forward(input: Tensor, bias: Tensor | None, negative_slope: float) -> Tensor:
        if bias is None:
            output: Tensor = (
                aten.leaky_relu(input, negative_slope) if negative_slope != 1 else input.clone()
            )
            return output
        return activate_(input + per_channel(bias, input), negative_slope)
