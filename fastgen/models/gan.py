"""Generative adversarial networks."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .adversarial import AdversarialModel
from .adversarial_losses import GAMES, value
from .networks import Discriminator, Generator, scores_alone
from .phase import Losses, Phase, trainable
from .scores import scores, scores_together, zero_centered_penalty


class GAN(AdversarialModel):
    r"""A generator G and a discriminator D in a game of value V [Goodfellow et al. 2014, eq. 1]:

    .. math:: \min_G \max_D V, \qquad
        V = \frac1n \sum_i \log D(x_i) + \frac1n \sum_i \log\big(1 - D(G(z_i))\big),
        \quad z_i \sim N(0, I)

    D climbs V, the log-likelihood of telling real (y = 1) from generated (y = 0). Against the best
    D = p / (p + q), V is 2 JS(p, q) - log 4; its floor -log 4 = -1.386 is reached where generated
    images are distributed like real ones and D is 1/2 everywhere.

    ==================  ======================================  ==============================
    `loss`              the discriminator minimizes             the generator minimizes
    ==================  ======================================  ==============================
    ``non_saturating``  -V                                      -mean log D(G(z))
    ``minimax``         -V                                      mean log(1 - D(G(z))), as in V
    ``hinge``           mean (1 - d(x))+ + mean (1 + d(G(z)))+  -mean d(G(z))
    ``relativistic``    mean softplus(d(G(z_i)) - d(x_i))       mean softplus(d(x_i) - d(G(z_i)))
    ==================  ======================================  ==============================

    with d the logit, D = sigmoid(d), and (t)+ = max(0, t); the last row pairs each real image with
    a generated one. (Goodfellow 2014, section 3; Lim & Ye 2017; Jolicoeur-Martineau 2018 and R3GAN,
    Huang et al. 2024.)

    Zero-centered penalties make the game converge where it otherwise circles [Mescheder et al.
    2018]: R1 = r1 / 2 mean |grad d(x_i)|^2 at real images and R2 = r2 / 2 mean |grad d(G(z_i))|^2
    at generated ones. They share the forward pass of the loss.

    Args:
        generator: any module from z (n, \*latent_shape) to images.
        discriminator: any module from images (n, ...) to logits (n,), (n, 1) or (n, 1, 1, 1). With
            r1 or r2 an image's logit must depend on that image only (no batch normalization).
            Without them one of the library's own, :class:`Discriminator`, sees both batches as one.
        latent_dim: length of z, or its shape.
        loss: a row of the table.
        r1, r2: gamma of the penalties; 0 is none.

    Losses are float32 or wider, also under autocast and with weights in bfloat16 or float16.
    """

    def __init__(
        self,
        generator: nn.Module,
        discriminator: nn.Module,
        *,
        latent_dim: int | Sequence[int],
        loss: str = "non_saturating",
        r1: float = 0.0,
        r2: float = 0.0,
    ) -> None:
        super().__init__(generator, latent_dim)
        if loss not in GAMES:
            raise ValueError(f"loss must be one of {', '.join(GAMES)} (got {loss!r})")
        if not (r1 >= 0 and r2 >= 0):
            raise ValueError(f"r1 and r2 must be 0 or more (got {r1} and {r2})")
        self.discriminator = discriminator
        self.loss, self.r1, self.r2 = loss, r1, r2

    @classmethod
    def for_images(
        cls,
        image_shape: Sequence[int],
        *,
        latent_dim: int = 64,
        width: int = 64,
        loss: str = "non_saturating",
        r1: float = 0.0,
        r2: float = 0.0,
    ) -> GAN:
        """A GAN with the library's own networks for images of shape (C, H, W) in [-1, 1]."""
        generator = Generator(latent_dim, image_shape, width=width)
        discriminator = Discriminator(image_shape, width=width)
        return cls(generator, discriminator, latent_dim=latent_dim, loss=loss, r1=r1, r2=r2)

    def value(self, x: Tensor, z: Tensor) -> Tensor:
        """V at images x and latents z: 0-dim, at most 0, differentiable in both networks."""
        return value(scores(self.discriminator, x), scores(self.discriminator, self.decode(z)))

    def discriminator_loss(self, x: Tensor, z: Tensor) -> Tensor:
        """What the discriminator minimizes, with penalties; no gradient reaches the generator."""
        return self._discriminator_losses(x, z)["loss"]

    def generator_loss(self, x: Tensor, z: Tensor) -> Tensor:
        """What the generator minimizes; only the relativistic loss looks at the real images x."""
        game = GAMES[self.loss]
        fake = scores(self.discriminator, self._handed_on(z))
        if not game.generator_needs_real:
            return game.generator(fake, fake)
        with torch.no_grad():  # real images do not depend on the generator
            real = scores(self.discriminator, x)
        return game.generator(real, fake)

    def phases(self) -> list[Phase]:
        """``"discriminator"``, then ``"generator"``."""
        return [
            Phase("discriminator", trainable(self.discriminator), self._discriminator_phase),
            Phase("generator", trainable(self.generator), self._generator_phase),
        ]

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, loss={self.loss!r}, r1={self.r1}, r2={self.r2}"

    def _discriminator_losses(self, x: Tensor, z: Tensor) -> Losses:
        real = x.detach().requires_grad_() if self.r1 else x
        fake = self.fake(z).requires_grad_(bool(self.r2))
        if self.r1 or self.r2 or not scores_alone(self.discriminator):
            real_scores = scores(self.discriminator, real)
            fake_scores = scores(self.discriminator, fake)
        else:
            real_scores, fake_scores = scores_together(self.discriminator, real, fake)

        penalties: Losses = {}
        if self.r1:
            penalties["r1"] = zero_centered_penalty(self.r1, real_scores, real)
        if self.r2:
            penalties["r2"] = zero_centered_penalty(self.r2, fake_scores, fake)

        loss = GAMES[self.loss].discriminator(real_scores, fake_scores)
        logged = {
            "value": value(real_scores, fake_scores),
            "real_logit": real_scores.mean(),
            "fake_logit": fake_scores.mean(),
            **penalties,
        }
        return {
            "loss": sum(penalties.values(), loss),
            **{name: term.detach() for name, term in logged.items()},
        }

    def _discriminator_phase(self, images: Tensor, labels: Tensor | None) -> Losses:
        return self._discriminator_losses(images, self.latent(len(images)))

    def _generator_phase(self, images: Tensor, labels: Tensor | None) -> Losses:
        return {"loss": self.generator_loss(images, self.latent(len(images)))}
