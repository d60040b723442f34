"""The memory format of a convolution's weights: to channels_last, and back."""

from __future__ import annotations

import torch
from torch import nn


def to_channels_last(layer: nn.Module) -> None:
    """Move the four-dimensional parameters of a layer, those of its parametrizations too, and note
    which. They stay the same objects.
    """
    moved = []
    for name, parameter in layer.named_parameters():
        four = parameter.dim() == 4 and parameter.is_contiguous()
        if four and not parameter.is_contiguous(memory_format=torch.channels_last):
            _move(parameter, torch.channels_last)
            moved.append(name)
    layer.__dict__["_accelerated_layout"] = moved + layer.__dict__.get("_accelerated_layout", [])


def to_original(layer: nn.Module) -> None:
    """Move back what was moved, where it is still there and still channels_last."""
    parameters = dict(layer.named_parameters())
    for name in layer.__dict__.get("_accelerated_layout", []):
        if name in parameters:
            _move(parameters[name], torch.contiguous_format)


def _move(parameter: nn.Parameter, memory_format: torch.memory_format) -> None:
    """The gradient goes along: autograd wants it in the layout of its parameter."""
    parameter.data = parameter.data.contiguous(memory_format=memory_format)
    if parameter.grad is not None:
        parameter.grad = parameter.grad.contiguous(memory_format=memory_format)
