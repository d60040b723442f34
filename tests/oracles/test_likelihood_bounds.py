"""ELBO = L_1 <= L_5 <= L_50 <= log p(x) in expectation [Burda et al. 2016, theorem 1].

A linear VAE has an exact log p(x); an encoder that is wrong on purpose opens the gaps.
"""

from __future__ import annotations

import pytest
import torch
from scipy.stats import multivariate_normal
from torch import nn

from fastgen.models import VAE


def linear_vae(pixels: int, k: int, seed: int) -> VAE:
    torch.manual_seed(seed)
    decoder = nn.Linear(k, pixels, dtype=torch.float64)
    encoder = nn.Linear(pixels, k, dtype=torch.float64)
    model = VAE(encoder, decoder, latent_dim=k, sigma=0.7, tau=0.9)
    with torch.no_grad():
        encoder.weight.mul_(0.3)
    return model


@pytest.mark.parametrize(("pixels", "k", "seed"), [(3, 1, 0), (6, 2, 1), (10, 4, 2)])
def test_more_samples_come_closer_from_below(pixels: int, k: int, seed: int) -> None:
    model = linear_vae(pixels, k, seed)
    decoder = model.decoder
    assert isinstance(decoder, nn.Linear)
    weight, bias = decoder.weight.detach(), decoder.bias.detach()
    covariance = weight @ weight.T + 0.49 * torch.eye(pixels)
    x = model.sample(4000, seed=seed, noise=True)
    exact = torch.tensor(multivariate_normal.logpdf(x.numpy(), bias.numpy(), covariance.numpy()))

    with torch.no_grad():
        elbo = model.elbo(x)
    bounds = {samples: model.log_likelihood(x, samples=samples) for samples in (1, 5, 50)}
    gaps = {samples: (exact - bound) for samples, bound in bounds.items()}
    means = [gap.mean().item() for gap in gaps.values()]

    assert means[0] > 2 * means[1] > 4 * means[2] > 0
    # L_1 and the ELBO, with its analytic divergence, are two draws of one expectation.
    difference = elbo - bounds[1]
    assert abs(difference.mean()) < 4 * difference.std() / len(x) ** 0.5
