"""Where a model computes."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import nn

Module = TypeVar("Module", bound=nn.Module)


def resolve_device(device: str | torch.device) -> torch.device:
    """The device that a name means here; ``"auto"`` is a CUDA GPU, or the CPU where there is none.

    A GPU is ready for use then, its default generator included, which torch makes no earlier.

    Raises:
        ValueError: there is no such device.
    """
    cuda = torch.cuda.is_available()
    try:
        found = torch.device(("cuda" if cuda else "cpu") if device == "auto" else device)
    except RuntimeError as error:
        raise ValueError(f"device must be auto, cpu or cuda (got {device!r})") from error
    if found.type != "cuda":
        return found
    count = torch.cuda.device_count() if cuda else 0
    index = found.index or 0
    if index >= count:
        raise ValueError(f"device {device!r} is not there: {count} CUDA GPUs are visible to torch")
    torch.cuda.init()  # type: ignore[no-untyped-call]
    return torch.device("cuda", index)


def move(model: Module, device: torch.device) -> Module:
    """Move a model to a device, 4-d weights to channels_last; parameters stay the same objects."""
    model.to(device)
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return model
