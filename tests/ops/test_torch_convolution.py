"""Which of PyTorch's operators backend "torch" takes for a convolution on a CPU."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from accuracy import assert_as_accurate_as_torch
from convolution_cases import LAYOUTS, tensors
from torch.utils._python_dispatch import TorchDispatchMode

import fastgen
from fastgen.ops import reference, torch_convolution
from fastgen.ops.geometry import Geometry
from fastgen.ops.torch_convolution import SMALL


class Operators(TorchDispatchMode):
    """Names of the operators that are called while it is on."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.append(function._schema.name)
        return function(*args, **(kwargs or {}))


def forward(batch: int, layout: str, transposed: bool) -> list[str]:
    input = torch.randn(batch, 32, 8, 8).contiguous(memory_format=LAYOUTS[layout])
    weight = torch.randn(32, 32, 3, 3).contiguous(memory_format=LAYOUTS[layout])
    bias = torch.randn(32)
    geometry = Geometry((1, 1), (1, 1), (1, 1), 1, transposed, (0, 0))
    torch_convolution.forward(input, weight, bias, 0.2, geometry)  # asks once what oneDNN supports
    with torch.no_grad(), Operators() as operators:
        torch_convolution.forward(input, weight, bias, 0.2, geometry)
    return [name.split("::")[1] for name in operators.names]


ENOUGH = SMALL // (32 * 64) + 1  # pictures


def test_onednn_fuses_where_that_pays():
    for layout in LAYOUTS:
        assert forward(ENOUGH, layout, False) == ["_convolution_pointwise"]
    assert forward(ENOUGH, "channels_last", True) == ["_convolution_transpose_pointwise"]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("transposed", [False, True])
def test_a_small_input_gets_what_pytorch_itself_takes(transposed, layout):
    names = forward(ENOUGH - 1, layout, transposed)
    assert names[0] == "convolution"
    assert names[-1] == "leaky_relu_"


@pytest.mark.parametrize(
    ("case", "layout"),
    [
        ({"stride": (1, 1)}, "contiguous"),
        ({"padding": (1, 1)}, "channels_last"),  # to 15x15
        ({"stride": (1, 2), "padding": (1, 1)}, "channels_last"),  # to 8x15
        ({"groups": 4}, "channels_last"),
        ({"dilation": (2, 2)}, "channels_last"),
    ],
    ids=str,
)
def test_onednn_gets_no_bias_that_makes_a_transposed_convolution_slow(case, layout):
    geometry = Geometry((2, 2), (1, 1), (1, 1), 1, True, (1, 1))
    geometry = geometry._replace(output_padding=(0, 0), **case)
    input = torch.randn(2, 32, 8, 8).contiguous(memory_format=LAYOUTS[layout])
    weight = torch.randn(32, 32 // geometry.groups, 3, 3).contiguous(memory_format=LAYOUTS[layout])
    bias = torch.randn(32)
    with torch.no_grad(), Operators() as operators:
        output = torch_convolution.forward(input, weight, bias, 0.2, geometry)
    assert [name.split("::")[1] for name in operators.names] == [
        "convolution", "view", "add_", "leaky_relu_",
    ]  # fmt: skip
    exact = torch.convolution(
        input.double(), weight.double(), bias.double(), geometry.stride, geometry.padding,
        geometry.dilation, True, geometry.output_padding, geometry.groups,
    )  # fmt: skip
    exact = torch.nn.functional.leaky_relu(exact, 0.2)
    torch.testing.assert_close(output.double(), exact, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("backend", ["auto", "torch"])
def test_layers_with_their_bias_apart_are_as_accurate(backend, stride, layout, dtype):
    shapes = (4, 24, 6, 6), (24, 18, 3, 3), (18,)
    options = {"stride": stride, "padding": 1}
    assert_as_accurate_as_torch(
        partial(fastgen.ops.conv_transpose2d_bias_leaky_relu, **options, backend=backend),
        partial(reference.conv_transpose2d_bias_leaky_relu, **options),
        tensors(shapes, dtype, LAYOUTS[layout]),
    )
