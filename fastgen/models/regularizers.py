"""What keeps a critic tame. A regularizer is one class that fills in the moments it needs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import spectral_norm

from .scores import input_gradient, norms, scores, zero_centered_penalty


class Regularizer:
    """The three moments at which a critic can be regularized.

    Each does nothing unless a subclass says otherwise.
    """

    def prepare(self, critic: nn.Module) -> None:
        """Once, when the model is built."""

    def __call__(self, critic: nn.Module, real: Tensor, fake: Tensor) -> Tensor | None:
        """In every loss of the critic: a 0-dim penalty to add, or None."""
        return None

    def after_step(self, critic: nn.Module) -> None:
        """After every update of the critic."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"


@dataclass(frozen=True)
class GradientPenalty(Regularizer):
    r"""A slope of 1 between real and generated images [Gulrajani et al. 2017, eq. 3].

    .. math:: \mathrm{weight} \cdot \frac1n \sum_i \big(|\nabla f(\hat x_i)| - 1\big)^2,
        \qquad \hat x_i = u_i x_i + (1 - u_i)\, G(z_i)

    u_i is uniform in [0, 1], one for each pair. The best critic between two distributions has slope
    1 almost everywhere on such lines (their proposition 1), so the penalty asks for exactly that.
    """

    weight: float = 10.0

    def __post_init__(self) -> None:
        _require(
            self.weight >= 0,
            f"the weight of a gradient penalty must be 0 or more (got {self.weight})",
        )

    def __call__(self, critic: nn.Module, real: Tensor, fake: Tensor) -> Tensor:
        if real.shape != fake.shape:
            raise ValueError(
                "the gradient penalty lies on lines between real and generated images, "
                "so both batches must have one shape "
                f"(got {tuple(real.shape)} and {tuple(fake.shape)})"
            )
        u = torch.rand(len(real), *[1] * (real.dim() - 1), device=real.device, dtype=real.dtype)
        between = torch.lerp(fake.detach().to(real.dtype), real.detach(), u).requires_grad_()
        slopes = norms(input_gradient(scores(critic, between), between))
        return self.weight * (slopes - 1).square().mean()


@dataclass(frozen=True)
class R1(Regularizer):
    """gamma / 2 * mean |grad f(x_i)|^2 at real images [Mescheder et al. 2018, eq. 9].

    At the equilibrium a critic has no reason to slope where the data is; this takes the slope away.
    """

    gamma: float

    def __post_init__(self) -> None:
        _require(self.gamma >= 0, f"gamma must be 0 or more (got {self.gamma})")

    def __call__(self, critic: nn.Module, real: Tensor, fake: Tensor) -> Tensor:
        images = real.detach().requires_grad_()
        return zero_centered_penalty(self.gamma, scores(critic, images), images)


@dataclass(frozen=True)
class R2(R1):
    """gamma / 2 * mean |grad f(G(z_i))|^2 at generated images [Mescheder et al. 2018, eq. 10].

    :class:`R1` on the other side of the game.
    """

    def __call__(self, critic: nn.Module, real: Tensor, fake: Tensor) -> Tensor:
        return super().__call__(critic, fake, real)


@dataclass(frozen=True)
class WeightClipping(Regularizer):
    """Every weight within [-limit, limit], clamped after each step [Arjovsky et al. 2017, alg. 1].

    Bounded weights bound the Lipschitz constant K, at some unknown value: the critic's gap is then
    at most K W1.
    """

    limit: float = 0.01

    def __post_init__(self) -> None:
        _require(
            self.limit > 0, f"the limit of weight clipping must be positive (got {self.limit})"
        )

    @torch.no_grad()
    def after_step(self, critic: nn.Module) -> None:
        for parameter in critic.parameters():
            parameter.clamp_(-self.limit, self.limit)


@dataclass(frozen=True)
class SpectralNorm(Regularizer):
    """Every convolution and linear layer over its largest singular value [Miyato et al. 2018].

    That value, of the weight as a matrix of outputs by everything else, is tracked by one power
    iteration at each forward pass in training mode
    (`torch.nn.utils.parametrizations.spectral_norm`), in float32 also under autocast. Layers whose
    weight already is parametrized stay as they are.
    """

    def prepare(self, critic: nn.Module) -> None:
        layers = [module for module in critic.modules() if isinstance(module, NORMALIZED_LAYERS)]
        _require(bool(layers), "SpectralNorm found no convolution or linear layer in the critic")
        for layer in layers:
            if not parametrize.is_parametrized(layer, "weight"):
                spectral_norm(layer)
                chain = cast(nn.ModuleList, cast(nn.ModuleDict, layer.parametrizations)["weight"])
                chain[0] = _OutsideAutocast(chain[0])


class _OutsideAutocast(nn.Module):
    """Runs a parametrization at full precision: bfloat16 is off in the third digit."""

    def __init__(self, parametrization: nn.Module) -> None:
        super().__init__()
        self.parametrization = parametrization

    def forward(self, weight: Tensor) -> Tensor:
        with torch.autocast(weight.device.type, enabled=False):
            normalized: Tensor = self.parametrization(weight)
        return normalized


NORMALIZED_LAYERS = (
    nn.Linear,
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
)

REGULARIZERS: dict[str, Callable[..., Regularizer | None]] = {
    "gradient_penalty": GradientPenalty,
    "weight_clipping": WeightClipping,
    "spectral_norm": SpectralNorm,
    "none": lambda: None,
}
"""The regularizers of a Wasserstein GAN by name; called without argument, at published settings."""


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)
