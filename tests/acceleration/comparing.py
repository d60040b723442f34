"""How two models are compared: outputs, first and second derivatives, in float64; and how
one becomes an accelerated one.
"""

from __future__ import annotations

import copy
import functools
from typing import Any

import torch
from torch import Tensor, nn

import fastgen

accelerate = functools.partial(fastgen.accelerate, verbose=False)


def images(*shape: int) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float64)


def rows(report) -> dict[str, tuple[str, str]]:
    return {row.name: (row.became, row.why) for row in report}


def accelerated(model: nn.Module) -> tuple[nn.Module, nn.Module, dict[str, tuple[str, str]]]:
    """(the model in float64 and accelerated, the same untouched, the report by name)."""
    original = model.double()
    model = copy.deepcopy(original)
    return model, original, rows(accelerate(model))


def tensors(output: Any) -> list[Tensor]:
    return [output] if isinstance(output, Tensor) else list(output)


def derivatives(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """Outputs; the gradients of a score in input and parameters; those of a gradient penalty."""
    x = x.detach().clone().requires_grad_()
    parameters = dict(model.named_parameters())
    outputs = tensors(model(x + 0))  # an activation in place may overwrite what it is given
    score = sum((y.square() / 2 + y.sin()).mean() for y in outputs)
    wanted = {"input": x, **parameters}

    def gradients(loss: Tensor, **options: bool) -> dict[str, Tensor]:
        found = torch.autograd.grad(loss, list(wanted.values()), allow_unused=True, **options)
        pairs = zip(wanted.items(), found, strict=True)
        # A tensor that a loss does not depend on: PyTorch says zeros, fastgen nothing.
        return {name: torch.zeros_like(t) if g is None else g for (name, t), g in pairs}

    first = gradients(score, create_graph=True)
    penalty = (first["input"].flatten(1).norm(dim=1) - 1).square().mean()
    second = gradients(penalty)
    return {
        **{f"output {i}": y.detach() for i, y in enumerate(outputs)},
        **{f"first {name}": g.detach() for name, g in first.items()},
        **{f"second {name}": g for name, g in second.items()},
    }


def assert_same(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    """Equal within float64 rounding, each against the size of its own numbers."""
    assert ours.keys() == theirs.keys()
    for name, expected in theirs.items():
        scale = float(expected.abs().max()) if expected.numel() else 0.0
        difference = float((ours[name] - expected).abs().max()) if expected.numel() else 0.0
        assert ours[name].shape == expected.shape, name
        assert difference <= 1e-10 * scale + 1e-13, f"{name}: {difference} of {scale}"


def assert_same_model(ours: nn.Module, theirs: nn.Module, x: Tensor) -> None:
    """Outputs, derivatives, and the state that the forward left. The original gets a contiguous
    input: a `view` in its forward may not take another.
    """
    assert_same(derivatives(ours, x), derivatives(theirs, x.contiguous()))
    assert_same(
        {n: b.double() for n, b in ours.named_buffers()},
        {n: b.double() for n, b in theirs.named_buffers()},
    )
