"""The VAE's divergence, reparameterized gradients and optimal sigma against closed forms."""

from __future__ import annotations

from math import log, pi

import pytest
import torch
from torch import Tensor, nn

from fastgen.models import VAE


class Posterior(nn.Module):
    """The same mean, and log-variance if given, for every image."""

    def __init__(self, mu: Tensor, logvar: Tensor | None = None) -> None:
        super().__init__()
        self.mu = nn.Parameter(mu)
        self.logvar = None if logvar is None else nn.Parameter(logvar)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        mu = self.mu.expand(len(x), -1)
        return mu if self.logvar is None else (mu, self.logvar.expand(len(x), -1))


@pytest.mark.parametrize("dimensions", [1, 3, 17])
def test_the_divergence_of_n_1_025_from_the_prior(dimensions: int) -> None:
    """KL(N(1, 0.5^2) || N(0, 1)) = (1 + 0.25 - 1) / 2 + log 2 = 0.818147 nats per dimension."""
    mu, logvar = torch.ones(dimensions).double(), torch.full((dimensions,), log(0.25)).double()
    model = VAE(Posterior(mu, logvar), nn.Identity(), latent_dim=dimensions, sigma=1.0)
    losses = model.phases()[0].loss(torch.zeros(4, dimensions, dtype=torch.float64), None)
    assert losses["kl"].item() == pytest.approx(0.818147 * dimensions, abs=1e-6 * dimensions)


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("tau", ["amortized", "learned"])
def test_the_divergence_of_any_gaussian_from_the_prior(seed: int, tau: str) -> None:
    generator = torch.Generator().manual_seed(seed)
    mu, logvar = torch.randn(2, 5, generator=generator, dtype=torch.float64)
    encoder = Posterior(mu, logvar if tau == "amortized" else None)
    model = VAE(encoder, nn.Identity(), latent_dim=5, sigma=1.0, tau=tau).double()
    if tau == "learned":
        with torch.no_grad():
            next(model.latent_noise.parameters()).copy_(logvar / 2)
    posterior = torch.distributions.Normal(mu, (logvar / 2).exp())
    prior = torch.distributions.Normal(torch.zeros(5).double(), torch.ones(5).double())
    expected = torch.distributions.kl_divergence(posterior, prior).sum()
    losses = model.phases()[0].loss(torch.zeros(3, 5, dtype=torch.float64), None)
    torch.testing.assert_close(losses["kl"], expected)


@pytest.mark.parametrize(("mean", "tau"), [(0.7, 0.4), (-1.5, 1.2)])
def test_reparameterization_differentiates_the_mean_square_of_z(mean: float, tau: float) -> None:
    """d/dM E z^2 = 2 M and d/dtau E z^2 = 2 tau.

    At x = 0, G(z) = z and sigma^2 = 1/2, -log p(x | z) is z^2 + a constant.
    """
    n = 200_000
    encoder = Posterior(torch.tensor([mean], dtype=torch.float64))
    model = VAE(encoder, nn.Identity(), latent_dim=1, sigma=0.5**0.5, tau="learned").double()
    (log_tau,) = model.latent_noise.parameters()
    with torch.no_grad():
        log_tau.fill_(log(tau))

    losses = model.phases()[0].loss(torch.zeros(n, 1, dtype=torch.float64), None)
    d_mean, d_log_tau = torch.autograd.grad(losses["loss"], [encoder.mu, log_tau])

    # Without the divergence's part, M and tau^2 - 1 (per log tau); errors are 5 standard ones.
    error_mean, error_tau = 2 * tau, tau * 2 * (mean**2 + 2 * tau**2) ** 0.5
    assert d_mean.item() - mean == pytest.approx(2 * mean, abs=5 * error_mean / n**0.5)
    of_tau = (d_log_tau.item() - (tau**2 - 1)) / tau
    assert of_tau == pytest.approx(2 * tau, abs=5 * error_tau / tau / n**0.5)


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("shape", [(6, 1, 8, 8), (3, 3, 4, 5)])
def test_at_the_optimal_sigma_a_dimension_costs_half_of_1_plus_log_2_pi_mse(
    seed: int, shape: tuple[int, ...]
) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    dimensions = x[0].numel()
    decoder = nn.Sequential(nn.Linear(2, dimensions), nn.Unflatten(1, shape[1:])).double()
    encoder = Posterior(torch.tensor([0.3, -0.2], dtype=torch.float64))
    model = VAE(encoder, decoder, latent_dim=2, sigma="optimal", tau=1e-9)

    losses = model.phases()[0].loss(x, None)
    mse = (x - model.reconstruct(x)).square().mean()
    expected = dimensions / 2 * (1 + torch.log(2 * pi * mse))
    torch.testing.assert_close(losses["reconstruction"], expected)
    torch.testing.assert_close(losses["sigma"], mse.sqrt())

    # Holding sigma constant, the decoder's gradient is that of D / 2 log MSE, sigma included.
    gradients = torch.autograd.grad(losses["loss"], tuple(decoder.parameters()))
    error = (x - decoder(encoder.mu.detach().expand(len(x), 2))).square().mean()
    full = torch.autograd.grad(dimensions / 2 * error.log(), tuple(decoder.parameters()))
    torch.testing.assert_close(gradients, full, rtol=1e-6, atol=1e-6)
