"""The exponential moving average of weights."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fastgen.training.averaging import WeightAverage


class Pair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.averaged, self.other = nn.BatchNorm1d(3), nn.Linear(3, 3)
        self.averaged.double()


def average(model: Pair, decay: float, **options: bool) -> WeightAverage:
    return WeightAverage(model, ("averaged",), decay, **options)


def test_a_constant_from_zero_averages_to_c_times_1_minus_decay_to_the_n() -> None:
    model, c, decay = Pair(), 0.75, 0.9
    nn.init.zeros_(model.averaged.weight)
    mean = average(model, decay, warm_up=False)
    nn.init.constant_(model.averaged.weight, c)
    for n in range(1, 200):
        mean.update(n)
        expected = torch.full((3,), c * (1 - decay**n), dtype=torch.float64)
        torch.testing.assert_close(mean.weights["averaged.weight"], expected, rtol=1e-13, atol=0)


def test_the_warm_up_follows_its_formula() -> None:
    model, decay, expected = Pair(), 0.97, 1.0
    mean = average(model, decay)
    decays = []
    for t in range(1, 400):
        weight = float(torch.randn((), dtype=torch.float64))
        nn.init.constant_(model.averaged.weight, weight)
        mean.update(t)
        decays.append(min(decay, (1 + t) / (10 + t)))
        expected = decays[-1] * expected + (1 - decays[-1]) * weight
    assert decays[0] == 2 / 11
    assert decays[-1] == decay
    torch.testing.assert_close(
        mean.weights["averaged.weight"],
        torch.full((3,), expected, dtype=torch.float64),
        rtol=1e-12,
        atol=0,
    )


def test_buffers_are_copied_and_other_modules_left_alone() -> None:
    model = Pair()
    mean = average(model, 0.9)
    model.averaged.running_mean += 5
    mean.update(1)
    assert torch.equal(mean.weights["averaged.running_mean"], model.averaged.running_mean)
    assert all(name.startswith("averaged.") for name in mean.weights)


def test_the_model_computes_with_the_average_inside_and_with_its_own_weights_outside() -> None:
    model, x = Pair().eval(), torch.randn(2, 3, dtype=torch.float64)
    mean = average(model, 0.5, warm_up=False)
    own = model.averaged.weight.clone()
    with torch.no_grad():
        model.averaged.weight += 4
        mean.update(1)
        moved = model.averaged(x)
        with mean.applied():
            torch.testing.assert_close(model.averaged.weight.detach(), own + 2)
            assert not torch.equal(model.averaged(x), moved)
        assert torch.equal(model.averaged(x), moved)
    assert torch.equal(mean.weights["averaged.weight"], own + 2)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_averages_of_16_bit_weights_follow_small_differences(dtype: torch.dtype) -> None:
    model, expected = Pair(), 1.0
    model.averaged.to(dtype)
    mean = average(model, 0.999, warm_up=False)
    nn.init.constant_(model.averaged.weight, 1.5)
    for n in range(1, 1001):
        mean.update(n)
        expected = 0.999 * expected + 0.001 * 1.5
    own = model.averaged.weight.detach().clone()
    torch.testing.assert_close(
        mean.weights["averaged.weight"], torch.full((3,), expected), rtol=1e-5, atol=0
    )
    with mean.applied():
        inside = model.averaged.weight.detach()
        torch.testing.assert_close(inside, torch.full((3,), expected).to(dtype))
    assert torch.equal(model.averaged.weight.detach(), own)


class Tied(nn.Module):
    """One weight under three names, in two averaged modules."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), nn.Linear(2, 2)
        nn.init.ones_(self.other.weight)
        self.one[0].weight = self.one[1].weight = self.other.weight


def test_a_tied_weight_has_one_average_under_all_of_its_names() -> None:
    model = Tied()
    mean = WeightAverage(model, ("one", "other", "one"), 0.5, warm_up=False)
    assert mean.weights.keys() == model.state_dict().keys()
    tied = ("one.0.weight", "one.1.weight", "other.weight")
    nn.init.constant_(model.other.weight, 5)
    mean.update(1)
    for _ in range(2):
        assert all(torch.equal(mean.weights[name], torch.full((2, 2), 3.0)) for name in tied)
        with mean.applied():
            assert torch.equal(model.other.weight.detach(), torch.full((2, 2), 3.0))
            assert model.one[0].weight is model.other.weight
        assert torch.equal(model.other.weight.detach(), torch.full((2, 2), 5.0))
    model.load_state_dict({**model.state_dict(), **mean.weights})
    assert torch.equal(model.other.weight.detach(), torch.full((2, 2), 3.0))


def test_an_error_inside_gives_the_weights_back() -> None:
    model = Pair()
    mean = average(model, 0.5)
    nn.init.constant_(model.averaged.weight, 3)
    with pytest.raises(KeyError), mean.applied():
        raise KeyError
    assert torch.equal(model.averaged.weight.detach(), torch.full((3,), 3.0).double())


@pytest.mark.parametrize("decay", [-0.1, 1.0, 1.5])
def test_a_decay_that_never_or_always_forgets_is_refused(decay: float) -> None:
    with pytest.raises(ValueError, match=r"ema_decay must lie in \[0, 1\)"):
        average(Pair(), decay)


@pytest.mark.parametrize("change", [{"more": torch.zeros(3)}, {}])
def test_averages_of_another_model_are_refused(change: dict[str, torch.Tensor]) -> None:
    mean = average(Pair(), 0.9)
    weights = {**mean.weights, **change}
    if not change:
        weights.popitem()
    with pytest.raises(ValueError, match="averaged weights belong to another model"):
        mean.load(weights)
