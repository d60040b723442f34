from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fastgen.models import (
    GAN,
    VAE,
    WGAN,
    Autoencoder,
    GenerativeModel,
    LatentModel,
    evaluation,
)

SHAPE = (1, 8, 8)
GENERATIVE: dict[str, Callable[[], GenerativeModel]] = {
    "gan": lambda: GAN.for_images(SHAPE, latent_dim=6, width=4),
    "wgan": lambda: WGAN.for_images(SHAPE, latent_dim=6, width=4),
    "vae": lambda: VAE.for_images(SHAPE, latent_dim=6, width=4),
}
LATENT: dict[str, Callable[[], LatentModel]] = {
    **GENERATIVE,
    "autoencoder": lambda: Autoencoder.for_images(SHAPE, latent_dim=6, width=4),
}


class Noisy(nn.Module):
    """A generator with everything that differs between training and evaluation."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.norm, self.dropout = nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5)

    def forward(self, z: Tensor) -> Tensor:
        h: Tensor = self.dropout(self.norm(self.linear(z)))
        return h


@pytest.mark.parametrize("name", LATENT)
def test_latents_are_standard_normal_and_governed_by_their_seed(name: str) -> None:
    model = LATENT[name]()
    z = model.latent(5000, seed=3)
    assert z.shape == (5000, 6) == (5000, *model.latent_shape)
    assert z.mean().abs() < 0.02
    torch.testing.assert_close(z.T.cov(), torch.eye(6), atol=0.06, rtol=0)
    assert torch.equal(z, model.latent(5000, seed=3))
    assert not torch.equal(z, model.latent(5000, seed=4))


@pytest.mark.parametrize("name", LATENT)
def test_without_a_seed_the_default_generator_governs(name: str) -> None:
    model = LATENT[name]()
    torch.manual_seed(5)
    first, second = model.latent(4), model.latent(4)
    torch.manual_seed(5)
    assert torch.equal(model.latent(4), first)
    assert not torch.equal(first, second)
    model.latent(4, seed=1)
    state = torch.get_rng_state()
    model.latent(4, seed=1)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("name", LATENT)
def test_float64_models_work_in_float64_throughout(name: str) -> None:
    model = LATENT[name]().double()
    z = model.latent(3, seed=0)
    assert z.dtype == model.decode(z).dtype == torch.float64
    for phase in model.phases():
        loss = phase.loss(torch.randn(4, *SHAPE, dtype=torch.float64), None)["loss"]
        assert loss.dtype == torch.float64


@pytest.mark.parametrize("name", GENERATIVE)
def test_the_same_seed_draws_the_same_images(name: str) -> None:
    model = GENERATIVE[name]()
    images = model.sample(7, seed=2)
    assert images.shape == (7, *SHAPE)
    assert not images.requires_grad
    assert torch.equal(images, model.sample(7, seed=2))
    assert not torch.equal(images, model.sample(7, seed=3))
    torch.testing.assert_close(images, model.decode(model.latent(7, seed=2)))


@pytest.mark.parametrize("name", LATENT)
def test_images_are_float32_under_autocast(name: str) -> None:
    model = LATENT[name]()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert model.decode(model.latent(2)).dtype == torch.float32
        if isinstance(model, GenerativeModel):
            assert model.sample(2).dtype == torch.float32
        if isinstance(model, VAE | Autoencoder):
            assert model.reconstruct(torch.zeros(2, *SHAPE)).dtype == torch.float32


def test_sampling_leaves_modes_statistics_and_gradient_mode_alone() -> None:
    generator = Noisy()
    model = GAN(generator, nn.Linear(4, 1), latent_dim=3)
    generator.norm.eval()  # frozen by its owner
    statistics = {name: tensor.clone() for name, tensor in generator.state_dict().items()}

    first, second = model.sample(8, seed=0), model.sample(8, seed=0)

    assert torch.equal(first, second)  # no dropout
    assert [model.training, generator.dropout.training, generator.norm.training] == [
        True, True, False
    ]  # fmt: skip
    torch.testing.assert_close(dict(generator.state_dict()), statistics)
    assert torch.is_grad_enabled()


def test_evaluation_restores_the_modes_after_an_error() -> None:
    module = nn.Sequential(nn.Dropout(), nn.Dropout().eval())
    with pytest.raises(ZeroDivisionError), evaluation(module):
        _ = 1 / int(module[0].training)
    assert [module.training, module[0].training, module[1].training] == [True, True, False]


def test_latents_may_have_any_shape() -> None:
    model = GAN(nn.Identity(), nn.Flatten(), latent_dim=(2, 3, 3))
    assert model.latent_shape == (2, 3, 3)
    assert model.sample(4, seed=0).shape == (4, 2, 3, 3)


def test_numbers_of_numpy_are_as_good_as_those_of_python() -> None:
    channels, side, width, latent_dim, seed = np.array([*SHAPE[:2], 4, 6, 3])
    shape = (channels, side, side)
    model = GAN.for_images(shape, width=width, latent_dim=latent_dim)
    assert model.latent_shape == (6,)
    assert torch.equal(model.sample(2, seed=seed), model.sample(2, seed=3))


@pytest.mark.parametrize("latent_dim", [0, -1, (), (3, 0), 2.5, "3"])
def test_latent_shapes_that_cannot_be_are_refused(latent_dim: object) -> None:
    with pytest.raises((ValueError, TypeError), match=r"latent_dim|iterable"):
        GAN(nn.Identity(), nn.Identity(), latent_dim=latent_dim)  # type: ignore[arg-type]


def test_only_adversarial_generators_are_averaged() -> None:
    averaged = {name: make().averaged for name, make in LATENT.items()}
    assert averaged == {"gan": ("generator",), "wgan": ("generator",), "vae": (), "autoencoder": ()}
