"""What the GAN and the Wasserstein GAN share: a generator that somebody judges."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from .base import GenerativeModel
from .scores import at_least_float32, fed


class AdversarialModel(GenerativeModel):
    """Holds the generator; its average over the training makes the better pictures."""

    averaged: ClassVar[tuple[str, ...]] = ("generator",)

    def __init__(self, generator: nn.Module, latent_dim: int | Sequence[int]) -> None:
        super().__init__(latent_dim)
        self.generator = generator

    def decode(self, z: Tensor) -> Tensor:
        """G(z), float32 or wider; differentiable."""
        return at_least_float32(self.generator(fed(self.generator, z)))

    def fake(self, z: Tensor) -> Tensor:
        """G(z) as data, for the other network: no gradient reaches the generator."""
        with torch.no_grad():
            return self._handed_on(z).detach()

    def _handed_on(self, z: Tensor) -> Tensor:
        """G(z) for the other network: as :meth:`decode`, but under autocast in the generator's
        precision, to which that network's first layer would round it again.
        """
        images: Tensor = self.generator(fed(self.generator, z))
        kind = images.device.type
        if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
            return images
        return at_least_float32(images)
