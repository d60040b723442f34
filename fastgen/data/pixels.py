"""Bytes to numbers in [-1, 1] and back."""

from __future__ import annotations

import torch
from torch import Tensor


def to_float(images: Tensor) -> Tensor:
    """Map bytes to [-1, 1]: x / 127.5 - 1, computed as (x - 127.5) / 127.5.

    Args:
        images: uint8 tensor of any shape, on any device.

    Returns:
        float32 tensor of the same shape, device and strides; 0 becomes -1 and 255 becomes 1,
        exactly. `to_uint8` gives the bytes back.

    Raises:
        TypeError: for another dtype, or no tensor.
    """
    _check_tensor(images)
    if images.dtype != torch.uint8:
        raise TypeError(f"images must be uint8 (got {images.dtype}): floats are in [-1, 1] already")
    # A GPU divides by a number by multiplying with its inverse: both do, and their bits agree.
    return images.to(torch.float32).sub_(127.5).mul_(1 / 127.5)


def to_uint8(images: Tensor) -> Tensor:
    """Map [-1, 1] to bytes: (x + 1) * 127.5, rounded, clamped to [0, 255].

    Args:
        images: floating-point tensor of any shape, on any device; values outside [-1, 1] are
            clamped. Computed in float32.

    Returns:
        uint8 tensor of the same shape, device and strides.

    Raises:
        TypeError: for a dtype that is not floating point, or no tensor.
    """
    _check_tensor(images)
    if not images.is_floating_point():
        raise TypeError(f"images must be floating point in [-1, 1] (got {images.dtype})")
    scaled = (images.detach().to(torch.float32) + 1.0) * 127.5
    return scaled.round_().clamp_(0, 255).to(torch.uint8)


def _check_tensor(images: object) -> None:
    if not isinstance(images, Tensor):
        remedy = ": torch.from_numpy makes one of an array"
        raise TypeError(f"images must be a torch.Tensor (got {type(images).__name__}){remedy}")
