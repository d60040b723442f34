from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from fastgen.models import GAN, REGULARIZERS, VAE, WGAN, Classifier, GradientPenalty


class Scale(nn.Module):
    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(factor))

    def forward(self, x: Tensor) -> Tensor:
        return self.factor * x


@pytest.mark.parametrize("regularizer", [None, GradientPenalty(4.0)])
def test_value_and_losses_are_those_of_the_two_networks(
    regularizer: GradientPenalty | None,
) -> None:
    model = WGAN(Scale(3.0), Scale(0.5), latent_dim=1, regularizer=regularizer)
    x, z = torch.randn(7), torch.randn(7)
    gap = 0.5 * x.mean() - 1.5 * z.mean()
    penalty = 0.0 if regularizer is None else 4 * (0.5 - 1) ** 2
    torch.testing.assert_close(model.value(x, z), gap)
    torch.testing.assert_close(model.critic_loss(x, z), penalty - gap)
    torch.testing.assert_close(model.generator_loss(z), -1.5 * z.mean())


def test_the_critic_phase_logs_the_gap_and_the_penalty_if_there_is_one() -> None:
    for name, make in REGULARIZERS.items():
        model = WGAN.for_images((1, 8, 8), width=2, regularizer=make())
        losses = model.phases()[0].loss(torch.randn(3, 1, 8, 8), None)
        expected = {"loss", "gap"} | ({"penalty"} if name == "gradient_penalty" else set())
        assert set(losses) == expected
        penalty = losses.get("penalty", torch.zeros(()))
        torch.testing.assert_close(losses["loss"].detach(), penalty - losses["gap"])


def test_batches_of_different_sizes_are_averaged_each_on_its_own() -> None:
    model = WGAN(Scale(1.0), Scale(1.0), latent_dim=1, regularizer=None)
    x, z = torch.randn(3), torch.randn(5)
    torch.testing.assert_close(model.value(x, z), x.mean() - z.mean())
    penalized = WGAN(Scale(1.0), Scale(1.0), latent_dim=1)
    with pytest.raises(ValueError, match=r"one shape \(got \(3,\) and \(5,\)\)"):
        penalized.critic_loss(x, z)


def test_a_critic_may_answer_in_three_shapes_and_no_other() -> None:
    for layers in ([nn.Flatten(0)], [], [nn.Unflatten(1, (1, 1, 1))]):
        model = WGAN(nn.Linear(2, 3), nn.Sequential(nn.Linear(3, 1), *layers), latent_dim=2)
        assert model.critic_loss(torch.randn(4, 3), model.latent(4)).isfinite()
    model = WGAN(nn.Linear(2, 3), nn.Linear(3, 2), latent_dim=2)
    with pytest.raises(ValueError, match="Linear must return one number per image"):
        model.critic_loss(torch.randn(4, 3), model.latent(4))


def test_a_step_has_at_least_one_update_of_the_critic() -> None:
    assert WGAN.for_images((1, 8, 8), width=2, critic_steps=3).phases()[0].repeats == 3
    with pytest.raises(ValueError, match="critic_steps must be at least 1"):
        WGAN.for_images((1, 8, 8), critic_steps=0)


def test_what_does_not_belong_together_is_refused_by_name() -> None:
    for wrong in (GradientPenalty, "gradient-penalty", 10.0):
        with pytest.raises(TypeError, match="regularizer must be a fastgen"):
            WGAN.for_images((1, 8, 8), width=2, regularizer=wrong)  # type: ignore[arg-type]
    for kind in (WGAN, GAN):
        model = kind.for_images((3, 8, 8), width=2)
        with pytest.raises(ValueError, match=r"\(3, 8, 8\) \(got \(1, 8, 8\)\)"):
            model.phases()[0].loss(torch.zeros(4, 1, 8, 8), None)


def test_its_description_names_the_regularizer() -> None:
    text = repr(WGAN.for_images((1, 8, 8), width=2))
    assert "regularizer=GradientPenalty(weight=10.0), critic_steps=5" in text
    text = repr(WGAN.for_images((1, 8, 8), width=2, regularizer=None))
    assert "regularizer=Regularizer(), critic_steps=5" in text


def test_each_step_of_the_default_model_shrinks_the_gap_it_is_played_on() -> None:
    """Ascent on the critic raises the gap, descent on the generator lowers it again."""
    model = WGAN.for_images((1, 8, 8), latent_dim=4, width=4)
    x, z = torch.rand(64, 1, 8, 8), torch.randn(64, 4)
    critic = torch.optim.Adam(model.critic.parameters(), 1e-3)
    generator = torch.optim.Adam(model.generator.parameters(), 1e-3)

    gaps = [model.value(x, z).item()]
    for optimizer in (critic, generator):
        for _ in range(10):
            optimizer.zero_grad()
            loss = model.critic_loss(x, z) if optimizer is critic else model.generator_loss(z)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        gaps.append(model.value(x, z).item())
    assert gaps[1] > gaps[0]
    assert gaps[2] < gaps[1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bytes_are_no_images_yet(dtype: torch.dtype) -> None:
    x = torch.randint(0, 256, (4, 1, 8, 8), dtype=torch.uint8)
    gan = GAN.for_images((1, 8, 8), width=4).to(dtype)
    wgan = WGAN.for_images((1, 8, 8), width=4).to(dtype)
    z = gan.latent(4)
    for loss in (gan.discriminator_loss, wgan.critic_loss):
        with pytest.raises(TypeError, match=r"in \[-1, 1\] \(got torch.uint8\): fastgen.data.to_f"):
            loss(x, z)
    for model in (VAE.for_images((1, 8, 8), width=4), Classifier.for_images((1, 8, 8), 2, width=4)):
        with pytest.raises(TypeError, match=r"torch.uint8"):
            model.to(dtype)(x)
