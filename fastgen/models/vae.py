"""Variational autoencoders."""

from __future__ import annotations

from collections.abc import Sequence
from math import log, log2, pi, prod
from typing import TypeVar

import torch
from torch import Tensor, nn

from fastgen.ops import reparameterize, reparameterize_kl

from .autoencoder import squared_errors
from .base import GenerativeModel, evaluation
from .networks import Decoder, Encoder
from .noise import make_sigma, make_tau
from .phase import Losses, Phase, trainable
from .scores import at_least_float32, fed

Number = TypeVar("Number", Tensor, float)

PAIRS_AT_ONCE = 256
"""How many (image, latent) pairs `log_likelihood` decodes together: what bounds its memory."""


class VAE(GenerativeModel):
    r"""A probabilistic decoder and an encoder that nearly inverts it [Kingma & Welling 2014]:

    .. math:: z \sim N(0, I), \quad x = G(z) + \epsilon, \; \epsilon \sim N(0, \sigma^2 I), \qquad
        q(z | x) = N(M(x), \tau^2), \quad z = M(x) + \tau e, \; e \sim N(0, I)

    .. math:: \max \frac1n \sum_i
        \Big[\log p(x_i) - D_{KL}\big(q(z | x_i) \,\|\, p(z | x_i)\big)\Big]

    The bracket is the evidence lower bound, computed as E log p(x | z) - KL(q(z | x) || p(z)) with
    one draw of z for each image. Everything is in nats per image and keeps its constants, so it
    compares with other densities.

    Args:
        encoder: any module from images (n, ...) to (mu, logvar), each (n, \*latent_shape); for a
            tau that does not depend on the image, to mu alone.
        decoder: any module from z (n, \*latent_shape) to images.
        latent_dim: length of z, or its shape.
        sigma: standard deviation of a pixel given z: ``"learned"`` (one parameter), ``"optimal"``
            (the root mean squared error, see :class:`~fastgen.models.noise.OptimalSigma`), or a
            number.
        tau: standard deviation of z given the image: ``"amortized"`` (the encoder says),
            ``"learned"`` (one parameter for each latent dimension), or a number.

    Losses are float32 or wider, also under autocast and with weights in bfloat16 or float16.
    """

    def __init__(
        self,
        encoder: nn.Module,
        decoder: nn.Module,
        *,
        latent_dim: int | Sequence[int],
        sigma: float | str = "learned",
        tau: float | str = "amortized",
    ) -> None:
        super().__init__(latent_dim)
        self.encoder, self.decoder = encoder, decoder
        self.pixel_noise = make_sigma(sigma)
        self.latent_noise = make_tau(tau, self.latent_shape)

    @classmethod
    def for_images(
        cls,
        image_shape: Sequence[int],
        *,
        latent_dim: int = 32,
        width: int = 64,
        sigma: float | str = "learned",
        tau: float | str = "amortized",
    ) -> VAE:
        """A VAE with the library's own networks for images of shape (C, H, W) in [-1, 1]."""
        encoder = Encoder(image_shape, latent_dim, width=width, stochastic=tau == "amortized")
        decoder = Decoder(latent_dim, image_shape, width=width)
        return cls(encoder, decoder, latent_dim=latent_dim, sigma=sigma, tau=tau)

    @property
    def sigma(self) -> Tensor:
        """The standard deviation of a pixel given z outside the training: a 0-dim tensor."""
        return self.pixel_noise.variance(at_least_float32(self._example())).sqrt()

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(mu, logvar) of q(z | x), each (n, \\*latent_shape), float32 or wider; differentiable."""
        return self.latent_noise(self.encoder(fed(self.encoder, x)), len(x))  # type: ignore[no-any-return]

    def decode(self, z: Tensor) -> Tensor:
        """The mean images G(z), float32 or wider; differentiable."""
        return at_least_float32(self.decoder(fed(self.decoder, z)))

    def forward(self, x: Tensor) -> Tensor:
        return self.decode(self.encode(x)[0])

    def elbo(self, x: Tensor) -> Tensor:
        """An unbiased draw of every image's evidence lower bound, (n,), nats; differentiable."""
        log_p, kl, _ = self._terms(x)
        return log_p - kl

    def log_likelihood(self, x: Tensor, samples: int = 64) -> Tensor:
        r"""The importance-weighted bound on log p(x), shape (n,), nats [Burda et al. 2016, eq. 8]:

        .. math:: L_K = \log \frac1K \sum_k \frac{p(x | z_k)\, p(z_k)}{q(z_k | x)},
            \qquad z_k \sim q(z | x)

        In expectation L_1 is the ELBO, and L_K climbs with K = `samples` towards log p(x). In
        evaluation mode and without gradients; memory does not grow with `samples` nor, beyond the
        images themselves, with n.
        """
        if samples < 1:
            raise ValueError(f"samples must be at least 1 (got {samples})")
        with evaluation(self):
            parts = [
                self._log_mean_weight(images, samples) for images in torch.split(x, PAIRS_AT_ONCE)
            ]
            return torch.cat(parts)

    def bits_per_dim(self, nats: Number, *, dimensions: int | None = None) -> Number:
        """Bits per pixel and channel of 8-bit images, from the log-density `nats` of an image.

        On the scale [-1, 1] a pixel k of 0 ... 255 stands at k / 127.5 - 1 and owns a cell of width
        1 / 127.5, so the probability of an image is its density times 127.5^-D, and -log2 of it per
        dimension is -nats / (D log 2) + log2(127.5). That takes the density for even within a cell;
        where sigma is far below 1 / 127.5 it is not, and the bits are too few, even below 0.
        `dimensions` D is taken from ``decoder.image_shape`` where the decoder has one.
        """
        if dimensions is None:
            image_shape = getattr(self.decoder, "image_shape", None)
            if image_shape is None:
                raise ValueError(
                    f"{type(self.decoder).__name__} has no image_shape: "
                    "give the dimensions C * H * W"
                )
            dimensions = prod(image_shape)
        return -nats / (dimensions * log(2)) + log2(127.5)

    def reconstruct(self, x: Tensor) -> Tensor:
        """G(M(x)), the image of the posterior mean, in evaluation mode and without gradients."""
        with evaluation(self):
            return self(x)  # type: ignore[no-any-return]

    def sample(self, n: int, *, seed: int | None = None, noise: bool = False) -> Tensor:
        """Draw n mean images G(z), z ~ N(0, I), or with `noise` images x = G(z) + sigma epsilon.

        In evaluation mode and without gradients. The same seed gives the same z with and without
        noise.
        """
        with evaluation(self):
            generator = self._generator(seed)
            images = self.decode(self._normal((n, *self.latent_shape), generator))
            if noise:
                images = images + self.sigma * self._normal(tuple(images.shape), generator)
            return images

    def phases(self) -> list[Phase]:
        """``"vae"``: loss = -mean ELBO = reconstruction + kl, nats per image; logs sigma too."""
        return [Phase("vae", trainable(self), self._phase)]

    def _phase(self, images: Tensor, labels: Tensor | None) -> Losses:
        log_p, kl, variance = self._terms(images)
        reconstruction, divergence = -log_p.mean(), kl.mean()
        return {
            "loss": reconstruction + divergence,
            "reconstruction": reconstruction.detach(),
            "kl": divergence.detach(),
            "sigma": variance.detach().sqrt(),
        }

    def _terms(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """log p(x | z) at one z ~ q(z | x) and KL(q(z | x) || p(z)), each (n,), and sigma^2."""
        z, kl = reparameterize_kl(*self.encode(x))
        errors = squared_errors(x, self.decode(z))
        variance = self.pixel_noise(errors.mean() / x.shape[1:].numel())
        return log_normal(errors, variance, x.shape[1:].numel()), kl, variance

    def _log_mean_weight(self, x: Tensor, samples: int) -> Tensor:
        mu, logvar = self.encode(x)
        dimensions = x.shape[1:].numel()
        variance = self.pixel_noise.variance(mu)
        at_once = max(1, PAIRS_AT_ONCE // max(1, len(x)))

        total = mu.new_full((len(x),), -torch.inf)
        for done in range(0, samples, at_once):
            k = min(at_once, samples - done)
            xs, mus, logvars = _repeat(x, k), _repeat(mu, k), _repeat(logvar, k)
            # By itself: of a narrow q the sum mu + noise keeps no digit of the noise.
            noise = reparameterize(torch.zeros_like(mus), logvars)
            z = mus + noise
            log_p = log_normal(squared_errors(xs, self.decode(z)), variance, dimensions)
            # log p(z) - log q(z | x) per latent dimension; the constants cancel.
            log_ratio = ((noise * (-logvars / 2).exp()).square() + logvars - z.square()) / 2
            log_weight = log_p + log_ratio.flatten(1).sum(1)
            total = torch.logaddexp(total, log_weight.view(k, len(x)).logsumexp(0))
        return total - log(samples)


def log_normal(squared_error: Tensor, variance: Tensor, dimensions: int) -> Tensor:
    """log N(x; m, variance I) in nats, from |x - m|^2 and the number of dimensions."""
    return -(squared_error / variance + dimensions * (variance.log() + log(2 * pi))) / 2


def _repeat(batch: Tensor, times: int) -> Tensor:
    return batch.repeat(times, *[1] * (batch.dim() - 1))
