"""A training that blows up says where."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from toys import Constant, Noise, TwoNumbers, sgd

from fastgen.models import Losses, Model, Phase
from fastgen.training import NonFiniteLoss, Trainer
from fastgen.training.checkpoint import checkpoints
from fastgen.training.finite import FiniteWatch, Moment


class Log(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.log()


class Chain(Model):
    """A container around layers; its loss is a function of the last layer's output."""

    def __init__(self, *layers: nn.Module, loss: str = "mean") -> None:
        super().__init__()
        self.chain, self.loss = nn.Sequential(nn.Sequential(*layers), nn.Identity()), loss
        self.unused = nn.Linear(1, 1)

    def phases(self) -> list[Phase]:
        return [Phase("chain", tuple(self.chain.parameters()), self._loss)]

    def _loss(self, images: Tensor, labels: Tensor | None) -> Losses:
        output = self.chain(images)
        values = {
            "mean": output.mean(),
            "infinite": output.mean() / 0,
            "steep": (output - output.detach()).abs().sqrt().mean(),
        }
        return {"loss": values[self.loss], "logged": output.detach().mean()}


@pytest.fixture(params=[False, True], ids=["asked before each update", "asked later"])
def deferred(request: pytest.FixtureRequest) -> bool:
    """Whether the watch is asked late, as on a GPU."""
    return bool(request.param)


def stopped(
    model: Model, steps: int = 3, deferred: bool = False, **options: object
) -> NonFiniteLoss:
    trainer = Trainer(model, Constant(torch.full((2, 4), 1.0)), progress=False, **options)  # type: ignore[arg-type]
    trainer._stepper._watch.deferred = deferred
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    with pytest.raises(NonFiniteLoss) as caught:
        trainer.fit(steps)
    if caught.value.step == 1:
        for name, weight in model.state_dict().items():
            torch.testing.assert_close(weight, before[name], rtol=0, atol=0, equal_nan=True)
    return caught.value


def test_a_module_with_a_bad_weight_is_named(deferred: bool) -> None:
    model = Chain(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4))
    nn.init.constant_(model.chain[0][1].bias, float("nan"))
    error = stopped(model, deferred=deferred)
    assert (error.phase, error.step, error.module) == ("chain", 1, "chain.0.1")
    assert "chain.0.1 (Linear), whose bias no longer is finite" in str(error)
    assert "phase 'chain'" in str(error)
    assert "loss nan" in str(error)


def test_a_module_that_makes_a_bad_number_of_good_ones_is_named(deferred: bool) -> None:
    model = Chain(nn.Linear(4, 4), nn.ReLU(), nn.Threshold(9.0, -1.0), Log())
    error = stopped(model, deferred=deferred)
    assert error.module == "chain.0.3"
    assert "from finite inputs" in str(error)


def test_the_loss_itself_is_named_when_every_module_is_finite(deferred: bool) -> None:
    error = stopped(Chain(nn.Linear(4, 4), loss="infinite"), deferred=deferred)
    assert error.module is None
    assert "the loss itself" in str(error)


def test_a_bad_gradient_of_a_good_loss_stops_before_the_update(deferred: bool) -> None:
    error = stopped(Chain(nn.Linear(4, 4), loss="steep"), deferred=deferred)
    assert error.module is None
    assert "its gradient is not" in str(error)


def test_the_step_and_the_phase_are_those_of_the_first_bad_number(deferred: bool) -> None:
    """a doubles from 1; b's loss is log(9 - a): it fails in the fourth step, at a = 16."""
    model = TwoNumbers(
        {"a": lambda a, b, x: -a * a.detach(), "b": lambda a, b, x: b * (9 - a).log()}
    )
    fused = partial(torch.optim.SGD, lr=1.0, fused=True)
    error = stopped(model, 10, deferred, optimizer=fused)
    assert (error.phase, error.step) == ("b", 4)
    assert model.a.item() == 16
    assert torch.isfinite(model.b)


def test_an_optimizer_that_is_not_told_of_bad_numbers_steps_as_ever() -> None:
    """Only fused ones ask the device whether to; the step and the phase are right all the same."""
    model = TwoNumbers({"a": lambda a, b, x: a / (3 - b), "b": lambda a, b, x: -b})
    error = stopped(model, 5, True, optimizer=sgd(1.0))
    assert (error.phase, error.step) == ("a", 2)
    assert not torch.isfinite(model.a)


def test_bad_numbers_that_were_not_waited_for_never_reach_a_checkpoint(run: Path) -> None:
    """As on a GPU: a becomes infinite in the third step; the checkpoint that is due asks first."""
    model = TwoNumbers({"a": lambda a, b, x: -a * a.detach() / (3 - b), "b": lambda a, b, x: -b})
    every = {"log_every": 5, "sample_every": 5, "checkpoint_every": 1}
    trainer = Trainer(model, Noise(1), optimizer=sgd(0.5), run=run, progress=False, **every)
    trainer._stepper._watch.deferred = True
    with pytest.raises(NonFiniteLoss, match="stopped at step 3") as caught:
        trainer.fit(9)
    assert (caught.value.phase, caught.value.step) == ("a", 3)
    assert [path.name for path in checkpoints(run / "checkpoints")] == ["000001", "000002"]


def test_on_a_device_that_is_not_waited_for_the_first_bad_moment_is_found_later() -> None:
    watch, good, bad = FiniteWatch(torch.device("cpu")), torch.tensor(1.0), torch.tensor(torch.inf)
    gradients = [torch.ones(2), None]
    for step in range(3):
        watch.record(Moment(step, 0, 0), good, gradients)
    assert watch.first() is None
    watch.record(Moment(3, 0, 0), good, gradients)
    watch.record(Moment(3, 1, 2), good, [torch.tensor([0.0, torch.nan])])
    watch.record(Moment(4, 0, 0), bad, gradients)
    assert watch.first() == Moment(3, 1, 2)
    assert watch.first() is None


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_large_gradients_are_finite_also_where_their_norm_leaves_their_dtype(
    dtype: torch.dtype,
) -> None:
    watch, large = FiniteWatch(torch.device("cpu")), torch.full((100, 100), 6e4, dtype=dtype)
    watch.record(Moment(0, 0, 0), torch.tensor(1.0), [large, None])
    assert watch.first() is None
    large[3, 4] = torch.inf
    watch.record(Moment(1, 0, 0), torch.tensor(1.0), [large])
    assert watch.first() == Moment(1, 0, 0)
