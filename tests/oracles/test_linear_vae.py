"""A linear VAE is probabilistic principal component analysis [Tipping & Bishop 1999].

With x = W z + b + sigma epsilon, the likeliest W spans the k leading eigenvectors U of the
covariance, W = U (L - sigma^2)^(1/2), and sigma^2 is the mean of the discarded eigenvalues. The
posterior is N(L^-1 W' (x - b), sigma^2 L^-1): its mean is linear and its variance does not depend
on x, so a linear encoder and a learned tau reach it, and the ELBO is log p(x) [Lucas et al. 2019].
"""

from __future__ import annotations

from math import log, pi

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA
from torch import Tensor, nn

from fastgen.models import VAE, Autoencoder

DIGITS = torch.tensor(load_digits().images / 8 - 1).unsqueeze(1)  # (1797, 1, 8, 8) in [-1, 1]


def eigen(images: Tensor, correction: int) -> tuple[Tensor, Tensor]:
    """Eigenvalues and eigenvectors (columns) of the pixels' covariance, the largest first."""
    values, vectors = torch.linalg.eigh(images.flatten(1).T.cov(correction=correction))
    return values.flip(0), vectors.flip(1)


def linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0], dtype=torch.float64)
    with torch.no_grad():
        layer.weight.copy_(weight)
        layer.bias.copy_(bias)
    return layer


def networks(images: Tensor, encode: Tensor, decode: Tensor) -> tuple[nn.Sequential, nn.Sequential]:
    """The encoder x -> encode (x - mean) and the decoder z -> decode z + mean."""
    mean = images.flatten(1).mean(0)
    encoder = nn.Sequential(nn.Flatten(), linear(encode, -encode @ mean))
    decoder = nn.Sequential(linear(decode, mean), nn.Unflatten(1, images.shape[1:]))
    return encoder, decoder


def optimal_vae(images: Tensor, k: int, correction: int) -> VAE:
    values, vectors = eigen(images, correction)
    variance, leading = values[k:].mean(), values[:k]
    decode = vectors[:, :k] * (leading - variance).sqrt()
    encoder, decoder = networks(images, decode.T / leading[:, None], decode)
    sigma = variance.sqrt().item()
    model = VAE(encoder, decoder, latent_dim=k, sigma=sigma, tau="learned").double()
    with torch.no_grad():
        next(model.latent_noise.parameters()).copy_((variance / leading).log() / 2)
    return model


def data(name: str) -> Tensor:
    if name == "digits":
        return DIGITS
    generator = torch.Generator().manual_seed(int(name))
    mixing = torch.randn(12, 12, generator=generator, dtype=torch.float64)
    samples = torch.randn(200, 12, generator=generator, dtype=torch.float64) @ mixing
    return samples.view(200, 3, 2, 2)


@pytest.mark.parametrize("name", ["digits", "0", "1"])
@pytest.mark.parametrize("k", [1, 5, 8])
def test_its_likelihood_is_scikit_learns_pca_score(name: str, k: int) -> None:
    """PCA's covariance divides by n - 1; with the same one, every image's density agrees."""
    images = data(name)
    pixels = images.flatten(1).numpy()
    scores = PCA(k, svd_solver="full").fit(pixels).score_samples(pixels)
    # p(z | x) is reached, so each importance weight is p(x): one sample is exact.
    likelihood = optimal_vae(images, k, correction=1).log_likelihood(images, samples=1)
    np.testing.assert_allclose(likelihood.numpy(), scores, rtol=1e-9, atol=1e-6)


@pytest.mark.parametrize("name", ["digits", "0", "1"])
@pytest.mark.parametrize("k", [1, 5, 8])
def test_rescaled_to_n_it_is_the_maximum_of_the_likelihood(name: str, k: int) -> None:
    """mean log p = -1/2 (D log 2 pi + sum log of the model's eigenvalues + D)."""
    images = data(name)
    dimensions = images[0].numel()
    values, _ = eigen(images, correction=0)
    log_det = values[:k].log().sum() + (dimensions - k) * values[k:].mean().log()
    expected = -(dimensions * (log(2 * pi) + 1) + log_det) / 2

    mean = optimal_vae(images, k, correction=0).log_likelihood(images, samples=1).mean()
    torch.testing.assert_close(mean, expected)
    pixels = images.flatten(1).numpy()
    assert mean >= PCA(k, svd_solver="full").fit(pixels).score(pixels)


@pytest.mark.parametrize("k", [2, 8])
def test_its_elbo_has_no_gap(k: int) -> None:
    """Up to Monte-Carlo error: 5 standard errors of 20 draws for each of the 1797 digits."""
    model = optimal_vae(DIGITS, k, correction=0)
    exact = model.log_likelihood(DIGITS, samples=1)
    with torch.no_grad():
        draws = torch.stack([model.elbo(DIGITS) for _ in range(20)])
    gaps = (draws - exact).flatten()
    standard_error = gaps.std() / len(gaps) ** 0.5
    assert standard_error < 0.02
    assert abs(gaps.mean()) < 5 * standard_error


def test_its_elbo_is_at_a_maximum() -> None:
    """Moving sigma, tau or any weight at random only lowers the exact bound's mean."""
    images, k = data("0"), 4
    model = optimal_vae(images, k, correction=0)
    best = model.log_likelihood(images, samples=1).mean()
    for seed in range(5):
        worse = optimal_vae(images, k, correction=0)
        torch.manual_seed(seed)
        with torch.no_grad():
            for parameter in worse.parameters():
                parameter.add_(0.05 * torch.randn_like(parameter))
            torch.manual_seed(seed)
            bound = torch.stack([worse.elbo(images).mean() for _ in range(50)]).mean()
        assert bound < best


@pytest.mark.parametrize("k", [1, 4])
def test_its_samples_have_the_covariance_of_the_model(k: int) -> None:
    images = data("1")
    values, vectors = eigen(images, correction=0)
    spectrum = torch.cat([values[:k], values[k:].mean().expand(12 - k)])
    expected = vectors @ torch.diag(spectrum) @ vectors.T
    samples = optimal_vae(images, k, correction=0).sample(200_000, seed=0, noise=True)
    covariance = samples.flatten(1).T.cov()
    # The error of an entry is about sqrt((C_ii C_jj + C_ij^2) / n).
    scale = torch.outer(expected.diag(), expected.diag()).add(expected**2).div(200_000).sqrt()
    assert ((covariance - expected).abs() / scale).max() < 5


@pytest.mark.parametrize("name", ["digits", "0", "1"])
@pytest.mark.parametrize("k", [1, 5, 8])
def test_a_linear_autoencoder_errs_by_the_discarded_eigenvalues(name: str, k: int) -> None:
    images = data(name)
    values, vectors = eigen(images, correction=0)
    encoder, decoder = networks(images, vectors[:, :k].T, vectors[:, :k])
    model = Autoencoder(encoder, decoder, latent_dim=k)
    torch.testing.assert_close(model.loss(images).detach(), values[k:].sum())


def test_a_linear_autoencoder_trains_to_the_principal_subspace() -> None:
    images, k = data("0"), 3
    values, vectors = eigen(images, correction=0)
    torch.manual_seed(0)
    start = torch.randn(12, k, dtype=torch.float64)
    model = Autoencoder(*networks(images, start.T / 12, start), latent_dim=k)
    optimizer = torch.optim.LBFGS(
        model.parameters(), max_iter=800, history_size=60, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = model.loss(images)
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    torch.testing.assert_close(model.loss(images).detach(), values[k:].sum(), rtol=1e-4, atol=0)
    reconstructed = (model.reconstruct(images) - images.mean(0)).flatten(1)
    torch.testing.assert_close(
        reconstructed,
        reconstructed @ vectors[:, :k] @ vectors[:, :k].T,
        atol=0.05,
        rtol=0,
    )
