"""What keeps a training step out of a CUDA graph, each as the reason that is told.

A graph repeats what happened on the device. What happens on the host happens once, when the graph
is recorded: hooks, counters, numbers kept in Python.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.modules import module as global_hooks

HOOKS = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_backward_hooks",
    "_backward_pre_hooks",
)


def of_processes(count: int) -> str | None:
    """Several processes that train together: they agree on the host how a step ends."""
    return f"{count} processes train together" if count > 1 else None


def of_optimizer(name: str, optimizer: torch.optim.Optimizer) -> str | None:
    """An optimizer that keeps its count of steps on the host, or may do so."""
    for group in optimizer.param_groups:
        on_device = group.get("capturable") or group.get("fused")
        if not on_device and not isinstance(optimizer, torch.optim.SGD):
            return (
                f"the optimizer of {name!r}, {type(optimizer).__name__}, is neither fused nor "
                "capturable"
            )
    return None


@contextmanager
def fused_as_capturable(optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """Inside, fused optimizers let themselves be captured.

    Theirs is the same kernel on the same state either way; the flag is put back, so that
    checkpoints do not tell whether a training was captured.
    """
    changed = [
        group
        for group in optimizer.param_groups
        if group.get("fused") and group.get("capturable") is False
    ]
    for group in changed:
        group["capturable"] = True
    try:
        yield
    finally:
        for group in changed:
            group["capturable"] = False


def of_hooks(model: nn.Module) -> str | None:
    """A hook, which a replay would not call. Those of torch.nn.utils do nothing but compute."""
    for kind in HOOKS:
        if _foreign(getattr(global_hooks, f"_global{kind}", {})):
            return "there is a global module hook, which a graph would not call"
    for name, module in model.named_modules():
        if any(_foreign(getattr(module, kind, None)) for kind in HOOKS):
            return f"{name or 'the model'} has a hook, which a graph would not call"
    for name, parameter in model.named_parameters():
        if _foreign(parameter._backward_hooks):
            return f"{name} has a hook, which a graph would not call"
    return None


def numbers_in(model: nn.Module) -> dict[str, object]:
    """Every number, flag and string that the modules keep in Python, by qualified name."""
    return {
        f"{name}.{key}".lstrip("."): value
        for name, module in model.named_modules()
        for key, value in vars(module).items()
        if isinstance(value, (bool, int, float, str))
    }


def of_numbers(before: dict[str, object], after: dict[str, object]) -> str | None:
    """A number in a module that changes from step to step."""
    for name, value in after.items():
        if name not in before or before[name] != value:
            return f"{name} changes from step to step, which a graph would not see"
    return None


def is_ours(function: Callable[..., Any]) -> bool:
    """Whether a function of this package, or a method or a partial of one, is to be called.

    Ours do nothing but compute; of others one cannot know.
    """
    while hasattr(function, "func"):
        function = function.func
    return getattr(function, "__module__", "").split(".")[0] == "fastgen"


def _foreign(hooks: Any) -> bool:
    return any(
        not getattr(hook, "__module__", type(hook).__module__).startswith("torch.nn.utils")
        for hook in (hooks or {}).values()
    )
