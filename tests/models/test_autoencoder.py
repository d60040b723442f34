from __future__ import annotations

import pytest
import torch
from torch import nn

from fastgen.models import Autoencoder
from fastgen.models.autoencoder import squared_errors

SHAPE = (2, 8, 8)


@pytest.mark.parametrize("shape", [(4,), (4, 3), (4, 2, 3, 5)])
def test_squared_errors_are_summed_over_each_image(shape: tuple[int, ...]) -> None:
    x, y = torch.randn(2, *shape, dtype=torch.float64)
    expected = torch.stack([((a - b) ** 2).sum() for a, b in zip(x, y, strict=True)])
    torch.testing.assert_close(squared_errors(x, y), expected)


def test_the_loss_is_the_squared_error_of_its_reconstruction() -> None:
    model = Autoencoder.for_images(SHAPE, latent_dim=3, width=4)
    x = torch.rand(6, *SHAPE) * 2 - 1
    losses = model.phases()[0].loss(x, None)
    expected = (x - model.reconstruct(x)).square().sum((1, 2, 3)).mean()
    torch.testing.assert_close(losses["loss"].detach(), expected)
    torch.testing.assert_close(losses["per_pixel"], expected / 128)


def test_encode_decode_and_reconstruct_fit_each_other() -> None:
    model = Autoencoder.for_images(SHAPE, latent_dim=3, width=4)
    x = torch.randn(5, *SHAPE)
    code = model.encode(x)
    assert code.shape == (5, 3)
    assert code.requires_grad
    torch.testing.assert_close(model.reconstruct(x), model.decode(code).detach())
    assert not model.reconstruct(x).requires_grad
    assert model.training


def test_codes_and_images_of_other_shapes_are_refused() -> None:
    x = torch.zeros(5, 4)
    wrong_code = Autoencoder(nn.Linear(4, 2), nn.Linear(3, 4), latent_dim=3)
    with pytest.raises(ValueError, match=r"tensor of shape \(5, 3\) \(got \(5, 2\)\)"):
        wrong_code.encode(x)
    pair = Autoencoder(nn.LSTM(4, 3), nn.Linear(3, 4), latent_dim=3)
    with pytest.raises(ValueError, match="got a tuple"):
        pair.encode(x)
    wrong_image = Autoencoder(nn.Linear(4, 3), nn.Linear(3, 5), latent_dim=3)
    with pytest.raises(ValueError, match=r"images of shape \(5, 4\) \(got \(5, 5\)\)"):
        wrong_image.loss(x)


def test_codes_may_have_any_shape() -> None:
    encoder, decoder = nn.Conv2d(2, 3, 4, 4), nn.ConvTranspose2d(3, 2, 4, 4)
    model = Autoencoder(encoder, decoder, latent_dim=(3, 2, 2))
    x = torch.randn(4, *SHAPE)
    assert model.encode(x).shape == (4, 3, 2, 2)
    assert model.loss(x).isfinite()
