"""Convolutions that write a picture, by the image-edge operators turned round, in float64."""

from __future__ import annotations

import operators
import pytest
import torch
from convolution_cases import LAYOUTS
from torch import Tensor

from fastgen.ops import image_edge, reference, torch_convolution
from fastgen.ops.geometry import Geometry
from fastgen.ops.turned_edge import TurnedEdge

# (channels read, channels written, height, width, kernel, padding)
CASES = [
    (5, 3, 9, 7, (3, 3), (1, 1)),
    (8, 1, 6, 6, (4, 3), (1, 2)),
    (6, 4, 5, 8, (1, 1), (0, 0)),
    (7, 2, 8, 5, (5, 2), (0, 1)),
]
TURNED = TurnedEdge(image_edge)


@pytest.fixture(autouse=True)
def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_edge, "operators", lambda: operators)
    monkeypatch.setattr(image_edge, "allow_tf32", lambda: True)


def tensors(case: tuple, layout: str) -> tuple[Tensor, Tensor, Tensor, Tensor, Geometry]:
    """Input, weight, bias, gradient of the output."""
    channels, pictures, height, width, kernel, padding = case
    size = [n + 2 * p - k + 1 for n, k, p in zip((height, width), kernel, padding, strict=True)]
    shapes = (2, channels, height, width), (pictures, channels, *kernel), (2, pictures, *size)
    drawn = (torch.randn(shape, dtype=torch.float64) for shape in shapes)
    x, w, g = (torch.empty_like(t, memory_format=LAYOUTS[layout]).copy_(t) for t in drawn)
    geometry = Geometry((1, 1), padding, (1, 1), 1, False, (0, 0))
    return x, w, torch.randn(pictures, dtype=torch.float64), g, geometry


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_pass_is_pytorchs(case: tuple, layout: str) -> None:
    x, w, b, g, geometry = tensors(case, layout)
    size = (x.shape[2], x.shape[3])
    assert TURNED.takes_forward(x, w, b, 0.2, geometry)
    assert TURNED.takes_input_gradient(g, w, size, geometry)
    exact = reference.conv2d_bias_leaky_relu(x, w, b, padding=geometry.padding)
    pairs = [
        (TURNED.forward(x, w, b, 0.2, geometry), exact),
        (TURNED.input_gradient(g, w, size, geometry),
         torch_convolution.input_gradient(g, w, size, geometry)),
    ]  # fmt: skip
    assert TURNED.takes_weight_gradient(x, g, w, geometry) == (layout == "channels_last")
    if layout == "channels_last":
        found = TURNED.weight_gradient(x, g, w, geometry)
        pairs.append((found, torch_convolution.weight_gradient(x, g, w, geometry)))
        assert found.stride() == w.stride()
    for ours, theirs in pairs:
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
        assert ours.is_contiguous(memory_format=LAYOUTS[layout])


@pytest.mark.parametrize(
    "change",
    [
        {"stride": (2, 1)},
        {"dilation": (2, 2)},
        {"padding": (3, 1)},
        {"transposed": True},
        {"groups": 5},
    ],
    ids=lambda change: next(iter(change)),
)
def test_what_does_not_turn_round_is_left_alone(change: dict) -> None:
    x, w, b, g, geometry = tensors(CASES[0], "channels_last")
    geometry, size = geometry._replace(**change), (x.shape[2], x.shape[3])
    assert not TURNED.takes_forward(x, w, b, 0.2, geometry)
    assert not TURNED.takes_input_gradient(g, w, size, geometry)
    assert not TURNED.takes_weight_gradient(x, g, w, geometry)


def test_layers_that_read_a_picture_are_the_other_kernels() -> None:
    x, w, b, _, geometry = tensors((3, 3, 9, 7, (3, 3), (1, 1)), "channels_last")
    assert image_edge.takes_forward(x, w, b, 0.2, geometry)
    assert not TURNED.takes_forward(x, w, b, 0.2, geometry)


def test_the_input_decides_the_layout() -> None:
    x, w, b, _, geometry = tensors(CASES[0], "channels_last")
    assert TURNED.takes_forward(x, w.contiguous(), b, 0.2, geometry)
    assert not TURNED.takes_forward(x.contiguous(), w, b, 0.2, geometry)
