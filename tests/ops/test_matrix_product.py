"""Convolutions that are one matrix product, against PyTorch's convolution in float64."""

from __future__ import annotations

import pytest
import torch
from accuracy import assert_as_accurate_as_torch
from convolution_cases import LAYOUTS
from cpu_programs import chosen
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

import fastgen
from fastgen.ops import matrix_product, reference, routing, torch_convolution
from fastgen.ops.geometry import Geometry

# (picture's channels, its height and width, the map's channels, kernel, stride)
WHOLE = [(6, (4, 3), 5, (4, 3), 1), (3, (2, 2), 7, (2, 2), 2), (1, (5, 5), 4, (5, 5), 3)]
POINT = [(6, (4, 3), 5, (1, 1), 1), (2, (3, 3), 3, (1, 1), 1), (8, (1, 1), 3, (1, 1), 1)]


def tensors(case: tuple, layout: str, transposed: bool) -> tuple[Tensor, Tensor, Tensor, Geometry]:
    """Input, weight, gradient of the output; of a transposed convolution the roles change."""
    channels, size, filters, kernel, stride = case
    geometry = Geometry((stride, stride), (0, 0), (1, 1), 1, transposed, (0, 0))
    map_size = (1, 1) if kernel == size else size
    shapes = (3, channels, *size), (filters, channels, *kernel), (3, filters, *map_size)
    picture, weight, map = (
        torch.randn(shape, dtype=torch.float64).contiguous(memory_format=LAYOUTS[layout])
        for shape in shapes
    )
    return (map, weight, picture, geometry) if transposed else (picture, weight, map, geometry)


@pytest.mark.parametrize("transposed", [False, True], ids=["conv2d", "conv_transpose2d"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("case", [*WHOLE, *POINT], ids=str)
def test_every_pass_is_pytorchs_in_its_layout(case: tuple, layout: str, transposed: bool) -> None:
    input, weight, grad, geometry = tensors(case, layout, transposed)
    if case in POINT and case[1] != (1, 1) and layout == "contiguous":
        assert not matrix_product.takes_fprop(input, weight, geometry)
        return
    size = (input.shape[2], input.shape[3])
    assert matrix_product.takes_fprop(input, weight, geometry)
    assert matrix_product.takes_input_gradient(grad, weight, size, geometry)
    assert matrix_product.takes_weight_gradient(input, grad, weight, geometry)
    pairs = [
        (matrix_product.fprop(input, weight, geometry),
         torch_convolution.forward(input, weight, None, 1.0, geometry)),
        (matrix_product.input_gradient(grad, weight, size, geometry),
         torch_convolution.input_gradient(grad, weight, size, geometry)),
        (matrix_product.weight_gradient(input, grad, weight, geometry),
         torch_convolution.weight_gradient(input, grad, weight, geometry)),
    ]  # fmt: skip
    for ours, theirs in pairs:
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
        assert ours.is_contiguous(memory_format=LAYOUTS[layout])


@pytest.mark.parametrize(
    "change",
    [
        {"padding": (1, 1)},
        {"groups": 2},
        {"dilation": (2, 2)},
        {"output_padding": (1, 0), "transposed": True},
    ],
    ids=lambda change: next(iter(change)),
)
def test_what_is_no_single_product_is_left_alone(change: dict) -> None:
    input, weight, grad, geometry = tensors(WHOLE[0], "channels_last", False)
    if change.get("transposed"):
        input, grad = grad, input
    geometry = geometry._replace(**change)
    size = (input.shape[2], input.shape[3])
    assert not matrix_product.takes_fprop(input, weight, geometry)
    assert not matrix_product.takes_input_gradient(grad, weight, size, geometry)
    assert not matrix_product.takes_weight_gradient(input, grad, weight, geometry)


def test_operands_that_would_be_copied_are_left_alone() -> None:
    input, weight, _, geometry = tensors(WHOLE[0], "channels_last", False)
    assert not matrix_product.takes_fprop(input.contiguous(), weight, geometry)
    assert not matrix_product.takes_fprop(input[:, :, ::2], weight[:, :, ::2], geometry)
    assert not matrix_product.takes_fprop(input[:0], weight, geometry)


def test_deterministic_algorithms_want_another_way_on_a_gpu() -> None:
    input, weight, _, geometry = tensors(WHOLE[0], "channels_last", False)
    with FakeTensorMode(allow_non_fake_inputs=True):
        on_gpu = torch.empty_like(input, device="cuda"), torch.empty_like(weight, device="cuda")
    assert matrix_product.takes_fprop(*on_gpu, geometry)
    torch.use_deterministic_algorithms(True)
    try:
        assert not matrix_product.takes_fprop(*on_gpu, geometry)
        assert matrix_product.takes_fprop(input, weight, geometry)
    finally:
        torch.use_deterministic_algorithms(False)


def test_a_layer_in_the_middle_of_a_picture_is_no_product() -> None:
    input, weight, _, geometry = tensors((6, (8, 8), 5, (4, 4), 2), "channels_last", False)
    assert not matrix_product.takes_fprop(input, weight, geometry)


def passes(case: tuple, layout: str, transposed: bool) -> dict[str, tuple]:
    """The arguments of every pass, by its name."""
    input, weight, grad, geometry = tensors(case, layout, transposed)
    input, weight, grad = input.float(), weight.float(), grad.float()
    bias = torch.randn(weight.shape[1 if transposed else 0])
    return {
        "forward": (input, weight, bias, 0.2, geometry),
        "masked_forward": (input, weight, bias, grad, 0.2, geometry),
        "input_gradient": (grad, weight, (input.shape[2], input.shape[3]), geometry),
        "weight_gradient": (input, grad, weight, geometry),
    }


@pytest.mark.parametrize("transposed", [False, True], ids=["conv2d", "conv_transpose2d"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_cpu_multiplies_where_the_kernel_is_as_large_as_the_picture(layout, transposed) -> None:
    operation = routing.CONVOLUTIONS[transposed]
    for name, arguments in passes((32, (4, 4), 16, (4, 4), 1), layout, transposed).items():
        assert chosen(operation, name, *arguments) == "matrix product (PyTorch)"
        padded = arguments[-1]._replace(padding=(1, 1))
        assert "matrix product" not in chosen(operation, name, *arguments[:-1], padded)


def test_a_cpu_multiplies_single_pixels_and_leaves_larger_pictures_of_one_tap_to_onednn() -> None:
    for side, product in ((1, True), (2, False)):
        case = (32, (side, side), 48, (1, 1), 1)
        for name, arguments in passes(case, "channels_last", False).items():
            found = chosen("conv2d_bias_leaky_relu", name, *arguments)
            assert ("matrix product" in found) == product


def test_a_cpu_multiplies_nothing_that_is_done_before_a_product_is_called() -> None:
    for batch, product in ((1, True), (2, True), (0, False)):
        # 4096 multiplications for each picture; then 4095 in all.
        for case in ((16, (4, 4), 16, (4, 4), 1), (13, (3, 7), 15, (3, 7), 1)):
            for name, arguments in passes(case, "channels_last", False).items():
                few = [a[:batch] if torch.is_tensor(a) and len(a) == 3 else a for a in arguments]
                found = chosen("conv2d_bias_leaky_relu", name, *few)
                enough = product and (case[0] == 16 or batch > 1)
                assert ("matrix product" in found) == enough, (batch, case, name)


def test_a_cpu_multiplies_in_no_other_precision_and_no_row_of_single_taps() -> None:
    for name, arguments in passes((32, (4, 4), 16, (4, 4), 1), "channels_last", False).items():
        half = [a.half() if torch.is_tensor(a) else a for a in arguments]
        assert "matrix product" not in chosen("conv2d_bias_leaky_relu", name, *half)
    rows = ((1, 5), (1, 5), True), ((5, 1), (5, 1), True), ((2, 1), (1, 1), False)
    for size, kernel, product in rows:
        for name, arguments in passes((32, size, 48, kernel, 1), "channels_last", False).items():
            found = chosen("conv2d_bias_leaky_relu", name, *arguments)
            assert ("matrix product" in found) == product, (size, name)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("transposed", [False, True], ids=["conv2d", "conv_transpose2d"])
def test_the_layers_of_a_cpu_stay_as_accurate(transposed, layout, dtype) -> None:
    case = (48, (4, 4), 33, (4, 4), 1)
    input, weight, _, _ = tensors(case, layout, transposed)
    bias = torch.randn(weight.shape[1 if transposed else 0])
    name = routing.CONVOLUTIONS[transposed]
    assert_as_accurate_as_torch(
        getattr(fastgen.ops, name),
        getattr(reference, name),
        [t.to(dtype) for t in (input, weight, bias)],
    )
