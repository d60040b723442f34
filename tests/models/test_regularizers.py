from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from fastgen.models import (
    R1,
    R2,
    REGULARIZERS,
    WGAN,
    Critic,
    GradientPenalty,
    Regularizer,
    SpectralNorm,
    WeightClipping,
)


class Bowl(nn.Module):
    """f(x) = a |x|^2 / 2, so |grad f(x)| = a |x|."""

    def __init__(self, a: float) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.tensor(a, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return self.a * x.reshape(len(x), -1).square().sum(1) / 2


class Flat(nn.Module):
    """f(x) = w . x with w = 0: its gradient is exactly 0."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(size))

    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(len(x), -1) @ self.weight


@pytest.mark.parametrize("shape", [(6,), (6, 1), (6, 5), (6, 3, 4, 2)])
def test_the_gradient_penalty_lies_on_the_line_of_each_pair(shape: tuple[int, ...]) -> None:
    real, fake = torch.randn(2, *shape, dtype=torch.float64)
    torch.manual_seed(7)
    penalty = GradientPenalty(3.0)(Bowl(0.8), real, fake)

    torch.manual_seed(7)
    u = torch.rand(6, dtype=torch.float64).view(6, *[1] * (len(shape) - 1))
    between = (u * real + (1 - u) * fake).reshape(6, -1)
    torch.testing.assert_close(penalty, 3 * (0.8 * between.norm(dim=1) - 1).square().mean())


def test_zero_centered_penalties_lie_on_their_own_side() -> None:
    real, fake = torch.randn(2, 6, 4, dtype=torch.float64)
    bowl = Bowl(0.8)
    for penalty, images in ((R1(0.6), real), (R2(0.6), fake)):
        expected = 0.3 * 0.64 * images.square().sum(1).mean()
        torch.testing.assert_close(penalty(bowl, real, fake), expected)


@pytest.mark.parametrize("penalty", [GradientPenalty(10.0), R1(1.0), R2(1.0)])
def test_a_critic_without_slope_gets_a_finite_penalty_and_gradient(penalty: Regularizer) -> None:
    critic = Flat(4)
    result = penalty(critic, torch.randn(5, 4), torch.randn(5, 4))
    assert result is not None
    assert result.item() == (10 if isinstance(penalty, GradientPenalty) else 0)
    (gradient,) = torch.autograd.grad(result, critic.weight)
    assert torch.equal(gradient, torch.zeros(4))


@pytest.mark.parametrize("shapes", [((4, 2), (5, 2)), ((4, 2), (4, 3)), ((4,), (4, 1))])
def test_the_gradient_penalty_refuses_batches_that_do_not_pair(
    shapes: tuple[tuple[int, ...], tuple[int, ...]],
) -> None:
    real, fake = (torch.zeros(shape) for shape in shapes)
    with pytest.raises(ValueError, match="both batches must have one shape"):
        GradientPenalty(10.0)(nn.Flatten(0), real, fake)


@pytest.mark.parametrize("differentiable", [False, True])
def test_penalties_leave_their_images_as_they_were(differentiable: bool) -> None:
    given = torch.randn(2, 3, 2, dtype=torch.float64, requires_grad=differentiable)
    real, fake = given.unbind()
    for penalty in (GradientPenalty(1.0), R1(1.0), R2(1.0)):
        result = penalty(Bowl(1.0), real, fake)
        assert result is not None
        result.backward()  # type: ignore[no-untyped-call]
    assert given.grad is None
    assert real.requires_grad == fake.requires_grad == differentiable


@pytest.mark.parametrize("limit", [0.01, 0.3])
def test_clipping_clamps_every_weight_of_the_critic_and_no_other(limit: float) -> None:
    model = WGAN.for_images((1, 8, 8), width=4, regularizer=WeightClipping(limit))
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    critic, generator = model.phases()
    assert critic.after_step is not None
    assert generator.after_step is None
    critic.after_step()
    for name, parameter in model.named_parameters():
        inside = name.startswith("critic.")
        expected = before[name].clamp(-limit, limit) if inside else before[name]
        assert torch.equal(parameter, expected)
    assert any(before[name].abs().max() > limit for name in before if name.startswith("critic."))


def singular_values(critic: nn.Module) -> list[float]:
    layers = [m for m in critic.modules() if parametrize.is_parametrized(m, "weight")]
    matrices = [
        (m.weight.transpose(0, 1) if isinstance(m, nn.ConvTranspose2d) else m.weight).flatten(1)
        for m in layers
        if isinstance(m.weight, Tensor)
    ]
    return [torch.linalg.matrix_norm(matrix, 2).item() for matrix in matrices]


def test_spectral_norm_makes_every_largest_singular_value_one() -> None:
    model = WGAN.for_images((3, 32, 32), width=8, regularizer=SpectralNorm())
    for _ in range(30):
        model.critic(torch.randn(2, 3, 32, 32))
    model.eval()
    values = singular_values(model.critic)
    assert len(values) == 4
    assert values == pytest.approx([1.0] * 4, abs=0.02)


def test_spectral_norm_knows_transposed_and_plain_layers() -> None:
    critic = nn.Sequential(
        nn.Conv2d(1, 6, 3), nn.ConvTranspose2d(6, 5, 2), nn.Flatten(), nn.Linear(5 * 49, 1)
    )
    WGAN(nn.Identity(), critic, latent_dim=2, regularizer=SpectralNorm())
    for _ in range(60):
        critic(torch.randn(2, 1, 8, 8))
    critic.eval()
    assert singular_values(critic) == pytest.approx([1.0] * 3, abs=0.02)


def test_spectral_norm_runs_in_full_precision_under_autocast(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    critic = Critic((1, 8, 8), width=2)
    SpectralNorm().prepare(critic)
    seen = []
    for module in critic.modules():
        if type(module).__name__ == "_SpectralNorm":
            module.register_forward_hook(lambda *_: seen.append(torch.is_autocast_enabled("cpu")))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        critic(torch.randn(2, 1, 8, 8))
    assert seen
    assert not any(seen)


def test_spectral_norm_normalizes_once_and_needs_something_to_normalize() -> None:
    critic = Critic((1, 8, 8), width=2)
    SpectralNorm().prepare(critic)
    names = list(critic.state_dict())
    SpectralNorm().prepare(critic)
    assert list(critic.state_dict()) == names
    with pytest.raises(ValueError, match="no convolution or linear layer"):
        SpectralNorm().prepare(nn.Flatten())


def test_a_normalized_critic_is_saved_and_loaded() -> None:
    first, second = (
        WGAN.for_images((1, 8, 8), width=2, regularizer=SpectralNorm()).eval() for _ in range(2)
    )
    x = torch.randn(3, 1, 8, 8)
    assert not torch.equal(first.critic(x), second.critic(x))
    second.load_state_dict(first.state_dict())
    torch.testing.assert_close(first.critic(x), second.critic(x))


def test_a_regularizer_of_ones_own_is_one_class() -> None:
    calls = []

    class Spy(Regularizer):
        def prepare(self, critic: nn.Module) -> None:
            calls.append("prepare")

        def __call__(self, critic: nn.Module, real: Tensor, fake: Tensor) -> Tensor:
            calls.append("penalty")
            return torch.tensor(2.5)

        def after_step(self, critic: nn.Module) -> None:
            calls.append("after_step")

    model = WGAN(nn.Linear(2, 3), nn.Linear(3, 1), latent_dim=2, regularizer=Spy())
    phase = model.phases()[0]
    losses = phase.loss(torch.randn(4, 3), None)
    assert phase.after_step is not None
    phase.after_step()
    assert calls == ["prepare", "penalty", "after_step"]
    assert losses["penalty"].item() == 2.5
    torch.testing.assert_close(losses["loss"], 2.5 - losses["gap"])


@pytest.mark.parametrize(
    "make",
    [
        lambda: GradientPenalty(-1.0),
        lambda: R1(-0.1),
        lambda: R2(float("nan")),
        lambda: WeightClipping(0.0),
    ],
)
def test_settings_that_make_no_sense_are_refused(make: Callable[[], Regularizer]) -> None:
    with pytest.raises(ValueError, match="must be"):
        make()


def test_the_table_holds_the_published_settings() -> None:
    made = {name: make() for name, make in REGULARIZERS.items()}
    assert made == {
        "gradient_penalty": GradientPenalty(10.0),
        "weight_clipping": WeightClipping(0.01),
        "spectral_norm": SpectralNorm(),
        "none": None,
    }
