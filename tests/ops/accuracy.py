"""The accuracy rule: at most twice PyTorch's own error in the same dtype, plus one rounding."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from fastgen.ops import reference
from fastgen.ops.philox import random_words

Function = Callable[..., Tensor]


def derivatives(function: Function, tensors: Sequence[Tensor]) -> list[Tensor]:
    """Output, first gradients and second gradients of a function of several tensors.

    The second ones are those of a penalty-like scalar: the sum of the squared first gradients,
    plus the output's own sum of cubes, so that both the tangent pass and the forward graph take
    part.
    """
    inputs = [
        t.detach().clone(memory_format=torch.preserve_format).requires_grad_() for t in tensors
    ]
    output = function(*inputs)
    first = torch.autograd.grad(output.pow(2).sum() / 2, inputs, create_graph=True)
    scalar = sum(g.pow(2).sum() for g in first)
    second = torch.autograd.grad(scalar, inputs, allow_unused=True)
    zeros = [torch.zeros_like(t) if g is None else g for g, t in zip(second, inputs, strict=True)]
    return [t.detach() for t in (output, *first, *zeros)]


def exact_reparameterize_kl(mu: Tensor, logvar: Tensor, *, seed: Tensor) -> tuple[Tensor, Tensor]:
    """`reference.reparameterize_kl`, but in float64 with noise that is computed in float64, too.

    The noise is a function of the uniform numbers, which are float32; PyTorch's own logarithm and
    cosine in float32 are no truth for a backend's.
    """
    z, kl = reference.reparameterize_kl(mu, logvar, seed=seed)
    if mu.dtype != torch.float64:
        return z, kl
    words = random_words(mu.numel(), seed).view(-1, 2)
    uniform = ((words.to(torch.float32) + 0.5) * 2.0**-32).double()
    radius, angle = (-2 * uniform[:, 0].log()).sqrt(), 2 * torch.pi * uniform[:, 1]
    pairs = torch.stack((radius * angle.cos(), radius * angle.sin()), 1)
    noise = pairs.flatten()[: mu.numel()].view(mu.shape)
    return mu + torch.exp(logvar / 2) * noise, kl


def root_mean_square(error: Tensor) -> Tensor:
    return error.square().mean().sqrt()


def _rounded_once(tensor: Tensor, rounding: float) -> Tensor:
    noise = torch.rand(
        tensor.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )
    return tensor.double() * (1 + rounding * (2 * noise - 1))


def assert_as_accurate_as_torch(
    ours: Function, theirs: Function, tensors: Sequence[Tensor]
) -> None:
    """Compare both with `theirs` in float64, through the second order.

    Errors are root mean squares: the largest of a few rounding errors is a matter of luck, up to
        4x between two right ways to add the same numbers. One rounding is what the exact result
        moves when every input is rounded
    once more, plus a rounding of the result itself: where terms cancel, PyTorch's own error can be
        0 by luck.
    """
    exact = derivatives(theirs, [t.double() for t in tensors])
    results = derivatives(ours, tensors)
    baseline = derivatives(theirs, tensors)
    rounding = torch.finfo(tensors[0].dtype).eps
    rounded = derivatives(theirs, [_rounded_once(t, rounding) for t in tensors])
    for position, (truth, ours_value, theirs_value, moved) in enumerate(
        zip(exact, results, baseline, rounded, strict=True)
    ):
        assert ours_value.shape == truth.shape
        assert ours_value.dtype == theirs_value.dtype
        if truth.numel() == 0:
            continue
        error = root_mean_square(ours_value.double() - truth)
        one_rounding = root_mean_square(moved - truth) + rounding * truth.abs().max()
        # PyTorch's own bfloat16 second gradients are NaN now and then (torch 2.13, a transposed
        # convolution of one pixel): then nothing but the rounding is allowed.
        baseline_error = root_mean_square(theirs_value.double() - truth).nan_to_num(nan=0.0)
        allowed = 2 * baseline_error + one_rounding
        assert error <= allowed, f"result {position}: off by {error:.3e}, allowed {allowed:.3e}"
