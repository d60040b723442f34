"""Bytes to [-1, 1] and back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from fastgen.data import to_float, to_uint8

EVERY_BYTE = torch.arange(256, dtype=torch.uint8)


def test_every_byte_survives_the_round_trip_in_every_float_that_can_tell_them_apart() -> None:
    for dtype in (torch.float32, torch.float64, torch.float16):
        assert torch.equal(to_uint8(to_float(EVERY_BYTE).to(dtype)), EVERY_BYTE)


def test_bytes_become_what_float64_says() -> None:
    exact = EVERY_BYTE.double() / 127.5 - 1
    torch.testing.assert_close(to_float(EVERY_BYTE).double(), exact, rtol=0, atol=1.2e-7)
    assert to_float(EVERY_BYTE)[[0, -1]].tolist() == [-1.0, 1.0]


def test_values_are_rounded_to_the_nearest_byte_and_clamped() -> None:
    assert to_uint8(torch.zeros(1)).dtype == torch.uint8
    values = torch.tensor([-7.0, -1.0, 0.4 / 127.5 - 1, 0.6 / 127.5 - 1, 0.99999, 1.0, 1e30])
    assert to_uint8(values).tolist() == [0, 0, 0, 1, 255, 255, 255]


def test_input_and_layout_are_left_alone() -> None:
    images = torch.randint(0, 256, (2, 3, 5, 7), dtype=torch.uint8)
    images = images.to(memory_format=torch.channels_last)
    before = images.clone()
    floats = to_float(images)
    kept = floats.clone()
    assert floats.stride() == images.stride() == to_uint8(floats).stride()
    assert torch.equal(images, before)
    assert torch.equal(floats, kept)


def test_other_dtypes_are_refused() -> None:
    with pytest.raises(TypeError, match="uint8"):
        to_float(torch.zeros(1))
    with pytest.raises(TypeError, match="floating point"):
        to_uint8(EVERY_BYTE)


@pytest.mark.parametrize("convert", [to_float, to_uint8])
def test_arrays_are_refused_with_what_makes_a_tensor_of_them(
    convert: Callable[[Any], torch.Tensor],
) -> None:
    with pytest.raises(TypeError, match=r"Tensor \(got ndarray\): torch.from_numpy makes one"):
        convert(EVERY_BYTE.numpy())
