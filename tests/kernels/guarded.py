"""Tensors between walls of NaN, random operands and an error bound for the convolution kernels."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor

from fastgen.kernels import tiling

WALL = 4096  # numbers of NaN before and behind a tensor


def in_walls(values: Tensor) -> Tensor:
    """The values in channels_last memory (dense for a vector) with NaN on both sides of them.

    A kernel that reads beside the tensor, even to multiply it by 0, answers NaN.
    """
    dense = values.contiguous(memory_format=torch.channels_last) if values.dim() == 4 else values
    buffer = torch.full((dense.numel() + 2 * WALL,), torch.nan, dtype=values.dtype)
    return buffer.as_strided(values.shape, dense.stride(), WALL).copy_(dense)


def operands(*shapes: tuple[int, ...], dtype: torch.dtype, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [
        in_walls(torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype))
        for shape in shapes
    ]


@contextmanager
def watched_results(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Results are born as NaN between walls, which must still stand afterwards.

    So is every other fresh tensor meanwhile, a workspace for example (PyTorch fills uninitialized
    memory with NaN while it is told to be deterministic).
    """
    born: list[Tensor] = []

    def empty(like: Tensor, *shape: int) -> Tensor:
        born.append(in_walls(torch.full(shape, torch.nan, dtype=like.dtype)))
        return born[-1]

    with monkeypatch.context() as patch:
        patch.setattr(tiling, "empty", empty)
        torch.use_deterministic_algorithms(True)
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(False)
    for result in born:
        buffer = result.as_strided((result.numel() + 2 * WALL,), (1,), 0)
        assert buffer[:WALL].isnan().all(), "written before the result"
        assert buffer[-WALL:].isnan().all(), "written behind the result"
    assert born, "no result was made by the kernels"


def assert_right(result: Tensor, truth: Tensor, magnitude: Tensor) -> None:
    """Within the rounding of a float32 sum and of the result itself.

    `magnitude` is the same sum over absolute values, in float64: rounding errors of a sum are a few
    float32 roundings of it, a forgotten or a doubled term is orders larger. The interpreter cuts
    float32 to 16 bits off instead of rounding, so the result may be off by one whole step.
    """
    assert result.shape == truth.shape
    assert result.is_contiguous(memory_format=torch.channels_last)
    step = torch.finfo(result.dtype).eps if result.dtype != torch.float32 else 0.0
    smallest = torch.finfo(result.dtype).smallest_normal
    allowed = step * truth.abs() + 8 * torch.finfo(torch.float32).eps * magnitude + smallest
    excess = ((result.double() - truth).abs() - allowed).max()
    assert excess <= 0, f"off by {excess:.3e} more than rounding allows"
