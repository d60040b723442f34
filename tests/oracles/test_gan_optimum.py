"""The best discriminator and the value it reaches [Goodfellow et al. 2014, section 4]."""

from __future__ import annotations

from math import log

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from scipy.stats import norm
from torch import Tensor, nn

from fastgen.models import GAN


class Affine(nn.Module):
    def __init__(self, slope: float, intercept: float) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.tensor(slope, dtype=torch.float64))
        self.intercept = nn.Parameter(torch.tensor(intercept, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return self.slope * x + self.intercept


def normal_grid(n: int) -> Tensor:
    """n points of equal weight that stand for N(0, 1): the middles of n quantile intervals."""
    return torch.tensor(norm.ppf((np.arange(n) + 0.5) / n))


def optimal_logit(m1: float, m2: float, s: float) -> tuple[float, float]:
    """Slope and intercept of log p / q for p = N(m1, s^2), q = N(m2, s^2)."""
    return (m1 - m2) / s**2, (m2**2 - m1**2) / (2 * s**2)


CASES = [(0.0, 1.0, 1.0), (1.5, -0.5, 1.2), (-0.3, 0.4, 0.5), (2.0, 0.0, 1.0)]


@pytest.mark.parametrize("size", [(1, 8, 8), (3, 16, 16), (2, 28, 28)])
@pytest.mark.parametrize("n", [1, 7])
def test_a_discriminator_that_cannot_tell_has_value_minus_log_4(
    size: tuple[int, int, int], n: int
) -> None:
    gan = GAN.for_images(size, latent_dim=3, width=2)
    with torch.no_grad():
        for parameter in gan.discriminator.parameters():
            parameter.zero_()
    value = gan.value(torch.randn(n, *size), gan.latent(n))
    assert value.item() == pytest.approx(-log(4), abs=1e-6)


@pytest.mark.parametrize(("m1", "m2", "s"), CASES)
def test_training_finds_the_linear_logit_between_two_gaussians(
    m1: float, m2: float, s: float
) -> None:
    gan = GAN(Affine(s, m2), Affine(0.0, 0.0), latent_dim=1)
    z = normal_grid(20_001)
    x = m1 + s * z
    discriminator = gan.discriminator
    optimizer = torch.optim.LBFGS(
        discriminator.parameters(), max_iter=100, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = gan.discriminator_loss(x, z)
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    found = [discriminator.slope.item(), discriminator.intercept.item()]  # type: ignore[operator]
    assert found == pytest.approx(optimal_logit(m1, m2, s), abs=2e-3)


@pytest.mark.parametrize(("m1", "m2", "s"), CASES)
def test_the_value_of_the_best_discriminator_is_the_jensen_shannon_divergence(
    m1: float, m2: float, s: float
) -> None:
    """V(D*) = 2 JS(p, q) - log 4, by quadrature of p log p / (p + q) + q log q / (p + q)."""
    gan = GAN(Affine(s, m2), Affine(*optimal_logit(m1, m2, s)), latent_dim=1)
    z = normal_grid(200_001)

    def integrand(t: float) -> float:
        p, q = norm.logpdf(t, m1, s), norm.logpdf(t, m2, s)
        total = np.logaddexp(p, q)
        return float(np.exp(p) * (p - total) + np.exp(q) * (q - total))

    low, high = min(m1, m2) - 9 * s, max(m1, m2) + 9 * s
    expected = quad(integrand, low, high, epsabs=1e-11)[0]
    assert gan.value(m1 + s * z, z).item() == pytest.approx(expected, abs=1e-5)
    assert expected > -log(4)


@pytest.mark.parametrize(("m1", "m2", "s"), CASES)
def test_the_best_discriminator_is_p_over_p_plus_q(m1: float, m2: float, s: float) -> None:
    t = torch.linspace(m2 - 3 * s, m1 + 3 * s, 41, dtype=torch.float64)
    p, q = norm.pdf(t.numpy(), m1, s), norm.pdf(t.numpy(), m2, s)
    logit = Affine(*optimal_logit(m1, m2, s))(t).detach()
    np.testing.assert_allclose(torch.sigmoid(logit).numpy(), p / (p + q), rtol=1e-9)


@pytest.mark.parametrize("loss", ["non_saturating", "minimax"])
def test_both_generator_losses_lead_from_a_shifted_gaussian_to_the_data(loss: str) -> None:
    """Against the best discriminator of each step the generator's mean goes to that of the data."""
    m1, s, generator = 0.8, 1.0, Affine(1.0, -0.5)
    gan = GAN(generator, Affine(0.0, 0.0), latent_dim=1, loss=loss)
    z = normal_grid(501)
    x = m1 + s * z
    for _ in range(150):
        slope, intercept = optimal_logit(m1, generator.intercept.item(), s)
        gan.discriminator.load_state_dict(
            {"slope": torch.tensor(slope), "intercept": torch.tensor(intercept)}
        )
        (gradient,) = torch.autograd.grad(gan.generator_loss(x, z), generator.intercept)
        with torch.no_grad():
            generator.intercept.sub_(0.1 * gradient)
    assert generator.intercept.item() == pytest.approx(m1, abs=0.01)
