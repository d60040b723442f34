"""What a layer costs the host beside its kernels: counted Python calls and questions. No clock."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import fastgen
from fastgen.nn import ConvLeakyReLU2d, ConvTransposeLeakyReLU2d
from fastgen.ops import backend, checks, geometry, gradients, routing
from fastgen.ops.gradients import returning

PACKAGE = str(Path(fastgen.__file__).resolve().parent / "ops")
X = torch.randn(2, 4, 6, 6)
LAYERS = {
    "conv": lambda: ConvLeakyReLU2d(4, 5, 3, padding=1),
    "transposed": lambda: ConvTransposeLeakyReLU2d(4, 5, 4, 2, 1),
}


def counted(work: Callable[[], object]) -> Counter[str]:
    """Calls of functions and methods of fastgen.ops by name, on the second run."""
    work()
    calls: Counter[str] = Counter()

    def note(frame, event, argument):
        if event == "call" and frame.f_code.co_filename.startswith(PACKAGE):
            calls[frame.f_code.co_qualname] += 1

    sys.setprofile(note)
    try:
        work()
    finally:
        sys.setprofile(None)
    return calls


@pytest.fixture(params=LAYERS)
def layer(request):
    torch.manual_seed(0)
    return LAYERS[request.param]()


def test_a_forward_and_a_backward_are_few_calls(layer):
    x = X.clone().requires_grad_()

    def both():
        layer(x).sum().backward()

    calls = counted(both)
    assert sum(calls.values()) <= 70
    # Nothing is differentiated any more, so no Function but the layer's own is applied.
    assert calls["applier.<locals>.apply"] == 1
    assert calls["check"] == calls["Router.run"] == 0


def test_without_gradients_no_function_is_applied(layer):
    with torch.no_grad():
        assert counted(lambda: layer(X))["applier.<locals>.apply"] == 0


@pytest.mark.parametrize("told", [False, True])
def test_leaves_that_are_told_of_are_not_asked_about(layer, told, monkeypatch):
    ask, answers = gradients._engine_will_execute, Counter()

    def noting(node):
        try:
            answer = ask(node)
        except RuntimeError:
            answers["error"] += 1
            raise
        answers[answer] += 1
        return answer

    monkeypatch.setattr(gradients, "_engine_will_execute", noting)
    x = X.clone().requires_grad_()
    leaves = [x, layer.weight, layer.bias]
    plain = torch.autograd.grad(layer(x).square().sum(), leaves)
    assert answers["error"] == 3
    answers.clear()
    with returning(leaves if told else []):
        again = torch.autograd.grad(layer(x).square().sum(), leaves)
    assert answers["error"] == (0 if told else 3)
    for a, b in zip(plain, again, strict=True):
        assert torch.equal(a, b)
    assert not gradients._returned


def test_leaves_that_are_told_of_leave_others_unasked_for(layer):
    x = X.clone().requires_grad_()
    with returning([layer.weight]):
        calls = counted(lambda: torch.autograd.grad(layer(x).sum(), layer.weight))
    names = " ".join(calls)
    assert "input_gradient" not in names
    assert "weight_gradient" in names


def test_an_argument_that_equals_a_good_one_is_still_refused():
    x, weight = X, torch.randn(5, 4, 3, 3)
    fastgen.ops.conv2d_bias_leaky_relu(x, weight, None, 1, 1)
    with pytest.raises(TypeError, match="stride"):
        fastgen.ops.conv2d_bias_leaky_relu(x, weight, None, True, 1)
    with pytest.raises(TypeError, match="stride"):
        fastgen.ops.conv2d_bias_leaky_relu(x, weight, None, (1.0, 1), 1)
    with pytest.raises(TypeError, match="groups"):
        fastgen.ops.conv2d_bias_leaky_relu(x, weight, None, 1, 1, 1, True)
    with pytest.raises(TypeError, match="weight"):
        fastgen.ops.conv2d_bias_leaky_relu(x, weight.tolist(), None, 1, 1)
    with pytest.raises(TypeError, match="dtype"):
        fastgen.ops.conv2d_bias_leaky_relu(x, weight.double(), None, 1, 1)
    with pytest.raises(TypeError):
        checks.pair("stride", (True, 1), least=1)


def test_narrowed_kernels_choose_by_layout_and_forget_with_their_router(monkeypatch):
    router = routing.ConvolutionRouter("conv2d_bias_leaky_relu")
    monkeypatch.setitem(backend.KERNELS, ("conv2d_bias_leaky_relu", backend.AUTO), router)
    monkeypatch.setattr(backend, "_automatic", {"cpu": frozenset({"cpp", "torch"})})
    chosen = []
    choose = routing.Router._choose

    def noting(self, pass_, arguments):
        chosen.append(pass_)
        return choose(self, pass_, arguments)

    monkeypatch.setattr(routing.Router, "_choose", noting)
    layer = LAYERS["conv"]()
    x = X.clone().requires_grad_()
    last = X.contiguous(memory_format=torch.channels_last).requires_grad_()
    shifted = torch.randn(X.numel() + 1)[1:].view(X.shape)
    for _ in range(2):
        layer(x).backward(torch.ones(2, 5, 6, 6))
    first = ["forward", "mask_sum", "input_gradient", "weight_gradient"]
    assert chosen == first
    layer(last)
    layer(shifted)
    assert chosen == [*first, "forward", "forward"]
    held = layer(x)
    router.forget()
    held.backward(torch.ones(2, 5, 6, 6))
    assert chosen == [*first, "forward", "forward", *first[1:]]
    torch.use_deterministic_algorithms(True)
    try:
        layer(x)
    finally:
        torch.use_deterministic_algorithms(False)
    assert chosen[-1] == "forward"


def test_a_size_that_is_a_symbol_is_checked_every_time():
    class Symbol(tuple):
        def __hash__(self):
            raise TypeError("unhashable")

    shape = geometry.Geometry((1, 1), (1, 1), (1, 1), 1, False, Symbol((0, 0)))
    kernels = routing.ConvolutionRouter("conv2d_bias_leaky_relu")
    weight = torch.randn(5, 4, 3, 3)
    assert geometry.fitting(X, weight, None, shape, kernels) is kernels
    with pytest.raises(ValueError, match="channels"):
        geometry.fitting(X, weight[:, :3], None, shape, kernels)
