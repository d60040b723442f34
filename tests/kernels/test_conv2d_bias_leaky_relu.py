"""The Triton convolution and its weight gradient, interpreted, against float64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from guarded import assert_right, operands, watched_results
from torch import Tensor

from fastgen.kernels import conv2d_bias_leaky_relu as kernels
from fastgen.kernels import tiling, weight_gradient

conv2d = torch.ops.fastgen_triton.conv2d
conv2d_weight_gradient = torch.ops.fastgen_triton.conv2d_weight_gradient

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# (N, C, H, W), (K, R, S), stride, padding, dilation, groups
GEOMETRIES = [
    ((2, 17, 9, 7), (19, 3, 3), (1, 1), (1, 1), (1, 1), 1),
    ((2, 16, 8, 8), (33, 4, 4), (2, 2), (1, 1), (1, 1), 1),
    ((3, 3, 17, 5), (20, 4, 4), (2, 2), (1, 1), (1, 1), 1),
    ((2, 40, 6, 7), (36, 3, 2), (1, 2), (2, 0), (2, 1), 2),
    ((1, 5, 11, 9), (10, 5, 7), (3, 2), (2, 3), (1, 1), 5),
    ((3, 64, 3, 1), (1, 1, 1), (2, 2), (0, 0), (1, 1), 1),
    ((1, 32, 9, 9), (130, 3, 3), (1, 3), (0, 0), (3, 2), 1),
    ((1, 1, 1, 1), (1, 1, 1), (1, 1), (0, 0), (1, 1), 1),
    ((2, 1, 7, 7), (3, 7, 7), (1, 1), (3, 3), (1, 1), 1),
]


def convolve(input: Tensor, weight: Tensor, bias: Tensor | None, geometry: tuple) -> Tensor:
    _, _, stride, padding, dilation, groups = geometry
    wide = None if bias is None else bias.double()
    return F.conv2d(input.double(), weight.double(), wide, stride, padding, dilation, groups)


def magnitude(input: Tensor, weight: Tensor, bias: Tensor | None, geometry: tuple) -> Tensor:
    return convolve(input.abs(), weight.abs(), None if bias is None else bias.abs(), geometry)


def drawn(geometry: tuple, dtype: torch.dtype) -> list[Tensor]:
    shape, (features, *kernel), *_, groups = geometry
    weight = (features, shape[1] // groups, *kernel)
    return operands(shape, weight, (features,), dtype=dtype)


def arguments(geometry: tuple) -> tuple[int, ...]:
    _, _, stride, padding, dilation, groups = geometry
    return (*stride, *padding, *dilation, groups)


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
@pytest.mark.parametrize("slope", [0.0, 0.2, 1.0])
def test_convolution_with_bias_and_leaky_relu(
    geometry: tuple, slope: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    input, weight, bias = drawn(geometry, torch.float32)
    for given in (bias, None):
        with watched_results(monkeypatch):
            result = conv2d(input, weight, given, None, slope, *arguments(geometry), True)
        truth = F.leaky_relu(convolve(input, weight, given, geometry), slope)
        assert_right(result, truth, magnitude(input, weight, given, geometry))


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
@pytest.mark.parametrize("slope", [0.0, 0.2])
def test_a_given_output_masks_the_convolution(
    geometry: tuple, slope: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    input, weight, bias = drawn(geometry, torch.float32)
    exact = convolve(input, weight, bias, geometry)
    (output,) = operands(tuple(exact.shape), dtype=torch.float32, seed=1)
    output[..., 0, 0] = 0  # where leaky ReLU counts as not positive
    with watched_results(monkeypatch):
        result = conv2d(input, weight, bias, output, slope, *arguments(geometry), True)
    truth = exact * torch.where(output > 0, 1.0, slope)
    assert_right(result, truth, magnitude(input, weight, bias, geometry))


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
@pytest.mark.parametrize("shares", [1, 40], ids=["one share", "many shares"])
def test_weight_gradient(geometry: tuple, shares: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiling, "processors", lambda device: shares)
    monkeypatch.setattr(weight_gradient, "STEPS", 1)
    input, weight, _ = drawn(geometry, torch.float32)
    (grad,) = operands(tuple(convolve(input, weight, None, geometry).shape), dtype=torch.float32)

    def truth(input: Tensor, grad: Tensor) -> Tensor:
        wide = weight.double().requires_grad_()
        output = convolve(input, wide, None, geometry)
        return torch.autograd.grad(output, wide, grad.double())[0]

    with watched_results(monkeypatch):
        result = conv2d_weight_gradient(input, grad, *weight.shape[2:], *arguments(geometry), True)
    assert_right(result, truth(input, grad), truth(input.abs(), grad.abs()))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("allow_tf32", [False, True])
def test_every_configuration_in_every_dtype(
    dtype: torch.dtype, allow_tf32: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    geometry = GEOMETRIES[0]
    input, weight, bias = drawn(geometry, dtype)
    exact = convolve(input, weight, bias, geometry)
    bound = magnitude(input, weight, bias, geometry)
    for configuration in range(len(kernels.TILES.of(dtype, allow_tf32))):
        with watched_results(monkeypatch):
            result = conv2d(
                input, weight, bias, None, 0.2, *arguments(geometry), allow_tf32, configuration
            )
        assert result.dtype == dtype
        assert_right(result, F.leaky_relu(exact, 0.2), bound)

    (grad,) = operands(tuple(exact.shape), dtype=dtype, seed=1)
    wide = weight.double().requires_grad_()
    (truth,) = torch.autograd.grad(convolve(input, wide, None, geometry), wide, grad.double())
    (bound,) = torch.autograd.grad(
        convolve(input.abs(), wide, None, geometry), wide, grad.double().abs()
    )
    for configuration in range(len(weight_gradient.TILES.of(dtype, allow_tf32))):
        with watched_results(monkeypatch):
            result = conv2d_weight_gradient(
                input, grad, 3, 3, *arguments(geometry), allow_tf32, configuration
            )
        assert result.dtype == dtype
        assert_right(result, truth, bound)


@pytest.mark.parametrize("geometry", GEOMETRIES[2:4], ids=str)
def test_offsets_of_64_bits(geometry: tuple, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiling, "LARGEST_INT32", 0)
    input, weight, bias = drawn(geometry, torch.float32)
    exact = convolve(input, weight, bias, geometry)
    result = conv2d(input, weight, bias, None, 0.2, *arguments(geometry), True)
    assert_right(result, F.leaky_relu(exact, 0.2), magnitude(input, weight, bias, geometry))

    wide = weight.double().requires_grad_()
    (grad,) = operands(tuple(exact.shape), dtype=torch.float32, seed=1)
    (truth,) = torch.autograd.grad(convolve(input, wide, None, geometry), wide, grad.double())
    (bound,) = torch.autograd.grad(
        convolve(input.abs(), wide, None, geometry), wide, grad.double().abs()
    )
    result = conv2d_weight_gradient(input, grad, *weight.shape[2:], *arguments(geometry), True)
    assert_right(result, truth, bound)


def test_more_than_two_to_the_31_elements() -> None:
    """A picture of 2.2e9 numbers whose stride skips nearly all: only what is read gets memory."""
    height, width, channels, stride = 3, 2**15 + 3, 22_000, 2**14
    pixels = torch.empty(1, height, width, channels, dtype=torch.bfloat16)
    input = pixels.permute(0, 3, 1, 2)
    assert input.numel() > 2**31
    generator = torch.Generator().manual_seed(0)
    places = [(y, x) for y in (0, 2) for x in (0, stride, 2 * stride)]
    for y, x in places:
        pixels[0, y, x] = torch.randn(channels, generator=generator).to(torch.bfloat16)
    weight = torch.randn(3, channels, 1, 1, generator=generator).to(torch.bfloat16)
    weight = weight.contiguous(memory_format=torch.channels_last)

    result = conv2d(input, weight, None, None, 1.0, 2, stride, 0, 0, 1, 1, 1, True)
    read = torch.stack([pixels[0, y, x] for y, x in places]).double()
    product = read @ weight[:, :, 0, 0].double().T
    bound = read.abs() @ weight[:, :, 0, 0].double().abs().T
    order = (1, 2, 3, 3)

    def picture(rows: Tensor) -> Tensor:
        return rows.view(order[0], order[1], order[2], order[3]).permute(0, 3, 1, 2)

    assert_right(result, picture(product), picture(bound))


def test_weight_gradient_is_the_same_on_every_run() -> None:
    input, grad = operands((2, 8, 16, 16), (2, 8, 16, 16), dtype=torch.float32)
    runs = [conv2d_weight_gradient(input, grad, 3, 3, 1, 1, 1, 1, 1, 1, 1, True) for _ in range(2)]
    assert torch.equal(*runs)


def test_empty_batches() -> None:
    input = torch.empty(0, 3, 5, 5).contiguous(memory_format=torch.channels_last)
    weight = torch.ones(4, 3, 3, 3).contiguous(memory_format=torch.channels_last)
    result = conv2d(input, weight, None, None, 0.2, 1, 1, 1, 1, 1, 1, 1, True)
    assert result.shape == (0, 4, 5, 5)
    gradient = conv2d_weight_gradient(input, result, 3, 3, 1, 1, 1, 1, 1, 1, 1, True)
    assert torch.equal(gradient, torch.zeros(4, 3, 3, 3))


def test_refuses_what_it_cannot_address() -> None:
    input, weight = operands((2, 3, 5, 5), (4, 3, 3, 3), dtype=torch.float32)
    geometry = (1, 1, 1, 1, 1, 1, 1, True)
    with pytest.raises(ValueError, match="input must have four dimensions and lie in memory as ch"):
        conv2d(input.contiguous(), weight, None, None, 0.2, *geometry)
    with pytest.raises(TypeError, match=r"weight must be torch\.float32"):
        conv2d(input, weight.half(), None, None, 0.2, *geometry)
    with pytest.raises(ValueError, match="input must have 3 channels"):
        conv2d(
            input[:, :2].contiguous(memory_format=torch.channels_last),
            weight,
            None,
            None,
            0.2,
            *geometry,
        )
    with pytest.raises(ValueError, match="bias must be a dense vector of 4"):
        conv2d(input, weight, torch.ones(3), None, 0.2, *geometry)
    with pytest.raises(ValueError, match="output must have shape"):
        conv2d(input, weight, None, input, 0.2, *geometry)
    with pytest.raises(ValueError, match=r"configuration must lie in \[0, 4\]"):
        conv2d(input, weight, None, None, 0.2, *geometry, 5)
    with pytest.raises(ValueError, match="smaller than the kernel"):
        conv2d(input, weight, None, None, 0.2, 1, 1, 0, 0, 3, 3, 1, True)
