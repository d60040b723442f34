"""Models small enough to be worked out by hand, and sources of numbered batches."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fastgen.data import Splits
from fastgen.models import (
    GAN,
    VAE,
    WGAN,
    Autoencoder,
    Classifier,
    Losses,
    Model,
    Phase,
    SpectralNorm,
)


class Batch(NamedTuple):
    images: Tensor
    labels: Tensor | None


class Noise:
    """Batch k is a function of k; every batch that was asked for is noted."""

    def __init__(self, *shape: int) -> None:
        self.shape, self.asked = shape, list[int]()

    def batch(self, index: int) -> Batch:
        self.asked.append(index)
        generator = torch.Generator().manual_seed(index)
        return Batch(torch.randn(self.shape, generator=generator), None)


class Constant:
    """The same images in every batch."""

    def __init__(self, images: Tensor) -> None:
        self.images = images

    def batch(self, index: int) -> Batch:
        return Batch(self.images, None)


class Regression(Model):
    """Learns to reproduce vectors through a narrow layer with dropout and a running mean."""

    averaged = ("network",)

    def __init__(self, size: int = 6) -> None:
        super().__init__()
        self.network = nn.Sequential(
            nn.Linear(size, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, size)
        )

    def phases(self) -> list[Phase]:
        return [Phase("regression", tuple(self.parameters()), self._loss)]

    def _loss(self, images: Tensor, labels: Tensor | None) -> Losses:
        error = (self.network(images) - images).square().mean()
        return {"loss": error, "root": error.detach().sqrt()}


class Transposed(Model):
    """A 4-d weight that becomes channels_last, with a gradient that is not."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 3, 2, 5, dtype=torch.float64))
        self.register_buffer("target", torch.randn(4, 3, 2, 5, dtype=torch.float64))

    def phases(self) -> list[Phase]:
        return [Phase("weight", (self.weight,), self._loss)]

    def _loss(self, images: Tensor, labels: Tensor | None) -> Losses:
        return {"loss": (self.weight.contiguous() - self.target).square().sum()}


class TwoNumbers(Model):
    """Two numbers a and b and one loss for each: what moves what can be worked out by hand."""

    def __init__(
        self, losses: Mapping[str, Callable[[Tensor, Tensor, Tensor], Tensor]], **phase: object
    ) -> None:
        super().__init__()
        self.a, self.b = nn.Parameter(torch.tensor(1.0)), nn.Parameter(torch.tensor(2.0))
        self.losses, self.phase = losses, phase

    def phases(self) -> list[Phase]:
        def loss(name: str) -> Callable[[Tensor, Tensor | None], Losses]:
            return lambda images, labels: {"loss": self.losses[name](self.a, self.b, images)}

        return [
            Phase(name, (getattr(self, name),), loss(name), **self.phase)  # type: ignore[arg-type]
            for name in self.losses
        ]


def sgd(lr: float) -> Callable[[object], torch.optim.Optimizer]:
    return lambda parameters: torch.optim.SGD(parameters, lr=lr)  # type: ignore[arg-type]


def models(digits: Splits) -> dict[str, Callable[[], Model]]:
    """One small model of every kind for 8x8 digits."""
    shape = digits.train.image_shape
    small = {"latent_dim": 3, "width": 4}
    return {
        "gan": lambda: GAN.for_images(shape, **small, r1=0.1),
        "wgan": lambda: WGAN.for_images(shape, **small, critic_steps=2),
        "spectral": lambda: WGAN.for_images(
            shape, **small, regularizer=SpectralNorm(), critic_steps=1
        ),
        "vae": lambda: VAE.for_images(shape, **small, sigma="optimal"),
        "autoencoder": lambda: Autoencoder.for_images(shape, **small),
        "classifier": lambda: Classifier.for_images(shape, digits.train.classes, width=4),
    }
