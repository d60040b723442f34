"""Weights in autocast's dtype: cast once, all together, with the gradients of single casts."""

from __future__ import annotations

import threading
from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import fastgen
from fastgen.nn import ConvLeakyReLU2d, ConvTransposeLeakyReLU2d, LinearLeakyReLU
from fastgen.ops.casts import Casts, cast


class Calls(TorchDispatchMode):
    """Counts calls of operators."""

    def __init__(self) -> None:
        super().__init__()
        self.count: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count[func.overloadpacket.__name__] += 1
        return func(*args, **kwargs or {})


@pytest.fixture(autouse=True)
def _autocast() -> Any:
    with torch.autocast("cpu", torch.bfloat16):
        yield


def critic() -> nn.Sequential:
    return nn.Sequential(
        ConvLeakyReLU2d(3, 5, 3, padding=1),
        ConvLeakyReLU2d(5, 4, 3, padding=1),
        nn.Flatten(),
        LinearLeakyReLU(4 * 36, 7),
    )


def penalized(network: nn.Module, images: Tensor) -> Tensor:
    """Scores, and the penalty of their gradient in the images: every weight is used twice."""
    images = images.clone().requires_grad_()
    scores = network(images).float().sum(1)
    (slope,) = torch.autograd.grad(scores.sum(), images, create_graph=True)
    return scores.mean() + slope.square().sum() + network(images / 2).float().mean()


def by_hand(network: nn.Module, images: Tensor) -> list[Tensor]:
    """The gradients with every weight cast once, one by one, before the loss."""
    weights = {name: weight.to(torch.bfloat16) for name, weight in network.named_parameters()}

    class Penalized(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, images: Tensor) -> Tensor:
            return penalized(self.network, images)

    replaced = {f"network.{name}": weight for name, weight in weights.items()}
    loss = torch.func.functional_call(Penalized(), replaced, (images,))
    return list(torch.autograd.grad(loss, list(network.parameters())))


@pytest.mark.parametrize("alone", [1, 100, 2**17])
def test_gradients_through_the_second_order_are_those_of_single_casts(
    alone: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fastgen.ops.casts._FILLS_A_GPU", alone)
    network, images = critic(), torch.randn(2, 3, 6, 6)
    weights = list(network.parameters())
    expected = by_hand(network, images)
    casts = Casts(weights)
    for _ in range(3):
        with casts.shared():
            loss = penalized(network, images)
        found = torch.autograd.grad(loss, weights)
        assert all(map(torch.equal, found, expected))
        assert {gradient.dtype for gradient in found} == {torch.float32}


def test_weights_are_cast_once_and_by_one_call_from_the_second_evaluation_on() -> None:
    network, images = critic(), torch.randn(2, 3, 6, 6, dtype=torch.bfloat16)
    weights = list(network.parameters())
    casts, found = Casts(weights), []
    for _ in range(3):
        with Calls() as calls, casts.shared():
            loss = network(images).float().sum() + network(images / 2).float().sum()
        with Calls() as backward:
            torch.autograd.grad(loss, weights)
        found.append((calls.count["_foreach_copy_"], backward.count["_foreach_copy_"]))
    assert found == [(6, 6), (1, 1), (1, 1)]


def test_an_optimizers_step_between_two_evaluations_is_seen() -> None:
    layer, images = ConvLeakyReLU2d(2, 3, 1), torch.randn(1, 2, 4, 4)
    casts = Casts(layer.parameters())
    for _ in range(3):
        with casts.shared():
            shared = layer(images)
        assert torch.equal(shared, layer(images))
        with torch.no_grad():
            layer.weight.mul_(-2)


def test_a_first_use_without_gradients_leaves_later_ones_theirs() -> None:
    layer, images = ConvTransposeLeakyReLU2d(2, 3, 2), torch.randn(1, 2, 4, 4)
    casts = Casts(layer.parameters())
    for _ in range(2):
        with casts.shared():
            with torch.no_grad():
                layer(images)
            loss = layer(images).float().sum()
        assert all(g.any() for g in torch.autograd.grad(loss, list(layer.parameters())))


class WeightGradients(TorchDispatchMode):
    """The shapes of the weights whose gradients are computed."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: list[tuple[int, ...]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        results = func(*args, **kwargs or {})
        if func is torch.ops.aten.convolution_backward.default and results[1] is not None:
            self.shapes.append(tuple(results[1].shape))
        return results


def test_no_gradient_is_computed_of_weights_that_are_not_trained() -> None:
    """A generator's step goes through its critic and asks for nothing of the critic's weights."""
    generator, judge = ConvTransposeLeakyReLU2d(2, 3, 4, 2, 1), ConvLeakyReLU2d(3, 5, 4, 2, 1)
    noise, casts = torch.randn(2, 2, 5, 5), Casts(generator.parameters())
    for _ in range(3):
        with fastgen.backend("torch"), casts.shared():
            loss = judge(generator(noise)).float().sum()
        with WeightGradients() as gradients:
            torch.autograd.grad(loss, list(generator.parameters()))
        assert gradients.shapes == [(2, 3, 4, 4)]


def test_what_is_not_a_float32_weight_is_cast_as_ever() -> None:
    computed, half = nn.Parameter(torch.randn(3)) * 2, torch.randn(3, dtype=torch.bfloat16)
    with Casts([]).shared(), Calls() as calls:
        assert cast(half, torch.bfloat16) is half
        assert torch.equal(cast(computed, torch.bfloat16), computed.bfloat16())
    assert calls.count["_foreach_copy_"] == 0


TRANSFORMED = {
    "vmap": lambda network, x: torch.func.vmap(lambda x: network(x[None]))(x),
    "jvp": lambda network, x: torch.func.jvp(network, (x,), (x,))[1],
    "grad": lambda network, x: torch.func.grad(lambda x: network(x).float().square().sum())(x),
}


@pytest.mark.parametrize("name", TRANSFORMED)
def test_a_loss_may_transform_a_network_whose_casts_are_shared(name: str) -> None:
    network, images = critic(), torch.randn(2, 3, 6, 6)
    weights = list(network.parameters())

    def gradients() -> Any:
        transformed = TRANSFORMED[name](network, images)
        loss = transformed.float().square().sum() + network(images).float().square().sum()
        return torch.autograd.grad(loss, weights)

    casts, expected = Casts(weights), gradients()
    for _ in range(2):
        with casts.shared():
            found = gradients()
        torch.testing.assert_close(found, expected, rtol=2e-2, atol=2e-2)


def test_another_thread_shares_nothing() -> None:
    weight, counts = nn.Parameter(torch.randn(3)), []

    def work() -> None:
        with Calls() as calls:
            cast(weight, torch.bfloat16)
        counts.append(calls.count["_foreach_copy_"])

    with Casts([weight]).shared():
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    assert counts == [0]
