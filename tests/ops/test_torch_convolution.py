"""Which of PyTorch's operators backend "torch" takes for a convolution on a CPU."""

from __future__ import annotations

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from accuracy import assert_as_accurate_as_torch
from called import Operators
from convolution_cases import LAYOUTS, tensors

import fastgen
from fastgen.ops import reference, torch_convolution
from fastgen.ops.geometry import Geometry
from fastgen.ops.torch_convolution import FUSES


def forward(batch: int, layout: str, transposed: bool, activation: float = 0.2) -> list[str]:
    input = torch.randn(batch, 32, 8, 8).contiguous(memory_format=LAYOUTS[layout])
    weight = torch.randn(32, 32, 3, 3).contiguous(memory_format=LAYOUTS[layout])
    bias = torch.randn(32)
    geometry = Geometry((1, 1), (1, 1), (1, 1), 1, transposed, (0, 0))
    torch_convolution.forward(
        input, weight, bias, activation, geometry
    )  # asks once what oneDNN supports
    with torch.no_grad(), Operators() as operators:
        torch_convolution.forward(input, weight, bias, activation, geometry)
    return [name.split("::")[1] for name in operators.names]


ENOUGH = FUSES // (32 * 64)  # pictures


def test_onednn_fuses_where_that_pays():
    for layout in LAYOUTS:
        assert forward(ENOUGH, layout, False) == ["_convolution_pointwise"]
    assert forward(ENOUGH, "channels_last", True) == ["_convolution_transpose_pointwise"]


@pytest.mark.parametrize("transposed", [False, True])
def test_a_bias_with_a_stride_is_read_by_its_stride(transposed):
    input = torch.randn(ENOUGH, 32, 8, 8).contiguous(memory_format=torch.channels_last)
    weight = torch.randn(32, 32, 3, 3).contiguous(memory_format=torch.channels_last)
    bias = torch.randn(32, 3)[:, 1]
    geometry = Geometry((1, 1), (1, 1), (1, 1), 1, transposed, (0, 0))
    strided, dense = (
        torch_convolution.forward(input, weight, b, 0.2, geometry)
        for b in (bias, bias.contiguous())
    )
    assert torch.equal(strided, dense)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("transposed", [False, True])
def test_a_small_result_gets_what_pytorch_itself_takes(transposed, layout):
    names = forward(ENOUGH - 1, layout, transposed)
    assert names[0] == "convolution"
    assert names[-1] == "leaky_relu_"


@pytest.mark.parametrize("slope", [0.0, 1.0])
def test_nothing_is_fused_that_gains_nothing(slope):
    names = forward(ENOUGH, "channels_last", False, slope)
    assert names[0] == "convolution"
    assert names[1:] == (["leaky_relu_"] if slope == 0 else [])


@pytest.mark.parametrize("added", [0, 1])
@pytest.mark.parametrize(("kernel", "padding"), [(1, 0), (2, 0), (3, 1), (4, 1), (5, 2)])
def test_large_layers_into_a_picture_have_pytorchs_results(kernel, padding, added):
    input, weight = torch.randn(2, 16, 32, 32), torch.randn(16, 3, kernel, kernel)
    plain = (2, 2), (padding, padding), (1, 1), 1
    geometry = Geometry(*plain, True, (added, added))
    wide = torch_convolution.linear(input.double(), weight.double(), None, geometry).float()
    forward = torch_convolution.forward(input, weight, None, 1.0, geometry)
    torch.testing.assert_close(forward, wide, rtol=1e-4, atol=1e-4)
    backward = torch_convolution.input_gradient(
        input, weight, tuple(wide.shape[2:]), Geometry(*plain, False, (0, 0))
    )
    torch.testing.assert_close(backward, wide, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize(
    ("size", "shape", "options"),
    [
        (8, (64, 64, 4, 4), {"stride": (2, 2), "padding": (1, 1)}),
        (8, (64, 64, 3, 3), {"stride": (2, 2), "padding": (2, 2), "dilation": (2, 2)}),
        (8, (128, 64, 4, 4), {"stride": (2, 2), "padding": (1, 1), "groups": 2}),
        (2, (64, 64, 4, 4), {"stride": (2, 2), "padding": (1, 1), "transposed": True}),
    ],
    ids=["plain", "dilated", "grouped", "transposed"],
)
def test_weight_gradients_of_small_maps_are_right(size, shape, options, layout):
    plain = {"stride": (1, 1), "padding": (0, 0), "dilation": (1, 1), "groups": 1}
    geometry = Geometry(**{"transposed": False, **plain, **options}, output_padding=(0, 0))
    input = torch.randn(3, 64 * geometry.groups, size, size).contiguous(memory_format=layout)
    weight = torch.randn(shape).contiguous(memory_format=layout)
    grad = torch.randn_like(torch_convolution.linear(input, weight, None, geometry))
    wide = weight.double().requires_grad_()
    output = torch_convolution.linear(input.double(), wide, None, geometry)
    (expected,) = torch.autograd.grad(output, wide, grad.double())
    found = torch_convolution.weight_gradient(input, grad, weight, geometry)
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-3)


CASES = {
    "padded": {"stride": (2, 1), "padding": (1, 2)},
    "dilated": {"dilation": (2, 1)},
    "grouped": {"groups": 4, "stride": (2, 2)},
}


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_results_are_counted_right(case, transposed):
    plain = {"stride": (1, 1), "padding": (0, 0), "dilation": (1, 1), "groups": 1}
    geometry = Geometry(**{**plain, **CASES[case]}, transposed=transposed, output_padding=(0, 0))
    input, weight = torch.randn(2, 8, 9, 7), torch.randn(8, 8 // geometry.groups, 3, 4)
    expected = torch_convolution.linear(input, weight, None, geometry)
    assert torch_convolution._results(input, weight, geometry) == expected.numel()


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


@pytest.mark.parametrize("backend", ["torch", "auto"])
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize(
    ("channels", "filters", "kernel", "stride", "dilation", "size", "dtype"),
    [
        (1, 16, (2, 3), (1, 2), (2, 1), (4, 4), torch.float32),
        (1, 8, (4, 4), (1, 3), (2, 1), (12, 5), torch.float32),
        (1, 32, (1, 4), (1, 3), (2, 1), (6, 4), torch.bfloat16),
        (16, 8, (1, 4), (3, 4), (2, 1), (7, 4), torch.bfloat16),
    ],
)
def test_a_map_of_one_column_is_right_in_channels_last(
    channels, filters, kernel, stride, dilation, size, dtype, transposed, backend
):
    """oneDNN's is not, where the stride along rows is the longer one."""

    def in_channels_last(tensor):  # its strides, also with one channel
        _, channels, height, width = tensor.shape
        strides = (channels * height * width, 1, width * channels, channels)
        return torch.empty_strided(tensor.shape, strides, dtype=dtype).copy_(tensor)

    picture = in_channels_last(torch.randn(3, channels, *size, dtype=dtype))
    weight = in_channels_last(torch.randn(filters, channels, *kernel, dtype=dtype))
    expected = F.conv2d(
        picture.double().contiguous(), weight.double().contiguous(), None, stride, 0, dilation
    )
    assert expected.shape[3] == 1
    if transposed:
        map = torch.zeros_like(expected, dtype=dtype).requires_grad_()
        output = fastgen.ops.conv_transpose2d_bias_leaky_relu(
            map, weight, None, stride, 0, dilation=dilation, negative_slope=1, backend=backend
        )
        picture = in_channels_last(picture[..., : output.shape[2], : output.shape[3]])
        assert output.shape == picture.shape
        (result,) = torch.autograd.grad(output, map, picture)
        with_weight = torch.autograd.grad(
            fastgen.ops.conv_transpose2d_bias_leaky_relu(
                map,
                weight.requires_grad_(),
                None,
                stride,
                0,
                dilation=dilation,
                negative_slope=1,
                backend=backend,
            ),
            [map, weight],
            picture,
        )
        assert torch.equal(with_weight[0], result)
        expected = F.conv2d(picture.double(), weight.double(), None, stride, 0, dilation)
    else:
        result = fastgen.ops.conv2d_bias_leaky_relu(
            picture, weight, None, stride, 0, dilation, negative_slope=1, backend=backend
        )
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    assert (result - expected).abs().max() <= tolerance * expected.abs().max()
