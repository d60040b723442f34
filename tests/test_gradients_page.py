"""What docs/gradients.md shows computes what plain PyTorch does, and its limits are as it says."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.autograd import forward_ad
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
)

from fastgen.ops import conv2d_bias_leaky_relu, reference

PAGE = (Path(__file__).resolve().parent.parent / "docs" / "gradients.md").read_text("utf-8")
START, *RECIPES = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


@pytest.fixture(autouse=True)
def in_float64() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def plain(network: nn.Sequential) -> nn.Sequential:
    """A network of PyTorch's own layers with the same weights."""
    layers = copy.deepcopy(network)
    return nn.Sequential(*(a.to_torch() if hasattr(a, "to_torch") else a for a in layers))


def computed(recipe: str, names: dict[str, Any]) -> list[torch.Tensor]:
    """The loss of a recipe, the products it makes and the gradients it leaves."""
    torch.manual_seed(1)
    names = dict(names)
    exec(recipe, names)
    parameters = [*names["critic"].parameters(), *names["generator"].parameters()]
    left = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    return [names.get("loss", torch.zeros(())), *names.get("products", []), *left]


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_computes_what_plain_pytorch_does(recipe: str) -> None:
    torch.manual_seed(0)
    names: dict[str, Any] = {}
    exec(START, names)
    others = dict(names, critic=plain(names["critic"]), generator=plain(names["generator"]))
    others["fake"] = others["generator"](others["z"])

    found, expected = computed(recipe, names), computed(recipe, others)
    assert sum(bool(each.abs().max() > 0) for each in expected) > 3
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-7, atol=1e-9)


def test_the_page_has_the_recipes_that_it_names() -> None:
    assert len(RECIPES) == 5
    words = "GradientPenalty", "R1", "R2", "directions", "products", "functional_call", "vmap"
    for word in words:
        assert any(word in recipe for recipe in RECIPES)


# --- limits ---


def operands() -> tuple[torch.Tensor, ...]:
    return tuple(torch.randn(s, requires_grad=True) for s in ((2, 3, 6, 6), (4, 3, 3, 3), (4,)))


def convolved(*tensors: torch.Tensor) -> torch.Tensor:
    return conv2d_bias_leaky_relu(*tensors).square().sum()


def test_a_dual_number_that_arrives_at_a_graph_from_before_is_an_error() -> None:
    x, weight, bias = operands()
    y = conv2d_bias_leaky_relu(x, weight, bias)
    with forward_ad.dual_level(), pytest.raises(NotImplementedError, match="jvp"):
        torch.autograd.grad(y, x, forward_ad.make_dual(y.detach(), y.detach()))


def test_what_goes_by_way_of_backward_is_what_forward_mode_gives() -> None:
    def plainly(*tensors: torch.Tensor) -> torch.Tensor:
        return reference.conv2d_bias_leaky_relu(*tensors).square().sum()

    tensors = tuple(t.detach() for t in operands())
    there = torch.autograd.functional
    along = torch.func.jvp(plainly, tensors, tensors)
    torch.testing.assert_close(there.jvp(convolved, tensors, tensors), along)
    for vectorize in (False, True):
        rows = there.jacobian(convolved, tensors, vectorize=vectorize)
        torch.testing.assert_close(rows, torch.func.jacfwd(plainly, (0, 1, 2))(*tensors))
        curved = there.hessian(convolved, tensors, vectorize=vectorize)
        expected = torch.func.hessian(plainly, (0, 1, 2))(*tensors)
        torch.testing.assert_close(curved, expected)
    nested: Callable[..., Any] = convolved
    truth: Callable[..., Any] = plainly
    for _ in range(3):
        nested, truth = (
            lambda *a, f=f: torch.func.grad(f, 1)(*a).square().sum() / 100 for f in (nested, truth)
        )
    torch.testing.assert_close(nested(*tensors), truth(*tensors))


def test_what_is_zero_everywhere_is_none() -> None:
    x, weight, bias = operands()
    y = conv2d_bias_leaky_relu(x, weight, bias)
    (gradient,) = torch.autograd.grad(y.sum(), x, create_graph=True)
    value = gradient.square().sum()
    rest: dict[str, Any] = {"retain_graph": True}
    assert torch.autograd.grad(value, bias, allow_unused=True, **rest) == (None,)
    (zeros,) = torch.autograd.grad(value, bias, materialize_grads=True, **rest)
    assert torch.equal(zeros, torch.zeros_like(bias))
    with pytest.raises(RuntimeError, match="allow_unused"):
        torch.autograd.grad(value, bias, **rest)
    value.backward()
    assert bias.grad is None


def test_a_compiled_function_has_first_gradients_only() -> None:
    tensors = operands()
    compiled = torch.compile(convolved, fullgraph=True, backend="aot_eager")
    (first,) = torch.autograd.grad(compiled(*tensors), tensors[0], create_graph=True)
    torch.testing.assert_close(first, torch.autograd.grad(convolved(*tensors), tensors[0])[0])
    with pytest.raises(RuntimeError, match="double backward"):
        torch.autograd.grad(first.sum(), tensors[1])


def test_at_zero_the_mask_takes_the_negative_side() -> None:
    slope = 0.3
    x = torch.zeros(1, 1, 1, 1, requires_grad=True)
    y = conv2d_bias_leaky_relu(x, torch.ones(1, 1, 1, 1), negative_slope=slope)
    assert torch.autograd.grad(y, x)[0].item() == slope
    for outside in (-0.1, 1.1):
        with pytest.raises(ValueError, match="negative_slope"):
            conv2d_bias_leaky_relu(x, torch.ones(1, 1, 1, 1), negative_slope=outside)


@pytest.mark.parametrize("slope", [0.2, 1.0])
def test_an_output_written_to_in_place_is_an_error_but_at_slope_1(slope: float) -> None:
    y = conv2d_bias_leaky_relu(*operands(), negative_slope=slope)
    y += 1
    if slope == 1:
        y.sum().backward()
        return
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_a_selective_checkpoint_that_keeps_convolutions_raises() -> None:
    keeps = partial(
        create_selective_checkpoint_contexts, lambda *_, **__: CheckpointPolicy.MUST_SAVE
    )
    value = checkpoint(convolved, *operands(), use_reentrant=False, context_fn=keeps)
    with pytest.raises(RuntimeError, match="mutated"):
        value.backward()
    tensors = operands()
    whole = checkpoint(convolved, *tensors, use_reentrant=False)
    (found,) = torch.autograd.grad(whole, tensors[1])
    torch.testing.assert_close(found, torch.autograd.grad(convolved(*tensors), tensors[1])[0])
