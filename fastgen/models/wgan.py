"""Wasserstein generative adversarial networks."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from torch import Tensor, nn

from .adversarial import AdversarialModel
from .networks import Critic, Generator
from .phase import Losses, Phase, trainable
from .regularizers import GradientPenalty, Regularizer
from .scores import scores, scores_together


class WGAN(AdversarialModel):
    r"""A generator G and a critic f that scores real images high [Arjovsky et al. 2017]:

    .. math:: \min_G \max_f \Big[\frac1n \sum_i f(x_i) - \frac1n \sum_i f(G(z_i))\Big],
        \quad z_i \sim N(0, I)

    Over all critics of slope at most K the maximum is K times the Wasserstein-1 distance between
    the two distributions (Kantorovich-Rubinstein), so a critic's gap, divided by K, approaches it
    from below. What keeps the slope in bounds is the regularizer.

    Args:
        generator: any module from z (n, \*latent_shape) to images.
        critic: any module from images (n, ...) to scores of shape (n,), (n, 1) or (n, 1, 1, 1). An
            image's score must depend on that image only (no batch normalization).
        latent_dim: length of z, or its shape.
        regularizer: :class:`GradientPenalty` (default, weight 10), :class:`WeightClipping`,
            :class:`SpectralNorm`, any other :class:`Regularizer`, or None.
        critic_steps: updates of the critic for each one of the generator.

    Losses are float32 or wider, also under autocast and with weights in bfloat16 or float16.
    """

    def __init__(
        self,
        generator: nn.Module,
        critic: nn.Module,
        *,
        latent_dim: int | Sequence[int],
        regularizer: Regularizer | None = GradientPenalty(10.0),  # noqa: B008 (frozen)
        critic_steps: int = 5,
    ) -> None:
        super().__init__(generator, latent_dim)
        if critic_steps < 1:
            raise ValueError(f"critic_steps must be at least 1 (got {critic_steps})")
        self.critic = critic
        self.regularizer = Regularizer() if regularizer is None else regularizer
        if not isinstance(self.regularizer, Regularizer):
            raise TypeError(
                "regularizer must be a fastgen.models.Regularizer, such as GradientPenalty(10), or "
                f"None (got {regularizer!r})"
            )
        self.critic_steps = critic_steps
        self.regularizer.prepare(critic)

    @classmethod
    def for_images(
        cls,
        image_shape: Sequence[int],
        *,
        latent_dim: int = 64,
        width: int = 64,
        regularizer: Regularizer | None = GradientPenalty(10.0),  # noqa: B008 (frozen)
        critic_steps: int = 5,
    ) -> WGAN:
        """A Wasserstein GAN of the library's own networks, for images (C, H, W) in [-1, 1]."""
        generator = Generator(latent_dim, image_shape, width=width)
        critic = Critic(image_shape, width=width)
        return cls(
            generator,
            critic,
            latent_dim=latent_dim,
            regularizer=regularizer,
            critic_steps=critic_steps,
        )

    def value(self, x: Tensor, z: Tensor) -> Tensor:
        """The gap mean f(x) - mean f(G(z)): 0-dim, differentiable in both networks."""
        return scores(self.critic, x).mean() - scores(self.critic, self.decode(z)).mean()

    def critic_loss(self, x: Tensor, z: Tensor) -> Tensor:
        """What the critic minimizes, penalty included; no gradient reaches the generator."""
        return self._critic_losses(x, z)["loss"]

    def generator_loss(self, z: Tensor) -> Tensor:
        """What the generator minimizes: -mean f(G(z))."""
        return -scores(self.critic, self._handed_on(z)).mean()

    def phases(self) -> list[Phase]:
        """``"critic"``, `critic_steps` times, then ``"generator"``."""
        critic = Phase(
            "critic",
            trainable(self.critic),
            self._critic_phase,
            repeats=self.critic_steps,
            after_step=partial(self.regularizer.after_step, self.critic),
        )
        return [critic, Phase("generator", trainable(self.generator), self._generator_phase)]

    def extra_repr(self) -> str:
        options = f"regularizer={self.regularizer}, critic_steps={self.critic_steps}"
        return f"{super().extra_repr()}, {options}"

    def _critic_losses(self, x: Tensor, z: Tensor) -> Losses:
        fake = self.fake(z)
        of_real, of_fake = scores_together(self.critic, x, fake)
        gap = of_real.mean() - of_fake.mean()
        penalty = self.regularizer(self.critic, x, fake)
        if penalty is None:
            return {"loss": -gap, "gap": gap.detach()}
        return {"loss": penalty - gap, "gap": gap.detach(), "penalty": penalty.detach()}

    def _critic_phase(self, images: Tensor, labels: Tensor | None) -> Losses:
        return self._critic_losses(images, self.latent(len(images)))

    def _generator_phase(self, images: Tensor, labels: Tensor | None) -> Losses:
        return {"loss": self.generator_loss(self.latent(len(images)))}
