"""Memory layouts that kernels outside of PyTorch take: dense ones, contiguous or channels_last."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .gradients import are_alone


def is_channels_last_like(tensor: Tensor) -> bool:
    """Whether memory runs N, H, W, C; with one channel or one pixel it runs both ways."""
    return tensor.dim() == 4 and tensor.is_contiguous(memory_format=torch.channels_last)


def is_dense(tensor: Tensor) -> bool:
    """Whether the tensor fills its memory in one of the two orders."""
    return tensor.is_contiguous() or is_channels_last_like(tensor)


def dense(tensor: Tensor, *, channels_last: bool) -> Tensor:
    """The tensor, or a copy that fills its memory in the order that is asked for."""
    if is_dense(tensor):
        return tensor
    return tensor.contiguous(
        memory_format=torch.channels_last if channels_last else torch.contiguous_format
    )


def same_order(left: Tensor, right: Tensor) -> bool:
    """Whether element i of one memory belongs to element i of the other; strides of dimensions of
    extent 1 say nothing.
    """
    if left.shape != right.shape:
        return False
    strides = left.stride(), right.stride()
    return strides[0] == strides[1] or all(
        extent == 1 or a == b for extent, a, b in zip(left.shape, *strides, strict=True)
    )


def ordered_like(tensor: Tensor, like: Tensor) -> Tensor:
    """The tensor in the memory order of `like`: itself, or a copy."""
    return tensor if same_order(tensor, like) else torch.empty_like(like).copy_(tensor)


def of_its_own(view: Tensor) -> Tensor:
    """A view of a fresh tensor as if it were that tensor: nobody could write in place to a view
    that a Function returns, nor, once gradients are recorded, to one that was made without them.
    Where no Function stands around it, the view keeps its place in the graph.
    """
    return view if are_alone() else view.detach()


def in_channels_last(run: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """`run` for operands of any layout: converted on the way in, the result contiguous again.

    For a backend that was asked for by name and has no kernel for contiguous pictures; "auto"
    takes it only where it was measured to be faster all the same.
    """

    def converted(*arguments: Any) -> Tensor:
        moved = [
            a.contiguous(memory_format=torch.channels_last)
            if isinstance(a, Tensor) and a.dim() == 4
            else a
            for a in arguments
        ]
        return run(*moved).contiguous()

    return converted
