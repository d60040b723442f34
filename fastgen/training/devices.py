"""Where a model computes."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import nn

from .processes import own_gpu

Module = TypeVar("Module", bound=nn.Module)


def resolve_device(device: str | torch.device) -> torch.device:
    """The device that a name means here; ``"auto"`` is a CUDA GPU, or the CPU where there is none.

    Of several processes each has a GPU of its own where none is named: ``cuda:LOCAL_RANK``. A GPU
    is ready for use then, its default generator included, which torch makes no earlier.

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
    index = found.index if found.index is not None else own_gpu() if count else 0
    if found.index is None and index >= count > 0:
        raise ValueError(
            f"process {index} of this machine has no GPU to itself: {count} CUDA GPUs are visible "
            f"to torch, so start at most {count} processes (torchrun --nproc_per_node={count})"
        )
    if index >= count:
        raise ValueError(f"device {device!r} is not there: {count} CUDA GPUs are visible to torch")
    torch.cuda.init()  # type: ignore[no-untyped-call]
    return torch.device("cuda", index)


def move(model: Module, device: torch.device) -> Module:
    """Move a model to a device, 4-d weights to channels_last; parameters stay the same objects."""
    model.to(device)
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return model
