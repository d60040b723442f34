"""The two networks of the lecture, from the image up and from the top down, and their heads."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from math import prod, sqrt
from typing import Any, cast

from torch import Tensor, nn

from fastgen.nn import ConvLeakyReLU2d, ConvTransposeLeakyReLU2d, LinearLeakyReLU

from .pyramid import KERNEL, PADDING, STRIDE, pyramid

OUTPUTS: dict[str, dict[str, Any]] = {
    "tanh": {"negative_slope": 1.0, "tanh": True},
    "linear": {"negative_slope": 1.0},
}
"""What a top-down network does to its last map: keep images in [-1, 1], or set no bounds."""


class BottomUp(nn.Module):
    r"""The bottom-up network: from an image, stage by stage, to ever more complex thought vectors.

    .. math:: h^d_{ij} = \mathrm{leakyReLU}\Big(\sum_{\Delta i, \Delta j} w^d_{\Delta i, \Delta j}\,
              h^{d-1}_{i + \Delta i, j + \Delta j} + b^d\Big)

    Every stage is a 4x4 convolution of stride 2 with bias and leaky ReLU: it halves the image and
    doubles the channels (width, 2 width, 4 width ... at most 8 width), and its features see patches
    of 4, 10, 22, 46 ... pixels.

    Weights start as N(0, 2 / ((1 + slope^2) fan_in)) and biases at 0 [He et al. 2015, eq. 15]: then
    every stage hands on the variance it receives, so nothing fades or explodes through the layers
    and no normalization is needed.

    Args:
        image_shape: (C, H, W) of the images, C from 1 to 4; :func:`~fastgen.models.pyramid.pyramid`
            says which sizes.
        width: channels of the first stage.
        negative_slope: of the leaky ReLU, in [0, 1].

    Shape:
        images (N, C, H, W), values in [-1, 1] -> features (N, `features`). The top map is flattened
        channels last, which copies nothing when the images are channels_last.
    """

    def __init__(
        self, image_shape: Sequence[int], *, width: int = 64, negative_slope: float = 0.2
    ) -> None:
        super().__init__()
        plan = pyramid(image_shape, width)
        self.image_shape = tuple(image_shape)
        self.stages = nn.Sequential(
            *(
                ConvLeakyReLU2d(
                    below, above, KERNEL, STRIDE, PADDING, negative_slope=negative_slope
                )
                for below, above in pairwise((image_shape[0], *plan.channels))
            )
        )
        self.features: int = plan.channels[-1] * prod(plan.top)
        self.apply(he_normal_)

    def thought_vectors(self, x: Tensor) -> list[Tensor]:
        """The features (N, channels, height, width) of every stage, the deepest last."""
        self._check(x)
        thoughts = []
        for stage in self.stages:
            x = stage(x)
            thoughts.append(x)
        return thoughts

    def forward(self, x: Tensor) -> Tensor:
        self._check(x)
        top: Tensor = self.stages(x)
        return top.permute(0, 2, 3, 1).flatten(1)

    def _check(self, x: Tensor) -> None:
        if x.shape[1:] != self.image_shape:
            expected = ", ".join(map(str, self.image_shape))
            raise ValueError(
                f"{type(self).__name__} takes images of shape (N, {expected}) "
                f"(got {tuple(x.shape)})"
            )


class TopDown(nn.Module):
    r"""The top-down network: from a latent z ~ N(0, I) at the top, stage by stage, to an image.

    .. math:: h^L = z, \qquad h^l = \mathrm{leakyReLU}\big(w^l \star h^{l+1} + b^l\big)

    A linear layer spreads z over the top map; then every stage is a 4x4 transposed convolution of
    stride 2 with bias and leaky ReLU, the mirror image of :class:`BottomUp`. The last one has no
    leaky ReLU but `output`.

    Weights start as in :class:`BottomUp`, where the fan-in of a transposed convolution counts what
    reaches one pixel: a quarter of its window, since the stride inserts zeros.

    Args:
        latent_dim: length of z.
        image_shape: (C, H, W) of the images; :func:`~fastgen.models.pyramid.pyramid` says which
            sizes.
        width: channels of the stage next to the image.
        negative_slope: of the leaky ReLU, in [0, 1].
        output: ``"tanh"`` (images in [-1, 1]) or ``"linear"``.

    Shape:
        z (N, latent_dim) -> images (N, C, H, W). The top map is born channels_last, for free, and
        so are the images.
    """

    def __init__(
        self,
        latent_dim: int,
        image_shape: Sequence[int],
        *,
        width: int = 64,
        negative_slope: float = 0.2,
        output: str = "tanh",
    ) -> None:
        super().__init__()
        if output not in OUTPUTS:
            raise ValueError(f"output must be one of {', '.join(OUTPUTS)} (got {output!r})")
        _check_latent(latent_dim)
        plan = pyramid(image_shape, width)
        self.latent_dim, self.image_shape, self.output = latent_dim, tuple(image_shape), output
        self.top_shape = (*plan.top, plan.channels[-1])
        self.top = LinearLeakyReLU(latent_dim, prod(self.top_shape), negative_slope=negative_slope)
        channels = (*reversed(plan.channels), image_shape[0])
        activations = [{"negative_slope": negative_slope}] * (len(plan.channels) - 1)
        self.stages = nn.Sequential(
            *(
                ConvTransposeLeakyReLU2d(above, below, KERNEL, STRIDE, PADDING, **activation)
                for (above, below), activation in zip(
                    pairwise(channels), [*activations, OUTPUTS[output]], strict=True
                )
            )
        )
        self.apply(he_normal_)

    def thought_vectors(self, z: Tensor) -> list[Tensor]:
        """The features (N, channels, height, width) of the top map and of every stage below it,
        except the last, which makes the image.
        """
        thoughts = [self._top_map(z)]
        for stage in list(self.stages)[:-1]:
            thoughts.append(stage(thoughts[-1]))
        return thoughts

    def forward(self, z: Tensor) -> Tensor:
        image: Tensor = self.stages(self._top_map(z))
        return image

    def extra_repr(self) -> str:
        return f"output={self.output!r}"

    def _top_map(self, z: Tensor) -> Tensor:
        if z.shape[1:] != (self.latent_dim,):
            raise ValueError(
                f"{type(self).__name__} takes latents of shape (N, {self.latent_dim}) "
                f"(got {tuple(z.shape)})"
            )
        top: Tensor = self.top(z)
        return top.view(z.shape[0], *self.top_shape).permute(0, 3, 1, 2)


Generator = TopDown
Decoder = TopDown


class Discriminator(BottomUp):
    """The logit of the probability that an image is real: (N, C, H, W) -> (N,).

    D(x) = Pr(y = 1 | x) = sigmoid(logit). Arguments as in :class:`BottomUp`.
    """

    def __init__(
        self, image_shape: Sequence[int], *, width: int = 64, negative_slope: float = 0.2
    ) -> None:
        super().__init__(image_shape, width=width, negative_slope=negative_slope)
        self.head = linear_head(self.features, 1)

    def forward(self, x: Tensor) -> Tensor:
        score: Tensor = self.head(super().forward(x))
        return score.squeeze(1)


class Critic(Discriminator):
    """An unbounded score f(x), high for what looks real: (N, C, H, W) -> (N,).

    The network of a :class:`Discriminator`; what differs is what its number means and how it is
    trained.
    """


def scores_alone(network: nn.Module) -> bool:
    """Whether an image's score is known to depend on that image only: in a network of the
    library's own to which nobody has added batch normalization.
    """
    return type(network) in (Discriminator, Critic) and not any(
        isinstance(module, nn.modules.batchnorm._BatchNorm) for module in network.modules()
    )


class Encoder(BottomUp):
    """The mean M(x) of an image's latent and, if stochastic, the logarithm of its variance tau^2.

    Args:
        image_shape, width, negative_slope: as in :class:`BottomUp`.
        latent_dim: length of the latent.
        stochastic: whether the variance depends on the image.

    Shape:
        images (N, C, H, W) -> (mu, logvar), each (N, latent_dim); with ``stochastic=False`` mu
        alone.
    """

    def __init__(
        self,
        image_shape: Sequence[int],
        latent_dim: int,
        *,
        width: int = 64,
        negative_slope: float = 0.2,
        stochastic: bool = True,
    ) -> None:
        _check_latent(latent_dim)
        super().__init__(image_shape, width=width, negative_slope=negative_slope)
        self.stochastic = stochastic
        self.head = linear_head(self.features, 2 * latent_dim if stochastic else latent_dim)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:  # type: ignore[override]
        code: Tensor = self.head(super().forward(x))
        if not self.stochastic:
            return code
        mu, logvar = code.chunk(2, dim=1)
        return mu, logvar


def _check_latent(latent_dim: int) -> None:
    if latent_dim < 1:
        raise ValueError(f"latent_dim must be at least 1 (got {latent_dim})")


def linear_head(features: int, outputs: int) -> LinearLeakyReLU:
    """A linear layer without activation, initialized like the network below it."""
    head = LinearLeakyReLU(features, outputs, negative_slope=1.0)
    he_normal_(head)
    return head


def he_normal_(layer: nn.Module) -> None:
    """Initialize a layer with leaky ReLU: weights N(0, 2 / ((1 + slope^2) fan_in)), biases 0.

    fan_in counts the products that are summed into one output. In a transposed convolution each
    output pixel meets 1 / stride^2 of the window. Modules of other kinds are left alone.
    """
    if isinstance(layer, nn.ConvTranspose2d):
        fan_in = layer.weight[:, 0].numel() / prod(layer.stride)
    elif isinstance(layer, (nn.Conv2d, nn.Linear)):
        fan_in = layer.weight[0].numel()
    else:
        return
    slope = cast(float, layer.negative_slope)
    nn.init.normal_(layer.weight, std=sqrt(2 / ((1 + slope**2) * fan_in)))
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
