"""A critic's gap against exact Wasserstein-1 distances [Kantorovich & Rubinstein 1958]."""

from __future__ import annotations

from math import pi, sqrt

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist
from scipy.stats import norm
from torch import Tensor, nn

from fastgen.models import WGAN, GradientPenalty, SpectralNorm, WeightClipping


class Shift(nn.Module):
    def __init__(self, offset: Tensor) -> None:
        super().__init__()
        self.offset = nn.Parameter(offset)

    def forward(self, z: Tensor) -> Tensor:
        return z + self.offset


class Absolute(nn.Module):
    """f(x) = |x|, of slope 1."""

    def forward(self, x: Tensor) -> Tensor:
        return x.abs()


def exact_w1(x: Tensor, y: Tensor) -> float:
    distances = cdist(x.numpy(), y.numpy())
    rows, columns = linear_sum_assignment(distances)
    return float(distances[rows, columns].mean())


def test_between_n_0_1_and_n_0_4_the_distance_is_0_797885_and_a_critic_reaches_it() -> None:
    """Quantiles 1 and 2 times those of N(0, 1): W1 = E |z| = sqrt(2 / pi)."""
    z = torch.tensor(norm.ppf((np.arange(200_001) + 0.5) / 200_001))
    x = 2 * z
    assert (x.sort()[0] - z.sort()[0]).abs().mean().item() == pytest.approx(0.797885, abs=1e-4)
    model = WGAN(nn.Identity(), Absolute(), latent_dim=1, regularizer=None)
    assert model.value(x, z).item() == pytest.approx(sqrt(2 / pi), abs=1e-4)


def lipschitz_bound(critic: nn.Module) -> float:
    """The product of the layers' largest singular values; ReLU has slope at most 1."""
    layers = [m for m in critic.modules() if isinstance(m, nn.Linear)]
    return float(np.prod([torch.linalg.matrix_norm(m.weight, 2).item() for m in layers]))


def mlp() -> nn.Sequential:
    return nn.Sequential(nn.Linear(2, 16), nn.LeakyReLU(0.2), nn.Linear(16, 1))


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("regularizer", [None, WeightClipping(0.1), SpectralNorm()])
def test_a_trained_critics_gap_over_its_lipschitz_constant_never_exceeds_the_distance(
    seed: int, regularizer: WeightClipping | SpectralNorm | None
) -> None:
    torch.manual_seed(seed)
    x, z = torch.randn(64, 2) * torch.tensor([1.0, 2.0]) + 1, torch.randn(64, 2)
    model = WGAN(nn.Identity(), mlp(), latent_dim=2, regularizer=regularizer)
    after_step = model.phases()[0].after_step
    assert after_step is not None
    distance = exact_w1(x, z)
    optimizer = torch.optim.Adam(model.critic.parameters(), 0.02)

    ratios = []
    for _ in range(40):
        optimizer.zero_grad()
        model.critic_loss(x, z).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        after_step()
        model.critic.eval()
        ratios.append(model.value(x, z).item() / lipschitz_bound(model.critic) / distance)
        model.critic.train()
    assert max(ratios) <= 1 + 1e-5
    assert ratios[-1] > max(ratios[0], 0.3)  # it learned something: the bound is not empty


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("dimensions", [1, 2, 5])
@pytest.mark.parametrize("weight", [10.0, 2.0])
def test_the_best_linear_critic_under_a_gradient_penalty_measures_a_shift_exactly(
    seed: int, dimensions: int, weight: float
) -> None:
    """max w . d - weight (|w| - 1)^2 lies at w = (1 + |d| / (2 weight)) d / |d|.

    There the gap over the slope |w| is |d|, the distance between a sample and its shift by d.
    """
    torch.manual_seed(seed)
    offset = torch.randn(dimensions, dtype=torch.float64)
    z = torch.randn(40, dimensions, dtype=torch.float64)
    x, distance = z + offset, offset.norm().item()
    critic = nn.Linear(dimensions, 1, dtype=torch.float64)
    with torch.no_grad():  # start on the data's side: in one dimension each side has an optimum
        critic.weight.copy_(critic.weight.abs() * offset.sign())
    generator = Shift(torch.zeros(dimensions, dtype=torch.float64))
    penalty = GradientPenalty(weight)
    model = WGAN(generator, critic, latent_dim=dimensions, regularizer=penalty)
    optimizer = torch.optim.LBFGS(
        [critic.weight], max_iter=200, tolerance_grad=1e-12, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = model.critic_loss(x, z)
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    slope = critic.weight.detach().norm().item()
    assert slope == pytest.approx(1 + distance / (2 * weight), rel=1e-5)
    assert model.value(x, z).item() / slope == pytest.approx(exact_w1(x, z), rel=1e-5)

    # And the generator's gradient points from its images to the data, at the critic's slope.
    (gradient,) = torch.autograd.grad(model.generator_loss(z), generator.offset)
    torch.testing.assert_close(-gradient, slope * offset / distance, rtol=1e-4, atol=1e-5)
