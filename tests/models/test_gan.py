from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastgen.models import GAN, Discriminator, Generator
from fastgen.models.adversarial_losses import GAMES


class Affine(nn.Module):
    def __init__(self, slope: float, intercept: float) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.tensor(slope, dtype=torch.float64))
        self.intercept = nn.Parameter(torch.tensor(intercept, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return self.slope * x + self.intercept


class Quadratic(nn.Module):
    """logit = a |x|^2, whose gradient 2 a x has mean square 4 a^2 mean |x|^2."""

    def __init__(self, a: float) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.tensor(a, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return self.a * x.square().sum(1, keepdim=True)


def scalars(n: int, seed: int) -> Tensor:
    return torch.randn(n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("seed", [0, 1])
def test_value_and_losses_are_those_of_the_two_networks(seed: int) -> None:
    gan = GAN(Affine(0.7, 0.3), Affine(-1.1, 0.2), latent_dim=1, loss="minimax")
    x, z = scalars(9, seed), scalars(9, seed + 10)
    d = torch.sigmoid(-1.1 * x + 0.2), torch.sigmoid(-1.1 * (0.7 * z + 0.3) + 0.2)
    v = d[0].log().mean() + (1 - d[1]).log().mean()
    torch.testing.assert_close(gan.value(x, z), v)
    torch.testing.assert_close(gan.discriminator_loss(x, z), -v)
    torch.testing.assert_close(gan.generator_loss(x, z), (1 - d[1]).log().mean())


@pytest.mark.parametrize("loss", GAMES)
def test_penalties_are_added_at_real_and_at_generated_images(loss: str) -> None:
    x, z = scalars(15, 0).view(5, 3), scalars(15, 1).view(5, 3)
    plain = GAN(Affine(1.0, 0.0), Quadratic(0.6), latent_dim=3, loss=loss)
    penalized = GAN(Affine(1.0, 0.0), Quadratic(0.6), latent_dim=3, loss=loss, r1=0.3, r2=0.7)
    mean_square = 4 * 0.36 * torch.stack([x.square().sum(1).mean(), z.square().sum(1).mean()])
    added = penalized.discriminator_loss(x, z) - plain.discriminator_loss(x, z)
    torch.testing.assert_close(added, (torch.tensor([0.15, 0.35]).double() * mean_square).sum())
    torch.testing.assert_close(penalized.generator_loss(x, z), plain.generator_loss(x, z))


def test_the_phase_logs_the_value_the_logits_and_each_penalty() -> None:
    gan = GAN(Affine(0.0, 0.5), Affine(2.0, 0.0), latent_dim=1, r1=1.0, r2=0.5)
    losses = gan.phases()[0].loss(torch.full((4,), 0.25, dtype=torch.float64), None)
    logged = {name: loss.item() for name, loss in losses.items() if name != "loss"}
    value = F.logsigmoid(torch.tensor(0.5)) + F.logsigmoid(torch.tensor(-1.0))
    expected = {"value": value.item(), "real_logit": 0.5, "fake_logit": 1.0, "r1": 2.0, "r2": 1.0}
    assert logged == pytest.approx(expected, rel=1e-6)


class Own(Discriminator):
    """Its class may look at a whole batch: nothing is known of it."""


class Normalized(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.BatchNorm2d(1), nn.Flatten(), nn.Linear(64, 1))


def with_batch_norm() -> nn.Module:
    discriminator = Discriminator((1, 8, 8), width=4)
    discriminator.stages.append(nn.BatchNorm2d(discriminator.features // 16))
    return discriminator


@pytest.mark.parametrize(
    ("make", "batches"),
    [
        (lambda: Discriminator((1, 8, 8), width=4), [10]),
        (lambda: Own((1, 8, 8), width=4), [5, 5]),
        (Normalized, [5, 5]),
        (with_batch_norm, [5, 5]),
    ],
)
@pytest.mark.parametrize("loss", GAMES)
def test_both_batches_are_one_only_where_that_is_known_to_be_the_same(
    make: Callable[[], nn.Module], batches: list[int], loss: str
) -> None:
    discriminator = make()
    gan = GAN(Generator(3, (1, 8, 8), width=4), discriminator, latent_dim=3, loss=loss)
    x, z = torch.randn(5, 1, 8, 8), gan.latent(5)
    real, fake = discriminator(x), discriminator(gan.fake(z))
    expected = GAMES[loss].discriminator(real.reshape(5), fake.reshape(5))
    sizes = []
    discriminator.register_forward_pre_hook(lambda _, images: sizes.append(len(images[0])))
    torch.testing.assert_close(gan.discriminator_loss(x, z), expected)
    assert sizes == batches


def test_the_real_images_handed_in_are_left_as_they_were() -> None:
    gan = GAN.for_images((1, 8, 8), latent_dim=2, width=2, r1=1.0, r2=1.0)
    x = torch.zeros(3, 1, 8, 8)
    gan.discriminator_loss(x, gan.latent(3)).backward()  # type: ignore[no-untyped-call]
    assert not x.requires_grad
    assert x.grad is None


@pytest.mark.parametrize("r2", [0.0, 1.0])
def test_a_generator_may_hand_out_its_own_parameters(r2: float) -> None:
    """Images that are themselves learned: the discriminator's phase must not touch them."""

    class Pictures(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.pictures = nn.Parameter(torch.randn(4, 2))

        def forward(self, z: Tensor) -> Tensor:
            return self.pictures

    generator = Pictures()
    gan = GAN(generator, nn.Linear(2, 1), latent_dim=1, r2=r2)
    gan.discriminator_loss(torch.randn(4, 2), gan.latent(4)).backward()  # type: ignore[no-untyped-call]
    assert generator.pictures.grad is None
    assert generator.pictures.requires_grad
    assert gan.phases()[1].parameters == (generator.pictures,)


def test_the_relativistic_generator_keeps_no_graph_of_the_real_images() -> None:
    seen = []

    class Judge(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            seen.append(torch.is_grad_enabled())
            return super().forward(x)

    gan = GAN(nn.Linear(2, 2), Judge(2, 1), latent_dim=2, loss="relativistic")
    assert gan.generator_loss(torch.randn(4, 2), gan.latent(4)).requires_grad
    assert seen == [True, False]


@pytest.mark.parametrize("shape", [(6,), (6, 1), (6, 1, 1, 1)])
@pytest.mark.parametrize("loss", GAMES)
def test_logits_may_come_in_three_shapes(shape: tuple[int, ...], loss: str) -> None:
    class Judge(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(2, 1)

        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = self.linear(x)
            return logits.view(shape)

    gan = GAN(nn.Linear(3, 2), Judge(), latent_dim=3, loss=loss, r1=1.0)
    for phase in gan.phases():
        losses = phase.loss(torch.randn(6, 2), None)
        assert all(
            g.isfinite().all() for g in torch.autograd.grad(losses["loss"], phase.parameters)
        )


def test_another_shape_of_logits_is_refused() -> None:
    gan = GAN(nn.Linear(3, 2), nn.Linear(2, 4), latent_dim=3)
    with pytest.raises(ValueError, match=r"Linear must return one number per image.*\(5, 4\)"):
        gan.discriminator_loss(torch.randn(5, 2), gan.latent(5))


def test_unknown_options_are_refused() -> None:
    with pytest.raises(ValueError, match="loss must be one of non_saturating, minimax, hinge"):
        GAN(nn.Identity(), nn.Identity(), latent_dim=1, loss="least_squares")
    for penalty in (-1.0, float("nan")):
        with pytest.raises(ValueError, match="r1 and r2 must be 0 or more"):
            GAN(nn.Identity(), nn.Identity(), latent_dim=1, r1=penalty)


def test_its_description_names_the_game() -> None:
    assert "loss='hinge', r1=0.5, r2=0.0" in repr(GAN.for_images((1, 8, 8), loss="hinge", r1=0.5))
