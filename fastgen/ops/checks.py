"""Argument checks that the operations share: every message says what was given and what is
allowed.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence

import torch
from torch import Tensor

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def floating_tensor(name: str, value: object) -> None:
    """Refuse what is not a real floating-point tensor."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor (got {type(value).__name__})")
    if value.dtype not in DTYPES:
        allowed = ", ".join(str(dtype) for dtype in DTYPES)
        raise TypeError(f"{name} must have one of the dtypes {allowed} (got {value.dtype})")


def same_kind(name: str, value: Tensor, input: Tensor, input_name: str = "input") -> None:
    """Refuse a tensor of another dtype or on another device than the input."""
    if value.dtype != input.dtype:
        raise TypeError(
            f"{name} must have the dtype of {input_name}, {input.dtype} (got {value.dtype})"
        )
    if value.device != input.device:
        raise ValueError(
            f"{name} must be on the device of {input_name}, {input.device} (got {value.device})"
        )


def slope(negative_slope: float) -> float:
    """The slope as a float in [0, 1]."""
    if type(negative_slope) is float and 0 <= negative_slope <= 1:
        return negative_slope
    if isinstance(negative_slope, Tensor) or not isinstance(negative_slope, (int, float)):
        raise TypeError(f"negative_slope must be a number (got {type(negative_slope).__name__})")
    if negative_slope < 0:
        raise ValueError(
            f"negative_slope must lie in [0, 1] (got {negative_slope}): "
            "below 0 the sign of the output no longer tells the sign of the input"
        )
    if not negative_slope <= 1:
        raise ValueError(f"negative_slope must lie in [0, 1] (got {negative_slope})")
    return float(negative_slope)


def pair(name: str, value: int | Sequence[int], *, least: int) -> tuple[int, int]:
    """One integer or two as (vertical, horizontal), none below `least`."""
    if type(value) is tuple and len(value) == 2:  # what a layer gives, and so most calls
        vertical, horizontal = value
        if type(vertical) is int and type(horizontal) is int:  # noqa: SIM102
            if vertical >= least and horizontal >= least:
                return value
    elif type(value) is int and value >= least:
        return value, value
    try:
        given: tuple[object, ...] = tuple(value)  # type: ignore[arg-type]
    except TypeError:
        given = (value,)
    found = [_integer(v) for v in given]
    values = [v for v in found if v is not None]
    if len(values) not in (1, 2) or len(values) != len(given):
        raise TypeError(f"{name} must be an integer or a pair of integers (got {value!r})")
    if min(values) < least:
        raise ValueError(f"{name} must be at least {least} (got {value!r})")
    return values[0], values[-1]


def _integer(value: object) -> int | None:
    """An integer of Python's or NumPy's, and not a truth value."""
    if isinstance(value, bool):
        return None
    try:
        return operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        return None


def vector(name: str, value: Tensor, length: int, what: str) -> None:
    """Refuse a bias that is not one number per channel."""
    if value.dim() != 1 or value.shape[0] != length:
        raise ValueError(f"{name} must have shape ({length},), {what} (got {tuple(value.shape)})")


def at_least(name: str, value: int, least: int) -> int:
    """An integer of at least `least`."""
    found = value if type(value) is int else _integer(value)
    if found is None:
        raise TypeError(f"{name} must be an integer (got {value!r})")
    if found < least:
        raise ValueError(f"{name} must be at least {least} (got {value})")
    return found
