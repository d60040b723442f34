"""The two standard deviations of a VAE: sigma of the pixels given z, tau of z given the image.

Each has a table of its kinds; a number stands for a fixed one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import log
from typing import Self

import torch
from torch import Tensor, nn

from .autoencoder import checked_code
from .scores import HALF_PRECISIONS, at_least_float32


class FixedSigma(nn.Module):
    """sigma is a given number."""

    def __init__(self, sigma: float) -> None:
        super().__init__()
        self.sigma = _positive("sigma", sigma)

    def forward(self, squared_error: Tensor) -> Tensor:
        """sigma^2 as a 0-dim tensor, given the batch's mean squared error per pixel."""
        return self.variance(squared_error)

    def variance(self, like: Tensor) -> Tensor:
        """sigma^2 outside the training, in the dtype and on the device of `like`."""
        return like.new_full((), self.sigma**2)

    def extra_repr(self) -> str:
        return f"{self.sigma}"


class LearnedSigma(nn.Module):
    """sigma is one parameter, log_sigma, learned with the networks.

    It starts at sigma = 0.5, a quarter of the range of a pixel.
    """

    def __init__(self) -> None:
        super().__init__()
        self.log_sigma = nn.Parameter(torch.tensor(log(0.5)))

    def forward(self, squared_error: Tensor) -> Tensor:
        return self.variance(squared_error)

    def variance(self, like: Tensor) -> Tensor:
        return at_least_float32(2 * self.log_sigma).exp()


class OptimalSigma(nn.Module):
    """sigma^2 is the likeliest one, the mean squared error per pixel [Rybkin et al. 2021].

    In training mode that of the batch, as a constant: there the batch's likelihood is level in
    sigma, so the networks' gradient is the same as if sigma were differentiated too. In evaluation
    mode a running estimate, kept in two buffers: a mean of the training batches in which each older
    batch counts 0.99 of the next, and the weight gathered. Before any training it is 1. The buffers
    stay float32 in a model of 16-bit weights, where a hundredth of a difference would be lost.
    """

    decay = 0.99
    running_squared_error: Tensor
    running_weight: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("running_squared_error", torch.zeros(()))
        self.register_buffer("running_weight", torch.zeros(()))

    def forward(self, squared_error: Tensor) -> Tensor:
        if not self.training:
            return self.variance(squared_error)
        error = squared_error.detach()
        self.running_squared_error.lerp_(error.to(self.running_squared_error.dtype), 1 - self.decay)
        self.running_weight.lerp_(torch.ones_like(self.running_weight), 1 - self.decay)
        return _positive_variance(error)

    def variance(self, like: Tensor) -> Tensor:
        weight = at_least_float32(self.running_weight)
        error = at_least_float32(self.running_squared_error)
        return _positive_variance(torch.where(weight > 0, error / weight, 1.0))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        def apply(buffer: Tensor) -> Tensor:
            result = fn(buffer)
            return buffer.to(result.device) if result.dtype in HALF_PRECISIONS else result

        super()._apply(apply, recurse)  # type: ignore[no-untyped-call]
        return self


def _positive_variance(squared_error: Tensor) -> Tensor:
    # A perfect reconstruction has an infinite density; the smallest normal number keeps it finite.
    return squared_error.clamp_min(torch.finfo(squared_error.dtype).tiny)


class AmortizedTau(nn.Module):
    """tau depends on the image: the encoder returns (mu, logvar) with logvar = log tau^2."""

    def __init__(self, latent_shape: tuple[int, ...]) -> None:
        super().__init__()
        self.latent_shape = latent_shape

    def forward(self, code: object, n: int) -> tuple[Tensor, Tensor]:
        """(mu, logvar), each (n, \\*latent_shape), from what the encoder returned for n images."""
        if not isinstance(code, Sequence) or len(code) != 2:
            raise ValueError(
                'with tau="amortized" the encoder must return (mu, logvar) '
                f"(got {type(code).__name__})"
            )
        mu, logvar = (checked_code(part, n, self.latent_shape) for part in code)
        return mu, logvar


class LearnedTau(nn.Module):
    """tau is one parameter for each latent dimension; the encoder returns mu."""

    def __init__(self, latent_shape: tuple[int, ...]) -> None:
        super().__init__()
        self.log_tau = nn.Parameter(torch.zeros(latent_shape))

    def forward(self, code: object, n: int) -> tuple[Tensor, Tensor]:
        mu = checked_code(code, n, tuple(self.log_tau.shape))
        return mu, at_least_float32(2 * self.log_tau).expand_as(mu)


class FixedTau(nn.Module):
    """tau is a given number; the encoder returns mu."""

    def __init__(self, tau: float, latent_shape: tuple[int, ...]) -> None:
        super().__init__()
        self.tau, self.latent_shape = _positive("tau", tau), latent_shape

    def forward(self, code: object, n: int) -> tuple[Tensor, Tensor]:
        mu = checked_code(code, n, self.latent_shape)
        return mu, torch.full_like(mu, 2 * log(self.tau))

    def extra_repr(self) -> str:
        return f"{self.tau}"


SigmaKind = FixedSigma | LearnedSigma | OptimalSigma
TauKind = FixedTau | LearnedTau | AmortizedTau

SIGMAS: dict[str, Callable[[], SigmaKind]] = {"learned": LearnedSigma, "optimal": OptimalSigma}
TAUS: dict[str, Callable[[tuple[int, ...]], TauKind]] = {
    "amortized": AmortizedTau,
    "learned": LearnedTau,
}


def make_sigma(sigma: float | str) -> SigmaKind:
    """The kind of sigma that a name or a number stands for."""
    if not isinstance(sigma, str):
        return FixedSigma(sigma)
    _known("sigma", sigma, SIGMAS)
    return SIGMAS[sigma]()


def make_tau(tau: float | str, latent_shape: tuple[int, ...]) -> TauKind:
    """The kind of tau that a name or a number stands for."""
    if not isinstance(tau, str):
        return FixedTau(tau, latent_shape)
    _known("tau", tau, TAUS)
    return TAUS[tau](latent_shape)


def _positive(name: str, value: float) -> float:
    if not 0 < value < float("inf"):
        raise ValueError(f"{name} must be a positive number (got {value})")
    return float(value)


def _known(name: str, value: str, kinds: Mapping[str, object]) -> None:
    if value not in kinds:
        names = ", ".join(repr(kind) for kind in kinds)
        raise ValueError(f"{name} must be {names} or a positive number (got {value!r})")
