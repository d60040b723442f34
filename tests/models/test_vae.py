from __future__ import annotations

from math import log, pi

import numpy as np
import pytest
import torch
from scipy.stats import norm
from torch import Tensor, nn

from fastgen.models import VAE, vae

SHAPE = (1, 8, 8)


def small(sigma: float | str = "learned", tau: float | str = "amortized") -> VAE:
    return VAE.for_images(SHAPE, latent_dim=3, width=4, sigma=sigma, tau=tau)


def images(n: int) -> Tensor:
    return torch.rand(n, *SHAPE) * 2 - 1


@pytest.mark.parametrize("sigma", ["learned", "optimal", 0.3])
@pytest.mark.parametrize("tau", ["amortized", "learned", 0.2])
def test_the_phase_minimizes_minus_the_mean_elbo(sigma: float | str, tau: float | str) -> None:
    model, x = small(sigma, tau), images(6)
    torch.manual_seed(3)
    losses = model.phases()[0].loss(x, None)
    torch.manual_seed(3)
    elbo = model.elbo(x)
    assert elbo.shape == (6,)
    torch.testing.assert_close(losses["loss"], -elbo.mean())
    torch.testing.assert_close(losses["loss"].detach(), losses["reconstruction"] + losses["kl"])


def test_the_elbo_is_the_density_of_the_image_minus_the_divergence() -> None:
    """With a posterior so narrow that z is its mean, every term is a closed form."""
    model, x = small(0.4, 1e-6).double(), images(5).double()
    mu, logvar = model.encode(x)
    kl = 0.5 * (mu**2 + logvar.exp() - 1 - logvar).sum(1)
    pixels, means = x.flatten(1).numpy(), model.reconstruct(x).flatten(1).numpy()
    log_p = np.sum(norm.logpdf(pixels, means, 0.4), axis=1)
    np.testing.assert_allclose((model.elbo(x) + kl).detach().numpy(), log_p, rtol=0, atol=1e-3)


def test_sigma_learned_is_pulled_towards_the_squared_error() -> None:
    """d loss / d log sigma = D - |x - G(z)|^2 / sigma^2, zero where sigma^2 is the MSE."""
    model, x = small("learned", 1e-6).double(), images(6).double()
    phase = model.phases()[0]
    (log_sigma,) = model.pixel_noise.parameters()
    errors = (x - model.reconstruct(x)).square().flatten(1).sum(1).mean().item()
    for sigma in (0.1, 0.5, (errors / 64) ** 0.5):
        with torch.no_grad():
            log_sigma.fill_(log(sigma))
        (gradient,) = torch.autograd.grad(phase.loss(x, None)["loss"], log_sigma)
        assert gradient.item() == pytest.approx(64 - errors / sigma**2, abs=0.05)
        assert model.sigma.item() == pytest.approx(sigma)


def test_the_running_sigma_is_what_evaluation_and_samples_use() -> None:
    model = small("optimal")
    for _ in range(5):
        model.elbo(images(16))
    model.eval()
    sigma = model.sigma.item()
    losses = model.phases()[0].loss(images(16), None)
    assert losses["sigma"].item() == pytest.approx(sigma)
    means, noisy = model.sample(500, seed=4), model.sample(500, seed=4, noise=True)
    assert (noisy - means).std().item() == pytest.approx(sigma, rel=0.02)


@pytest.mark.parametrize(("n", "samples"), [(600, 1), (3, 600), (600, 2)])
def test_a_likelihood_decodes_256_latents_at_once_at_most(n: int, samples: int) -> None:
    model, sizes = small(), list[int]()
    model.decoder.register_forward_pre_hook(lambda _, given: sizes.append(len(given[0])))
    assert model.log_likelihood(images(n), samples).shape == (n,)
    assert sum(sizes) == n * samples
    assert max(sizes) <= 256


def test_noise_is_added_to_the_same_images() -> None:
    model = small(0.25)
    means, noisy = model.sample(400, seed=1), model.sample(400, seed=1, noise=True)
    assert (noisy - means).mean().item() == pytest.approx(0, abs=0.01)
    assert (noisy - means).std().item() == pytest.approx(0.25, rel=0.02)
    assert torch.equal(noisy, model.sample(400, seed=1, noise=True))


def test_encode_decode_and_reconstruct_fit_each_other() -> None:
    model, x = small(), images(5)
    mu, logvar = model.encode(x)
    assert mu.shape == logvar.shape == (5, 3)
    torch.testing.assert_close(model.reconstruct(x), model.decode(mu).detach())
    assert not model.reconstruct(x).requires_grad
    assert model.training


class Line(nn.Module):
    """G(z) = a z in one dimension; as an encoder M(x) = a x."""

    def __init__(self, a: float) -> None:
        super().__init__()
        self.a = a

    def forward(self, t: Tensor) -> Tensor:
        return self.a * t


def exact_line(x: Tensor) -> Tensor:
    """log p(x) for x = 1.5 z + 0.5 epsilon: N(0, 2.5)."""
    return torch.tensor(norm.logpdf(x.numpy().ravel(), 0, 2.5**0.5))


def test_the_exact_posterior_gives_the_exact_likelihood_at_one_sample() -> None:
    """p(z | x) = N(0.6 x, 0.1): every importance weight is then p(x) itself."""
    model = VAE(Line(0.6), Line(1.5), latent_dim=1, sigma=0.5, tau=0.1**0.5)
    x = 3 * torch.randn(7, 1, dtype=torch.float64)
    torch.testing.assert_close(model.log_likelihood(x, samples=1), exact_line(x))
    torch.testing.assert_close(model.log_likelihood(x, samples=100), exact_line(x))


@pytest.mark.parametrize(("n", "samples"), [(1, 4000), (2, 2001), (3, 1500)])
def test_importance_weights_reach_the_likelihood_from_a_wrong_posterior(
    n: int, samples: int
) -> None:
    model = VAE(Line(0.5), Line(1.5), latent_dim=1, sigma=0.5, tau=0.6)
    x = torch.randn(n, 1, dtype=torch.float64)
    estimate = model.log_likelihood(x, samples=samples)
    torch.testing.assert_close(estimate, exact_line(x), atol=0.1, rtol=0)


@pytest.mark.parametrize("logvar", [-10.0, -30.0, -40.0, -150.0])
def test_importance_weights_keep_the_noise_of_a_narrow_posterior(logvar: float) -> None:
    """In float32 mu + noise is mu from a logvar of about -36 on."""
    k = 64

    class Narrow(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return torch.full((len(x), k), 3.25), torch.full((len(x), k), logvar)

    model, x = VAE(Narrow(), Line(0.0), latent_dim=k, sigma=1.0), torch.zeros(500, k)
    # Of one weight the mean is the ELBO, and the deviation that of sum(e^2) / 2.
    elbo = -k / 2 * (log(2 * pi) + 3.25**2 - 1 - logvar)
    error = model.log_likelihood(x, samples=1).double() - elbo
    assert abs(error.mean().item()) < 4 * (k / 2 / len(x)) ** 0.5
    assert error.std().item() == pytest.approx((k / 2) ** 0.5, rel=0.15)


def test_importance_samples_are_decoded_in_bounded_portions(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    portions = []

    class Decoder(Line):
        def forward(self, z: Tensor) -> Tensor:
            portions.append(len(z))
            return super().forward(z)

    model = VAE(Line(0.6), Decoder(1.5), latent_dim=1, sigma=0.5, tau=0.1**0.5)
    monkeypatch.setattr(vae, "PAIRS_AT_ONCE", 10)
    x = torch.randn(23, 1, dtype=torch.float64)
    torch.testing.assert_close(model.log_likelihood(x, samples=7), exact_line(x))
    assert max(portions) <= 10
    assert sum(portions) == 23 * 7
    assert model.training


def test_the_likelihood_is_taken_in_evaluation_mode_without_gradients() -> None:
    model, x = small(), images(4)
    model.encoder = nn.Sequential(nn.Dropout(0.5), model.encoder)
    torch.manual_seed(1)
    likelihood = model.log_likelihood(x, samples=3)
    assert model.training
    assert not likelihood.requires_grad
    torch.manual_seed(1)
    assert torch.equal(model.eval().log_likelihood(x, samples=3), likelihood)


def test_likelihoods_of_no_images_are_no_numbers() -> None:
    assert small().log_likelihood(images(0)).shape == (0,)
    assert small().elbo(images(0)).shape == (0,)
    with pytest.raises(ValueError, match="samples must be at least 1"):
        small().log_likelihood(images(2), samples=0)


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 16, 32)])
def test_uniform_pixels_cost_eight_bits(shape: tuple[int, int, int]) -> None:
    """256 equal cells of width 1 / 127.5 have the density 127.5 / 256 and 8 bits each."""
    model = VAE.for_images(shape, latent_dim=2, width=2)
    dimensions = shape[0] * shape[1] * shape[2]
    nats = dimensions * log(127.5 / 256)
    assert model.bits_per_dim(nats) == pytest.approx(8)
    halved = model.bits_per_dim(torch.tensor([nats, nats + dimensions * log(2)]).double())
    torch.testing.assert_close(halved, torch.tensor([8.0, 7.0]).double())


def test_bits_per_dim_needs_to_know_the_dimensions() -> None:
    model = VAE(Line(1.0), Line(1.0), latent_dim=1, sigma=1.0, tau=1.0)
    assert model.bits_per_dim(2 * log(127.5 / 256), dimensions=2) == pytest.approx(8)
    with pytest.raises(ValueError, match="Line has no image_shape: give the dimensions"):
        model.bits_per_dim(1.0)


def test_networks_of_ones_own_and_latents_of_any_shape_work() -> None:
    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(1, 6, 4, 4)

        def forward(self, x: Tensor) -> list[Tensor]:
            return list(self.conv(x).chunk(2, 1))

    model = VAE(Pair(), nn.ConvTranspose2d(3, 1, 4, 4), latent_dim=(3, 2, 2), sigma="optimal")
    x = images(4)
    assert model.elbo(x).shape == model.log_likelihood(x, samples=5).shape == (4,)
    assert model.sample(2, seed=0).shape == (2, *SHAPE)


def test_an_encoder_that_does_not_fit_tau_is_refused() -> None:
    x = torch.zeros(4, 2)
    with pytest.raises(ValueError, match=r'tau="amortized" the encoder must return \(mu, logvar\)'):
        VAE(nn.Linear(2, 1), nn.Linear(1, 2), latent_dim=1).elbo(x)
    with pytest.raises(ValueError, match=r"images of shape \(4, 2\) \(got \(4, 3\)\)"):
        VAE(nn.Linear(2, 1), nn.Linear(1, 3), latent_dim=1, tau="learned").elbo(x)


def test_the_bound_survives_saturated_pixels_under_autocast() -> None:
    """The squared error is taken in float32 whatever the networks' dtype."""
    model, x = small(0.01), images(3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        elbo = model.elbo(x)
    assert elbo.dtype == torch.float32
    assert elbo.isfinite().all()


def test_training_raises_the_bound_of_images_on_a_line() -> None:
    model = small("optimal")
    base = torch.randn(1, *SHAPE)
    base *= 3 / base.norm()
    x = (torch.rand(128, 1, 1, 1) * 2 - 1) * base
    optimizer = torch.optim.Adam(model.parameters(), 5e-3)
    before = model.log_likelihood(x, samples=8).mean()
    for _ in range(60):
        optimizer.zero_grad()
        model.phases()[0].loss(x, None)["loss"].backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    assert model.log_likelihood(x, samples=8).mean() > before + 20
