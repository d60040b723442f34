"""Penalties of a linear critic f(x) = w . x, with their exact gradients in w."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from fastgen.models import GAN, R1, R2, WGAN, GradientPenalty
from fastgen.nn import LinearLeakyReLU

SHAPES = [(), (1,), (2,), (17,), (1, 8, 8), (3, 5, 7)]


class Linear(nn.Module):
    """f(x) = w . x for samples of any shape, scalars too."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)

    def forward(self, x: Tensor) -> Tensor:
        return (x * self.weight).reshape(len(x), -1).sum(1)


def case(shape: tuple[int, ...], seed: int, n: int = 6) -> tuple[Linear, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    real, fake = torch.randn(2, n, *shape, generator=generator, dtype=torch.float64)
    return Linear(torch.randn(shape, generator=generator, dtype=torch.float64)), real, fake


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("weight", [10.0, 0.3])
def test_the_gradient_penalty_is_lambda_times_the_squared_excess_of_the_norm(
    shape: tuple[int, ...], seed: int, weight: float
) -> None:
    """lambda (|w| - 1)^2, with the gradient 2 lambda (|w| - 1) w / |w|."""
    critic, real, fake = case(shape, seed)
    penalty = GradientPenalty(weight)(critic, real, fake)
    (gradient,) = torch.autograd.grad(penalty, critic.weight)
    w = critic.weight.detach()
    norm = w.square().sum().sqrt()
    torch.testing.assert_close(penalty.detach(), weight * (norm - 1) ** 2)
    torch.testing.assert_close(gradient, 2 * weight * (norm - 1) * w / norm)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("kind", [R1, R2])
def test_zero_centered_penalties_are_gamma_over_2_times_the_squared_norm(
    shape: tuple[int, ...], seed: int, kind: type[R1]
) -> None:
    """gamma / 2 |w|^2, with the gradient gamma w."""
    critic, real, fake = case(shape, seed)
    penalty = kind(0.7)(critic, real, fake)
    (gradient,) = torch.autograd.grad(penalty, critic.weight)
    w = critic.weight.detach()
    torch.testing.assert_close(penalty.detach(), 0.35 * w.square().sum())
    torch.testing.assert_close(gradient, 0.7 * w)


@pytest.mark.parametrize("shape", SHAPES)
def test_inside_the_models_the_penalties_are_the_same(shape: tuple[int, ...]) -> None:
    critic, real, fake = case(shape, 3)
    square = critic.weight.detach().square().sum()

    gan = GAN(nn.Identity(), critic, latent_dim=shape or 1, r1=0.3, r2=0.5)
    losses = gan.phases()[0].loss(real, None)
    torch.testing.assert_close(losses["r1"], 0.15 * square)
    torch.testing.assert_close(losses["r2"], 0.25 * square)

    wgan = WGAN(nn.Identity(), critic, latent_dim=shape or 1, regularizer=GradientPenalty(5.0))
    loss = wgan.critic_loss(real, fake)
    (gradient,) = torch.autograd.grad(loss, critic.weight)
    w = critic.weight.detach()
    from_penalty = 10 * (1 - 1 / square.sqrt()) * w
    torch.testing.assert_close(gradient, from_penalty - (real.mean(0) - fake.mean(0)))


@pytest.mark.parametrize("features", [1, 8])
def test_the_librarys_linear_layer_has_the_same_penalty(features: int) -> None:
    critic = LinearLeakyReLU(features, 1, negative_slope=1.0).double()
    _, real, fake = case((features,), 0)
    penalty = GradientPenalty(10.0)(critic, real, fake)
    (gradient,) = torch.autograd.grad(penalty, critic.weight)
    w = critic.weight.detach()
    torch.testing.assert_close(penalty.detach(), 10 * (w.norm() - 1) ** 2)
    torch.testing.assert_close(gradient, 20 * (w.norm() - 1) * w / w.norm())
