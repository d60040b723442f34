"""What every model shares: phases, evaluation without side effects, latent variables, sampling."""

from __future__ import annotations

import operator
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from numbers import Integral
from typing import ClassVar

import torch
from torch import Tensor, nn

from .phase import Phase


class Model(nn.Module, ABC):
    """Networks and the losses that train them.

    Methods of two kinds: ``forward``, ``encode``, ``decode`` and the losses are plain
    differentiable functions that run in the current mode; what hands out pictures or verdicts
    (``sample``, ``reconstruct``, ``predict``, ``log_likelihood`` ...) runs in evaluation mode,
    without gradients, and leaves the mode as it was.
    """

    averaged: ClassVar[tuple[str, ...]] = ()
    """Names of the sub-modules whose weights are worth averaging over the training (EMA)."""

    @abstractmethod
    def phases(self) -> list[Phase]:
        """The phases of one training step, in order."""


class LatentModel(Model):
    """A model whose images come from a latent variable z of shape ``latent_shape``.

    `latent` draws z from N(0, I), `decode` turns it into an image.
    """

    def __init__(self, latent_dim: int | Sequence[int]) -> None:
        super().__init__()
        shape = tuple(latent_dim) if isinstance(latent_dim, Sequence) else (latent_dim,)
        if not shape or not all(isinstance(size, Integral) and size >= 1 for size in shape):
            raise ValueError(
                f"latent_dim must be a positive integer or a tuple of them (got {latent_dim!r})"
            )
        self.latent_shape = tuple(map(int, shape))

    def latent(self, n: int, *, seed: int | None = None) -> Tensor:
        """Draw n latents from N(0, I): shape (n, \\*latent_shape), of the model's device and dtype.

        The same seed gives the same numbers on the same kind of device; without one, torch's
        default generator of the device is used, so ``torch.manual_seed`` governs it.
        """
        return self._normal((n, *self.latent_shape), self._generator(seed))

    @abstractmethod
    def decode(self, z: Tensor) -> Tensor:
        """The images of latents z (n, \\*latent_shape), float32 or wider; differentiable."""

    def extra_repr(self) -> str:
        return f"latent_shape={self.latent_shape}"

    def _generator(self, seed: int | None) -> torch.Generator | None:
        if seed is None:
            return None
        return torch.Generator(self._example().device).manual_seed(operator.index(seed))

    def _normal(self, shape: tuple[int, ...], generator: torch.Generator | None) -> Tensor:
        like = self._example()
        return torch.randn(shape, generator=generator, device=like.device, dtype=like.dtype)

    def _example(self) -> Tensor:
        """A tensor with the model's device and dtype: its first floating-point weight."""
        weights = chain(self.parameters(), self.buffers())
        return next((weight for weight in weights if weight.is_floating_point()), torch.empty(0))


class GenerativeModel(LatentModel):
    """A latent model that draws images: z ~ N(0, I), x = G(z).

    `sample` is reproducible from a seed.
    """

    def sample(self, n: int, *, seed: int | None = None) -> Tensor:
        """Draw n images, shape (n, C, H, W), in evaluation mode and without gradients.

        The same seed gives the same images; without one, torch's default generator is used. All n
        are decoded at once: for more than memory holds, decode the parts of one `latent(n)`.
        """
        with evaluation(self):
            return self.decode(self.latent(n, seed=seed))


@contextmanager
def evaluation(model: nn.Module) -> Iterator[None]:
    """Evaluation mode and no gradients inside a ``with`` block.

    Each module's own mode is restored afterwards, also where some were in training and some not.
    """
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module in training:
            module.training = True
