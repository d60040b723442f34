"""The memory format of a convolution's weights, and of what an optimizer keeps of them."""

from __future__ import annotations

import functools

import torch
from torch import Tensor, nn
from torch.optim.optimizer import Optimizer, register_optimizer_step_pre_hook


def to_channels_last(layer: nn.Module) -> None:
    """Move the four-dimensional parameters of a layer, those of its parametrizations too, and note
    which. They stay the same objects.
    """
    moved = [
        name
        for name, parameter in layer.named_parameters()
        if parameter.dim() == 4
        and parameter.is_contiguous()
        and _move(parameter, torch.channels_last)
    ]
    layer.__dict__["_accelerated_layout"] = moved + layer.__dict__.get("_accelerated_layout", [])


def to_original(layer: nn.Module) -> None:
    """Move back what was moved, where it is still there and still channels_last."""
    parameters = dict(layer.named_parameters())
    for name in layer.__dict__.pop("_accelerated_layout", []):
        if name in parameters:
            _move(parameters[name], torch.contiguous_format)


def _move(parameter: nn.Parameter, memory_format: torch.memory_format) -> bool:
    """Whether there was anything to move. The gradient goes along: autograd wants it in the layout
    of its parameter.

    A weight of 1x1 taps, or of one channel, is contiguous in both formats; but by its strides
    PyTorch tells in which a convolution answers, so these move.
    """
    data = parameter.data.to(memory_format=memory_format)
    if data.stride() == parameter.stride():
        return False
    _watch_optimizers()
    parameter.data = data
    if parameter.grad is not None:
        parameter.grad = parameter.grad.to(memory_format=memory_format)
    return True


def lay_out_state(optimizer: Optimizer, dimensions: int | None = None) -> None:
    """Give what an optimizer keeps of each parameter (those of so many dimensions) that one's
    memory format.

    A fused optimizer walks through the memory of both at once and does not look at strides. What it
    keeps is laid out as the parameter was when it began, and contiguous after a file was loaded.
    """
    for parameter, kept in optimizer.state.items():
        if not isinstance(parameter, Tensor) or dimensions not in (None, parameter.dim()):
            continue
        for key, value in kept.items():
            alike = type(value) is Tensor and value.shape == parameter.shape
            if alike and value.stride() != parameter.stride():
                kept[key] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


@functools.cache
def _watch_optimizers() -> None:
    """Before every step of any optimizer from now on: it may be one whose parameters have moved, or
    one that has loaded its state since.
    """
    register_optimizer_step_pre_hook(lambda optimizer, args, kwargs: lay_out_state(optimizer, 4))
