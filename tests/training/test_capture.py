"""fastgen.capture: n calls are n steps, with and without a graph."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tape import Tape
from torch import Tensor, nn

import fastgen
from fastgen.models import WGAN, GradientPenalty
from fastgen.training import capture as capture_module
from fastgen.training.capture import CaptureError


@pytest.fixture
def on_tape(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """fastgen.capture with a tape where a CUDA graph would be."""

    def capture(function: Any, inputs: Any, warmup: int = 3) -> Any:
        return capture_module.Captured(function, inputs, warmup, Tape())

    return capture


class Critic:
    """The step of a critic with a gradient penalty, and what it trains."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.model = WGAN.for_images(
            (1, 8, 8), latent_dim=3, width=4, regularizer=GradientPenalty(10.0)
        )
        self.optimizer = torch.optim.Adam(self.model.critic.parameters(), lr=1e-3, fused=True)

    def step(self, images: Tensor, noise: Tensor) -> dict[str, Tensor]:
        loss = self.model.critic_loss(images, noise)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return {"loss": loss, "again": 2 * loss}


def batches(count: int) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [
        (torch.rand(4, 1, 8, 8, generator=generator), torch.randn(4, 3, generator=generator))
        for _ in range(count)
    ]


def run(step: Callable[..., dict[str, Tensor]]) -> list[float]:
    torch.manual_seed(2)  # the penalty draws its points
    return [step(*batch)["loss"].item() for batch in batches(8)]


def test_every_call_is_one_step_with_the_numbers_of_the_plain_function(
    on_tape: Callable[..., Any],
) -> None:
    plain, captured = Critic(), Critic()
    step = on_tape(captured.step, batches(1)[0])
    expected = run(plain.step)
    assert run(step) == expected
    assert len(set(expected)) == 8
    assert step.replaying
    for one, other in zip(plain.model.parameters(), captured.model.parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("warmup", [1, 2, 5])
def test_the_first_calls_run_the_function_and_the_next_one_records_it(
    warmup: int, on_tape: Callable[..., Any]
) -> None:
    calls: list[int] = []

    def double(x: Tensor) -> Tensor:
        calls.append(1)
        return 2 * x

    step = on_tape(double, (torch.zeros(2),), warmup)
    for k in range(1, 9):
        assert torch.equal(step(torch.full((2,), float(k))), torch.full((2,), 2.0 * k))
        assert len(calls) == min(k, warmup + 1)
        assert step.replaying == (k > warmup)


def test_results_are_overwritten_by_the_next_call_and_carry_no_gradient(
    on_tape: Callable[..., Any],
) -> None:
    weight = nn.Parameter(torch.ones(2))
    step = on_tape(lambda x: (x * weight, [x.sum()]), (torch.zeros(2),), 1)
    step(torch.ones(2))
    first, second = step(torch.ones(2)), None
    kept = first[0].clone()
    second = step(torch.full((2,), 3.0))
    assert second[0] is first[0]
    assert torch.equal(first[0], torch.full((2,), 3.0))
    assert torch.equal(kept, torch.ones(2))
    assert not first[0].requires_grad


@pytest.mark.parametrize("device", ["tape", "cpu"])
def test_the_gradient_of_an_input_is_that_of_its_call(
    device: str, on_tape: Callable[..., Any]
) -> None:
    def step(x: Tensor, y: Tensor) -> tuple[Tensor | None, Tensor | None]:
        (x**2 * y).sum().backward()
        (x * y).sum().backward()  # within a call gradients add up
        return x.grad, y.grad

    capture = on_tape if device == "tape" else fastgen.capture
    inputs = torch.ones(2, requires_grad=True), torch.ones(2)
    step = capture(step, inputs, warmup=2)
    for k in range(1, 7):
        x, y = torch.tensor([1.0, k]), torch.tensor([float(k), 2.0])
        gradient, none = step(x, y)
        assert torch.equal(gradient, 2 * x * y + y)
        assert none is None
    assert step.replaying == (device == "tape")


def test_arguments_may_be_named_and_constants_are_checked(on_tape: Callable[..., Any]) -> None:
    def scaled(x: Tensor, factor: float, *, shift: Tensor | None = None) -> Tensor:
        return x * factor

    step = on_tape(scaled, (torch.zeros(2), 3.0), 1)
    for _ in range(3):
        assert torch.equal(step(factor=3.0, x=torch.ones(2)), torch.full((2,), 3.0))
    with pytest.raises(ValueError, match=r"factor must be what its example was, 3.0 \(got 4.0\)"):
        step(torch.ones(2), 4.0)
    with pytest.raises(ValueError, match="x must be what its example was, a tensor"):
        step(1.0, 3.0)
    with pytest.raises(TypeError, match=r"expected 2 arguments as in example_inputs \(got 1\)"):
        step(torch.ones(2))


@pytest.mark.parametrize("device", ["tape", "cpu"])
@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (torch.zeros(3), r"noise must have the shape of its example, \(2,\) \(got \(3,\)\)"),
        (
            torch.zeros(2, dtype=torch.float64),
            r"noise must have the dtype of its example, torch.float32 \(got torch.float64\)",
        ),
        (
            torch.zeros(2, device="meta"),
            r"noise must have the device of its example, cpu \(got meta\)",
        ),
    ],
)
def test_an_input_that_does_not_fit_is_named_and_nothing_runs(
    device: str, wrong: Tensor, message: str, on_tape: Callable[..., Any]
) -> None:
    total = torch.zeros(2)

    def add(images: Tensor, noise: Tensor) -> Tensor:
        return total.add_(images + noise)

    capture = on_tape if device == "tape" else fastgen.capture
    step = capture(add, (torch.zeros(2), torch.zeros(2)), warmup=1)
    for done in range(3):
        with pytest.raises(ValueError, match=message):
            step(torch.ones(2), wrong)
        assert torch.equal(total, torch.full((2,), float(done)))
        step(torch.ones(2), torch.zeros(2))


def test_without_a_gpu_every_call_runs_the_function() -> None:
    plain, captured = Critic(), Critic()
    step = fastgen.capture(captured.step, batches(1)[0])
    assert run(step) == run(plain.step)
    assert not step.replaying


def test_a_function_that_waits_is_refused_and_has_changed_nothing(
    on_tape: Callable[..., Any],
) -> None:
    total = torch.zeros(())

    def waits(x: Tensor) -> float:
        total.add_(x.sum())
        return total.item()

    step = on_tape(waits, (torch.zeros(2),), 1)
    assert step(torch.ones(2)) == 2
    with pytest.raises(CaptureError, match="not permitted when stream is capturing"):
        step(torch.ones(2))
    assert total == 2


def test_settings_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ValueError, match=r"warmup must be at least 1 \(got 0\)"):
        fastgen.capture(lambda x: x, (torch.zeros(2),), warmup=0)
    with pytest.raises(ValueError, match=r"must lie on one device \(got cpu, meta\)"):
        fastgen.capture(lambda x, y: x, (torch.zeros(2), torch.zeros(2, device="meta")))
