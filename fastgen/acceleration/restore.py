"""`fastgen.restore`: an accelerated model as it was."""

from __future__ import annotations

from torch import nn

from .classes import Accelerated, exchange, is_accelerated, original_class
from .layouts import to_original

NOTES = ("_accelerated_plan", "_accelerated_fold")
"""The attributes in which acceleration keeps what it did."""


def restore(model: nn.Module) -> None:
    """Undo :func:`fastgen.accelerate`: classes, forwards and memory formats as they were.

    Parameters are the same objects with the values that they have now, trained or loaded meanwhile;
    hooks, parametrizations and flags set meanwhile stay. With the same values the outputs are bit
    for bit those of the original. A model that was not accelerated is left as it is.

    Raises:
        TypeError: `model` is no module, or `fully_shard` has derived classes from accelerated ones.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module (got {type(model).__name__})")
    for name, module in model.named_modules():
        if not is_accelerated(module) and isinstance(module, Accelerated):
            raise TypeError(
                f"{name or 'model'} has a class derived from its accelerated one, as fully_shard "
                "makes it: restore the model itself first, fastgen.restore(model), then fully_shard"
            )
    for module in model.modules():
        if is_accelerated(module):
            undo(module)


def undo(module: nn.Module) -> None:
    """Give one module its class and its memory format back."""
    to_original(module)
    exchange(module, original_class(module))
    for note in NOTES:
        module.__dict__.pop(note, None)
