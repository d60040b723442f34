"""What a model's phases and their losses must be: a model of one's own is told in its terms."""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from itertools import chain

import torch
from torch import Tensor, nn

from fastgen.models import Losses, Phase


def check_phases(phases: Sequence[Phase]) -> None:
    """Make sure that phases can be trained, and told apart in log and checkpoints.

    Raises:
        ValueError: there are none, two of one name, or one that trains nothing or never runs.
    """
    if not phases:
        raise ValueError("the model's phases() must list at least one phase (got none)")
    name, count = Counter(phase.name for phase in phases).most_common(1)[0]
    if count > 1:
        raise ValueError(
            f"the phases of a model must have names of their own (got {name!r} {count} times): log "
            "and checkpoints know them by these"
        )
    for phase in phases:
        if not phase.parameters:
            raise ValueError(
                f"phase {phase.name!r} has nothing to train: no parameter of it requires a "
                "gradient; unfreeze some, or leave the phase out of the model's phases()"
            )
        if phase.repeats < 1:
            raise ValueError(
                f"repeats of phase {phase.name!r} must be at least 1 (got {phase.repeats}): leave "
                "it out of the model's phases() to skip it"
            )


def check_optimizer(phase: str, optimizer: torch.optim.Optimizer) -> None:
    """Make sure that an optimizer moves parameters by their gradients alone.

    Raises:
        ValueError: its step needs a function that computes the loss again, as LBFGS's does.
    """
    # What a learning rate scheduler puts in the place of `step` shows the class's own, with `self`.
    own = getattr(type(optimizer), "step", None)
    if not (_takes(optimizer.step) or (own is not None and _takes(own, optimizer))):
        raise ValueError(
            f"the optimizer of phase {phase!r} must take its step without a closure (got "
            f"{type(optimizer).__name__}): it is given one gradient, as Adam and SGD want it"
        )


def _takes(step: Callable[..., object], *arguments: object) -> bool:
    try:
        inspect.signature(step).bind(*arguments)
    except TypeError:
        return False
    except ValueError:  # it has no signature
        return True
    return True


def check_differentiable(model: nn.Module) -> None:
    """Make sure that gradients of a model's weights can be recorded.

    Raises:
        ValueError: this is called, or the model was made, where PyTorch records none for good.
    """
    tensors = chain(model.named_parameters(), model.named_buffers())
    made = next((name for name, tensor in tensors if tensor.is_inference()), None)
    if made is not None:
        raise ValueError(
            f"{made} of the model was made inside of torch.inference_mode(), so it has no "
            "gradients: build the model outside"
        )
    if torch.is_inference_mode_enabled():
        raise ValueError("a Trainer needs gradients: make it outside of torch.inference_mode()")


def check_losses(phase: str, losses: Losses) -> None:
    """Make sure that what the loss of a phase returned is named 0-dim tensors, ``"loss"`` among
    them.

    Raises:
        TypeError: it is no dictionary of tensors.
        ValueError: ``"loss"`` is missing, a tensor has dimensions, or no parameter moves the loss.
    """
    what = (
        f"the loss of phase {phase!r} must return a dictionary of 0-dim tensors, one named 'loss'"
    )
    if not isinstance(losses, Mapping):
        raise TypeError(f"{what} (got {type(losses).__name__}): write {{'loss': value}}")
    for name, value in losses.items():
        if not isinstance(value, Tensor):
            raise TypeError(f"{what} (got {name!r}: {type(value).__name__})")
        if value.dim():
            raise ValueError(
                f"{what} (got {name!r} of shape {tuple(value.shape)}): take its mean() or sum()"
            )
    if "loss" not in losses:
        raise ValueError(f"{what} (got {', '.join(map(repr, losses)) or 'an empty one'})")
    if not losses["loss"].requires_grad:
        raise ValueError(
            f"the loss of phase {phase!r} must depend on a parameter that requires a gradient (got "
            "a constant): was it detached, or computed without gradients?"
        )
