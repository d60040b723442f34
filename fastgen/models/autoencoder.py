"""The autoencoder."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from .base import LatentModel, evaluation
from .networks import Decoder, Encoder
from .phase import Losses, Phase, trainable
from .scores import at_least_float32, fed


class Autoencoder(LatentModel):
    r"""An encoder M and a decoder G that put images through a bottleneck:

    .. math:: \min_{\theta, \phi} \frac1n \sum_i |x_i - G_\theta(M_\phi(x_i))|^2

    with z = M(x) of much lower dimension than x: the manifold assumption says that real images lie
    near a surface of few dimensions, which z then parametrizes. With linear networks this is
    principal component analysis.

    Args:
        encoder: any module from images (n, ...) to codes (n, \*latent_shape).
        decoder: any module from codes to images.
        latent_dim: length of a code, or its shape.
    """

    def __init__(
        self, encoder: nn.Module, decoder: nn.Module, *, latent_dim: int | Sequence[int]
    ) -> None:
        super().__init__(latent_dim)
        self.encoder, self.decoder = encoder, decoder

    @classmethod
    def for_images(
        cls, image_shape: Sequence[int], *, latent_dim: int = 32, width: int = 64
    ) -> Autoencoder:
        """An autoencoder of the library's own networks, for images (C, H, W) in [-1, 1]."""
        encoder = Encoder(image_shape, latent_dim, width=width, stochastic=False)
        return cls(encoder, Decoder(latent_dim, image_shape, width=width), latent_dim=latent_dim)

    def encode(self, x: Tensor) -> Tensor:
        """The codes M(x), shape (n, \\*latent_shape), float32 or wider; differentiable."""
        return checked_code(self.encoder(fed(self.encoder, x)), len(x), self.latent_shape)

    def decode(self, z: Tensor) -> Tensor:
        """The images G(z), float32 or wider; differentiable."""
        return at_least_float32(self.decoder(fed(self.decoder, z)))

    def forward(self, x: Tensor) -> Tensor:
        return self.decode(self.encode(x))

    def reconstruct(self, x: Tensor) -> Tensor:
        """G(M(x)) in evaluation mode and without gradients."""
        with evaluation(self):
            return self(x)  # type: ignore[no-any-return]

    def loss(self, x: Tensor) -> Tensor:
        """mean_i |x_i - G(M(x_i))|^2, summed over the pixels and averaged over the images."""
        return squared_errors(x, self(x)).mean()

    def phases(self) -> list[Phase]:
        """``"autoencoder"``; logs the loss per pixel too."""
        return [Phase("autoencoder", trainable(self), self._phase)]

    def _phase(self, images: Tensor, labels: Tensor | None) -> Losses:
        loss = self.loss(images)
        return {"loss": loss, "per_pixel": loss.detach() / images.shape[1:].numel()}


def checked_code(code: object, n: int, latent_shape: tuple[int, ...]) -> Tensor:
    """A code in float32 or wider; a ValueError unless it is a tensor (n, \\*latent_shape)."""
    if not isinstance(code, Tensor) or code.shape != (n, *latent_shape):
        got = tuple(code.shape) if isinstance(code, Tensor) else f"a {type(code).__name__}"
        raise ValueError(
            f"the encoder must return one tensor of shape {(n, *latent_shape)} (got {got})"
        )
    return at_least_float32(code)


def squared_errors(x: Tensor, reconstruction: Tensor) -> Tensor:
    """|x_i - reconstruction_i|^2 of every image, shape (n,), float32 or wider."""
    if x.shape != reconstruction.shape:
        raise ValueError(
            f"the decoder must return images of shape {tuple(x.shape)} "
            f"(got {tuple(reconstruction.shape)})"
        )
    squares = (at_least_float32(x) - reconstruction).square().unsqueeze(-1)
    return squares.sum(tuple(range(1, squares.dim())))
