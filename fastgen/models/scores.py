"""What a discriminator or critic says about images, and how that changes with the images."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fastgen.ops.gradients import applier, returning

HALF_PRECISIONS = (torch.bfloat16, torch.float16)


def at_least_float32(tensor: Tensor) -> Tensor:
    """The tensor in float32 if its dtype is narrower (networks under autocast), else as it is."""
    wide = tensor.dtype in (torch.float32, torch.float64)
    return tensor if wide else tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def fed(network: nn.Module, tensor: Tensor) -> Tensor:
    """The tensor as a network takes it: in the precision of its first weight if that is less than
    float32 (a model in bfloat16), else as it is. Whole numbers stay: they are no picture yet.
    """
    if not tensor.is_floating_point():
        return tensor
    weight = next((each for each in network.parameters() if each.is_floating_point()), tensor)
    return tensor.to(weight.dtype) if weight.dtype in HALF_PRECISIONS else tensor


def scores(network: nn.Module, images: Tensor) -> Tensor:
    """One number per image, shape (N,), float32 or wider.

    Raises:
        ValueError: the network returned anything but shape (N,), (N, 1) or (N, 1, 1, 1).
    """
    answer: Tensor = network(fed(network, images))
    n = len(images)
    if answer.shape not in ((n,), (n, 1), (n, 1, 1, 1)):
        raise ValueError(
            f"{type(network).__name__} must return one number per image, of shape "
            f"(N,), (N, 1) or (N, 1, 1, 1) with N = {n} "
            f"(got {tuple(answer.shape)} for images of shape {tuple(images.shape)})"
        )
    return at_least_float32(answer).reshape(n)


def scores_together(network: nn.Module, real: Tensor, fake: Tensor) -> tuple[Tensor, Tensor]:
    """:func:`scores` of both in one call, which costs less than two; for a network in which an
    image's score depends on that image only.

    Images come in one precision: where the generator made the less precise ones (autocast), real
    ones are rounded as the network's first layer would round them.
    """
    if real.shape[1:] != fake.shape[1:]:
        raise ValueError(
            f"images must have the shape of those that the generator makes, "
            f"{tuple(fake.shape[1:])} (got {tuple(real.shape[1:])})"
        )
    if not real.is_floating_point():  # the two together would be floats, from 0 to 255
        raise TypeError(
            f"images must be floating point in [-1, 1] (got {real.dtype}): fastgen.data.to_float "
            "makes them of bytes"
        )
    if fake.dtype.itemsize < real.dtype.itemsize:
        real = real.to(fake.dtype)
    both = scores(network, torch.cat([real, fake]))
    return both[: len(real)], both[len(real) :]


def input_gradient(scores: Tensor, images: Tensor) -> Tensor:
    """The gradient of each image's score with respect to that image, float32 or wider.

    It keeps its own graph, so it can be penalized; no weight's gradient is computed for it.
    `scores` must come from `images`, which require a gradient; images that do not matter to their
    score have gradient 0.
    """
    with returning([images]):
        (gradient,) = torch.autograd.grad(
            scores.sum(), images, create_graph=True, materialize_grads=True
        )
    return at_least_float32(gradient)


class _Norms(torch.autograd.Function):
    """|g_i| of every sample; d|g_i| = <g_i, dg_i> / |g_i|, and 0 at 0.

    PyTorch's own derivative divides the whole gradient by its norms, masks the quotient and
    multiplies it: three passes over pictures where one is enough.
    """

    @staticmethod
    def forward(gradient: Tensor) -> Tensor:
        rows = gradient.unsqueeze(-1)  # samples may be scalars; this gives them an axis to sum over
        lengths: Tensor = torch.linalg.vector_norm(rows, dim=tuple(range(1, rows.dim())))
        return lengths

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(inputs[0], output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        gradient, lengths = ctx.saved_tensors
        share: Tensor = grad / torch.where(lengths > 0, lengths, torch.inf)
        result: Tensor = gradient * share.reshape(-1, *[1] * (gradient.dim() - 1))
        return result


_apply_norms = applier(_Norms)


def norms(gradient: Tensor) -> Tensor:
    """The length of every sample's gradient, shape (N,); its derivative at 0 is 0, not NaN.

    Differentiable to any order; `gradient` and the result are saved.
    """
    lengths: Tensor = _apply_norms(gradient)
    return lengths


def zero_centered_penalty(gamma: float, scores: Tensor, images: Tensor) -> Tensor:
    """gamma / 2 * mean |grad score(x_i)|^2 over the images the scores came from."""
    return gamma / 2 * input_gradient(scores, images).square().sum() / len(images)
