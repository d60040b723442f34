"""The Dirac-GAN [Mescheder, Geiger & Nowozin 2018]: data at 0, generator theta, D(x) = psi x.

Near (0, 0) one step of simultaneous gradient descent, of size h, is the matrix

    theta' = theta + h a psi            a = 1/2 where the loss bends (its slope at logit 0),
    psi'   = psi - h (a theta + gamma psi)        1 where it does not; gamma of R1 and R2 together

whose spectral radius tells whether the game spirals in or out.
"""

from __future__ import annotations

from math import sqrt

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fastgen.models import GAN, WGAN, Model


class Theta(nn.Module):
    """Every image is theta, whatever z."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.theta = nn.Parameter(torch.zeros((), dtype=torch.float64))
        self.shape = shape

    def forward(self, z: Tensor) -> Tensor:
        return self.theta.expand(len(z), *self.shape)


class Psi(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.psi = nn.Parameter(torch.zeros((), dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return self.psi * x


def step(model: Model, point: np.ndarray, h: float, shape: tuple[int, ...]) -> np.ndarray:
    """One simultaneous step over the model's own phases: all gradients first, then all updates."""
    values = {"theta": point[0], "psi": point[1]}
    parameters = {name.split(".")[-1]: p for name, p in model.named_parameters()}
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.fill_(values[name])
    data = torch.zeros(3, *shape, dtype=torch.float64)
    updates = []
    for phase in model.phases():
        loss = phase.loss(data, None)["loss"]
        updates.append((phase.parameters, torch.autograd.grad(loss, phase.parameters)))
    with torch.no_grad():
        for moved, gradients in updates:
            for parameter, gradient in zip(moved, gradients, strict=True):
                parameter.sub_(h * gradient)
    return np.array([parameters["theta"].item(), parameters["psi"].item()])


def spectral_radius(model: Model, h: float, shape: tuple[int, ...]) -> float:
    tiny = 1e-7
    columns = [step(model, tiny * axis, h, shape) / tiny for axis in np.eye(2)]
    return float(np.abs(np.linalg.eigvals(np.stack(columns, 1))).max())


def dirac_gan(shape: tuple[int, ...] = (), **options: float | str) -> GAN:
    return GAN(Theta(shape), Psi(), latent_dim=1, **options)  # type: ignore[arg-type]


def dirac_wgan(shape: tuple[int, ...] = ()) -> WGAN:
    return WGAN(Theta(shape), Psi(), latent_dim=1, regularizer=None, critic_steps=1)


@pytest.mark.parametrize("shape", [(), (1,), (1, 1, 1)])
def test_the_published_factors_at_step_0_1(shape: tuple[int, ...]) -> None:
    for loss in ("non_saturating", "minimax"):
        factor = spectral_radius(dirac_gan(shape, loss=loss), 0.1, shape)
        assert factor == pytest.approx(1.0012492, abs=1e-6)
    assert spectral_radius(dirac_wgan(shape), 0.1, shape) == pytest.approx(1.0049876, abs=1e-6)
    factor = spectral_radius(dirac_gan(shape, r1=0.3), 0.1, shape)
    assert factor == pytest.approx(0.9861541, abs=1e-6)


@pytest.mark.parametrize("loss", ["non_saturating", "minimax", "relativistic", "hinge"])
@pytest.mark.parametrize(("r1", "r2"), [(0.0, 0.0), (0.3, 0.0), (0.0, 0.8), (0.5, 0.7)])
@pytest.mark.parametrize("h", [0.01, 0.1, 0.5])
def test_every_game_turns_by_its_matrix(loss: str, r1: float, r2: float, h: float) -> None:
    a, gamma = (1.0 if loss == "hinge" else 0.5), r1 + r2
    matrix = np.array([[1, h * a], [-h * a, 1 - h * gamma]])
    expected = np.abs(np.linalg.eigvals(matrix)).max()
    factor = spectral_radius(dirac_gan(loss=loss, r1=r1, r2=r2), h, ())
    assert factor == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("h", [0.01, 0.1, 0.5])
def test_the_wasserstein_game_turns_at_full_slope(h: float) -> None:
    assert spectral_radius(dirac_wgan(), h, ()) == pytest.approx(sqrt(1 + h**2), abs=1e-6)


def test_far_from_the_middle_r1_converges_and_the_bare_zero_sum_games_do_not() -> None:
    def distance(model: Model, steps: int) -> float:
        point = np.array([1.0, 1.0])
        for _ in range(steps):
            point = step(model, point, 0.1, ())
        return float(np.linalg.norm(point))

    assert distance(dirac_gan(r1=0.3), 500) < 0.01
    assert distance(dirac_gan(loss="minimax"), 500) > sqrt(2)
    assert distance(dirac_wgan(), 200) == pytest.approx(sqrt(2) * (1 + 0.01) ** 100)
