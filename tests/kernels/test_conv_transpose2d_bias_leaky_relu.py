"""The Triton transposed convolution, also the input gradient, interpreted, against float64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from guarded import assert_right, operands, watched_results
from torch import Tensor

from fastgen.kernels import conv2d_bias_leaky_relu, tiling, weight_gradient
from fastgen.kernels import conv_transpose2d_bias_leaky_relu as kernels

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# (N, C, H, W), (K, R, S), stride, padding, dilation, groups, output padding
GEOMETRIES = [
    ((2, 17, 4, 3), (19, 4, 4), (2, 2), (1, 1), (1, 1), 1, (0, 0)),
    ((2, 16, 5, 5), (3, 3, 3), (2, 2), (1, 1), (1, 1), 1, (1, 1)),
    ((1, 32, 3, 4), (33, 3, 3), (1, 1), (1, 1), (1, 1), 1, (0, 0)),
    ((2, 12, 3, 5), (6, 5, 2), (3, 1), (2, 0), (1, 2), 2, (2, 0)),
    ((1, 5, 4, 4), (5, 3, 3), (2, 3), (0, 1), (3, 2), 5, (1, 2)),
    ((3, 20, 1, 1), (130, 4, 4), (1, 1), (0, 0), (1, 1), 1, (0, 0)),
    ((1, 3, 6, 6), (4, 1, 1), (2, 2), (0, 0), (1, 1), 1, (1, 0)),
    ((1, 1, 1, 1), (1, 1, 1), (1, 1), (0, 0), (1, 1), 1, (0, 0)),
    ((2, 6, 3, 3), (2, 7, 7), (2, 2), (3, 3), (2, 2), 1, (0, 1)),
]
# Wider than any kernel of the interpreter's functions needs, and not a multiple of 16.
GEOMETRY = ((2, 33, 4, 5), (35, 4, 4), (2, 2), (1, 1), (1, 1), 1, (0, 0))


def transpose(input: Tensor, weight: Tensor, bias: Tensor | None, geometry: tuple) -> Tensor:
    _, _, stride, padding, dilation, groups, extra = geometry
    wide = None if bias is None else bias.double()
    return F.conv_transpose2d(
        input.double(), weight.double(), wide, stride, padding, extra, groups, dilation
    )


def magnitude(input: Tensor, weight: Tensor, bias: Tensor | None, geometry: tuple) -> Tensor:
    return transpose(input.abs(), weight.abs(), None if bias is None else bias.abs(), geometry)


def drawn(geometry: tuple, dtype: torch.dtype) -> list[Tensor]:
    shape, (features, *kernel), *_, groups, _ = geometry
    weight = (shape[1], features // groups, *kernel)
    return operands(shape, weight, (features,), dtype=dtype)


def computed(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    geometry: tuple,
    *,
    output: Tensor | None = None,
    slope: float = 1.0,
    tanh: bool = False,
    allow_tf32: bool = True,
    configuration: int = -1,
) -> Tensor:
    _, _, stride, padding, dilation, groups, _ = geometry
    size = transpose(input, weight, None, geometry).shape[2:]
    result: Tensor = torch.ops.fastgen_triton.conv_transpose2d(
        input, weight, bias, output, slope, tanh, *stride, *padding, *dilation, *size, groups,
        allow_tf32, configuration,
    )  # fmt: skip
    return result


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
@pytest.mark.parametrize("slope", [0.0, 0.2, 1.0])
def test_transposed_convolution_with_bias_and_leaky_relu(
    geometry: tuple, slope: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    input, weight, bias = drawn(geometry, torch.float32)
    for given in (bias, None):
        with watched_results(monkeypatch):
            result = computed(input, weight, given, geometry, slope=slope)
        truth = F.leaky_relu(transpose(input, weight, given, geometry), slope)
        assert_right(result, truth, magnitude(input, weight, given, geometry))


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
def test_the_epilogues_of_a_generators_end_and_of_a_tangent(
    geometry: tuple, monkeypatch: pytest.MonkeyPatch
) -> None:
    input, weight, bias = drawn(geometry, torch.float32)
    exact = transpose(input, weight, bias, geometry)
    bound = magnitude(input, weight, bias, geometry)
    with watched_results(monkeypatch):
        bounded = computed(input, weight, bias, geometry, tanh=True)
    assert_right(bounded, torch.tanh(exact), bound)

    (output,) = operands(tuple(exact.shape), dtype=torch.float32, seed=1)
    output[..., 0, 0] = 0  # where leaky ReLU counts as not positive
    with watched_results(monkeypatch):
        tangent = computed(input, weight, bias, geometry, output=output, slope=0.2)
    assert_right(tangent, exact * torch.where(output > 0, 1.0, 0.2), bound)


@pytest.mark.parametrize("size", [(9, 7), (8, 8), (17, 5)])
@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "dilation", "groups"),
    [
        ((3, 3), (1, 1), (1, 1), (1, 1), 1),
        ((4, 4), (2, 2), (1, 1), (1, 1), 1),
        ((3, 2), (3, 2), (0, 1), (1, 1), 3),  # columns that no tap reads
        ((5, 5), (2, 2), (2, 2), (1, 1), 1),
        ((3, 3), (2, 3), (1, 0), (2, 1), 1),
        ((1, 1), (2, 2), (0, 0), (1, 1), 1),
    ],
)
def test_input_gradient_of_a_convolution(
    size, kernel, stride, padding, dilation, groups, monkeypatch: pytest.MonkeyPatch
) -> None:
    (weight,) = operands((6, 3 // groups, *kernel), dtype=torch.float32)
    image = torch.zeros(2, 3, *size, dtype=torch.float64, requires_grad=True)
    options = (None, stride, padding, dilation, groups)
    shape = F.conv2d(image, weight.double(), *options).shape
    (grad,) = operands(tuple(shape), dtype=torch.float32, seed=1)

    def truth(weight: Tensor, grad: Tensor) -> Tensor:
        output = F.conv2d(image, weight.double(), *options)
        return torch.autograd.grad(output, image, grad.double())[0]

    with watched_results(monkeypatch):
        result = torch.ops.fastgen_triton.conv2d_input_gradient(
            grad, weight, *size, *stride, *padding, *dilation, groups, True
        )
    assert_right(result, truth(weight, grad), truth(weight.abs(), grad.abs()))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("allow_tf32", [False, True])
def test_every_configuration_in_every_dtype(
    dtype: torch.dtype, allow_tf32: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    input, weight, bias = drawn(GEOMETRY, dtype)
    truth = F.leaky_relu(transpose(input, weight, bias, GEOMETRY), 0.2)
    bound = magnitude(input, weight, bias, GEOMETRY)
    for configuration in range(len(kernels.TILES.of(dtype, allow_tf32))):
        with watched_results(monkeypatch):
            result = computed(
                input,
                weight,
                bias,
                GEOMETRY,
                slope=0.2,
                allow_tf32=allow_tf32,
                configuration=configuration,
            )
        assert result.dtype == dtype
        assert_right(result, truth, bound)


def test_offsets_of_64_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiling, "LARGEST_INT32", 0)
    input, weight, bias = drawn(GEOMETRY, torch.float32)
    truth = transpose(input, weight, bias, GEOMETRY)
    assert_right(
        computed(input, weight, bias, GEOMETRY), truth, magnitude(input, weight, bias, GEOMETRY)
    )


def test_is_the_same_on_every_run() -> None:
    input, weight, bias = drawn(GEOMETRY, torch.float32)
    runs = [computed(input, weight, bias, GEOMETRY) for _ in range(2)]
    assert torch.equal(*runs)


def test_refuses_what_it_cannot_compute() -> None:
    input, weight, bias = drawn(GEOMETRY, torch.float32)
    with pytest.raises(ValueError, match="input must have four dimensions and lie in memory as ch"):
        computed(input.contiguous(), weight, bias, GEOMETRY)
    output = computed(input, weight, bias, GEOMETRY)
    with pytest.raises(ValueError, match="tanh and output exclude each other"):
        computed(input, weight, bias, GEOMETRY, output=output, tanh=True)
    with pytest.raises(ValueError, match="output must have shape"):
        computed(input, weight, bias, GEOMETRY, output=input)
    with pytest.raises(ValueError, match=r"configuration must lie in \[0, 4\]"):
        computed(input, weight, bias, GEOMETRY, configuration=5)


@pytest.mark.parametrize("name", ["conv2d", "conv_transpose2d", "input", "weight"])
def test_operators_pass_opcheck(name: str) -> None:
    """Schema and fake tensor; there is no autograd at this level."""
    ops = torch.ops.fastgen_triton
    assert conv2d_bias_leaky_relu.conv2d
    assert weight_gradient.conv2d_weight_gradient
    x, w = operands((2, 4, 6, 7), (4, 4, 3, 3), dtype=torch.float32)
    (b,) = operands((4,), dtype=torch.float32)
    same = (1, 1, 1, 1, 1, 1)
    calls = {
        "conv2d": (ops.conv2d, (x, w, b, None, 0.2, *same, 1, True)),
        "conv_transpose2d": (
            ops.conv_transpose2d,
            (x, w, b, None, 0.2, False, *same, 6, 7, 1, True),
        ),
        "input": (ops.conv2d_input_gradient, (x, w, 6, 7, *same, 1, True)),
        "weight": (ops.conv2d_weight_gradient, (x, x, 3, 3, *same, 1, True)),
    }
    operator, arguments = calls[name]
    torch.library.opcheck(operator, arguments, test_utils=("test_schema", "test_faketensor"))
