"""Pooling whose second order costs nothing in vain.

Pooling is linear in its input once it is known where the maxima are, so its backward does not
depend on the input. PyTorch's backward takes the input all the same, for its shape, and gives it a
second gradient of zeros, which autograd then pushes through the whole first forward graph. Here
nothing but shapes and indices are kept.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import Function

from fastgen.ops import checks
from fastgen.ops.gradients import applier, have_tangent, is_followed, is_last_order, sheltered

aten = torch.ops.aten

Map = Callable[[Tensor], Tensor]


class Linear(Function):
    """A linear map, given with its adjoint; differentiable to every order, nothing saved."""

    @staticmethod
    def forward(input: Tensor, forth: Map, back: Map, again: Map) -> Tensor:
        return forth(input)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        ctx.set_materialize_grads(False)
        _, _, ctx.back, ctx.again = inputs

    @staticmethod
    @sheltered
    def backward(ctx: Any, grad: Tensor | None) -> Any:
        if grad is None:
            return None, None, None, None
        if is_last_order():
            return ctx.back(grad), None, None, None
        return _apply(grad, ctx.back, ctx.again, ctx.back), None, None, None


_apply: Callable[..., Tensor] = applier(Linear)


def _fits(input: object) -> bool:
    """Whether the map is worth it: a batch of maps that gradients are recorded for."""
    return (
        type(input) in (Tensor, nn.Parameter)
        and isinstance(input, Tensor)
        and input.dim() == 4
        and input.numel() > 0
        and input.dtype in checks.DTYPES
        and input.requires_grad
        and torch.is_grad_enabled()
        and not is_followed()
        and not torch._C._is_tracing()
        and not have_tangent(input)
    )


def _blank(input: Tensor) -> Callable[[Tensor], Tensor]:
    """What makes a tensor of the input's shape and layout, whose numbers are not read."""
    shape = input.shape
    memory_format = torch.channels_last if _is_last(input) else torch.contiguous_format
    return lambda grad: torch.empty(
        shape, dtype=grad.dtype, device=grad.device, memory_format=memory_format
    )


def avg_pool2d(
    input: Tensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Tensor:
    """:func:`torch.nn.functional.avg_pool2d`."""
    rest = (padding, ceil_mode, count_include_pad, divisor_override)
    if not _fits(input):
        return F.avg_pool2d(input, kernel_size, stride, *rest)
    window = (
        _pair(kernel_size),
        [] if stride is None else _pair(stride),
        _pair(padding),
        *rest[1:],
    )
    blank = _blank(input)

    def forth(x: Tensor) -> Tensor:
        pooled: Tensor = aten.avg_pool2d(x, *window)
        return pooled

    def back(grad: Tensor) -> Tensor:
        spread: Tensor = aten.avg_pool2d_backward(grad, blank(grad), *window)
        return spread

    return _apply(input, forth, back, forth)


def adaptive_avg_pool2d(input: Tensor, output_size: Any) -> Tensor:
    """:func:`torch.nn.functional.adaptive_avg_pool2d`."""
    size = (output_size, output_size) if isinstance(output_size, int) else output_size
    # To one pixel PyTorch takes the mean, whose second order is fine.
    if not _fits(input) or size is None or None in size or tuple(size) == (1, 1):
        return F.adaptive_avg_pool2d(input, output_size)
    blank = _blank(input)

    def forth(x: Tensor) -> Tensor:
        pooled: Tensor = aten._adaptive_avg_pool2d(x, size)
        return pooled

    def back(grad: Tensor) -> Tensor:
        spread: Tensor = aten._adaptive_avg_pool2d_backward(grad, blank(grad))
        return spread

    return _apply(input, forth, back, forth)


def max_pool2d(
    input: Tensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Any:
    """:func:`torch.nn.functional.max_pool2d`."""
    if not _fits(input) or return_indices:
        return F.max_pool2d(  # type: ignore[call-overload]
            input, kernel_size, stride, padding, dilation, ceil_mode, return_indices
        )
    steps = [] if stride is None else _pair(stride)
    window = (_pair(kernel_size), steps, _pair(padding), _pair(dilation), ceil_mode)
    with torch.no_grad():
        maxima, indices = aten.max_pool2d_with_indices(input, *window)
    blank = _blank(input)

    def back(grad: Tensor) -> Tensor:
        spread: Tensor = aten.max_pool2d_with_indices_backward(grad, blank(grad), *window, indices)
        return spread

    def again(tangent: Tensor) -> Tensor:
        taken = tangent.flatten(2).gather(2, indices.flatten(2)).view(indices.shape)
        if is_followed() or not _is_last(indices):  # `vmap` knows no channels_last
            return taken
        return taken.contiguous(memory_format=torch.channels_last)

    return _apply(input, lambda _: maxima, back, again)


def _is_last(tensor: Tensor) -> bool:
    return not tensor.is_contiguous() and tensor.is_contiguous(memory_format=torch.channels_last)


def _pair(value: Any) -> list[int]:
    return [value, value] if isinstance(value, int) else list(value)


FUNCTIONS: dict[Any, Callable[..., Any]] = {
    F.avg_pool2d: avg_pool2d,
    F.adaptive_avg_pool2d: adaptive_avg_pool2d,
    F.max_pool2d: max_pool2d,
}
