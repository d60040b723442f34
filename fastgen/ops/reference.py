"""The operations as plain compositions of `torch.nn.functional`: the truth that tests compare with.

Same arguments, no checks, no backend, PyTorch's own autograd. In float64 these are the reference
values.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .philox import normal

__all__ = [
    "bias_leaky_relu",
    "conv2d_bias_leaky_relu",
    "conv_transpose2d_bias_leaky_relu",
    "reparameterize",
    "reparameterize_kl",
]


def bias_leaky_relu(
    input: Tensor, bias: Tensor | None = None, negative_slope: float = 0.2
) -> Tensor:
    """leaky_relu(input + bias), bias along dimension 1.

    The plain composition behind :func:`fastgen.ops.bias_leaky_relu`, differentiable by PyTorch
    itself.
    """
    if bias is not None:
        input = input + bias.view(-1, *[1] * (input.dim() - 2))
    return F.leaky_relu(input, negative_slope)


def conv2d_bias_leaky_relu(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] | str = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    negative_slope: float = 0.2,
) -> Tensor:
    """leaky_relu(conv2d(input, weight, bias)).

    The plain composition behind :func:`fastgen.ops.conv2d_bias_leaky_relu`, differentiable by
    PyTorch itself.
    """
    return F.leaky_relu(
        F.conv2d(input, weight, bias, stride, padding, dilation, groups), negative_slope
    )


def conv_transpose2d_bias_leaky_relu(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    output_padding: int | Sequence[int] = 0,
    groups: int = 1,
    dilation: int | Sequence[int] = 1,
    negative_slope: float = 0.2,
    *,
    tanh: bool = False,
) -> Tensor:
    """leaky_relu(conv_transpose2d(input, weight, bias)), or tanh of it.

    The plain composition behind :func:`fastgen.ops.conv_transpose2d_bias_leaky_relu`,
    differentiable by PyTorch itself.
    """
    result = F.conv_transpose2d(
        input, weight, bias, stride, padding, output_padding, groups, dilation
    )
    return torch.tanh(result) if tanh else F.leaky_relu(result, negative_slope)


def reparameterize(mu: Tensor, logvar: Tensor, *, seed: Tensor) -> Tensor:
    """mu + exp(logvar / 2) eps(seed).

    The plain composition behind :func:`fastgen.ops.reparameterize`: eps is stored by autograd, as
    anyone would write it.
    """
    return mu + torch.exp(logvar / 2) * normal(mu.shape, seed).to(mu.dtype)


def reparameterize_kl(mu: Tensor, logvar: Tensor, *, seed: Tensor) -> tuple[Tensor, Tensor]:
    """z and kl = 1/2 sum(mu^2 + exp(logvar) - 1 - logvar) per sample, in nats.

    The plain composition behind :func:`fastgen.ops.reparameterize_kl`.
    """
    terms = mu.square() + torch.exp(logvar) - 1 - logvar
    per_sample = terms.reshape(mu.shape[0], math.prod(mu.shape[1:]))
    return reparameterize(mu, logvar, seed=seed), per_sample.sum(1) / 2
