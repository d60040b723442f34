"""Gradients beyond the second order, of every operation and every backend of a CPU, in float64."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from cpu_backends import BACKENDS
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from fastgen import ops
from fastgen.ops import reference

CONV, UP = "conv2d_bias_leaky_relu", "conv_transpose2d_bias_leaky_relu"
# An operation, the shapes of its tensors and its options; kernels for every kind of layer.
CASES = [
    pytest.param("bias_leaky_relu", [(3, 4, 2, 3), (4,)], {}, id="activation"),
    pytest.param("bias_leaky_relu", [(3, 4), (4,)], {"negative_slope": 0.0}, id="relu"),
    pytest.param("reparameterize", [(3, 5), (3, 5)], {"seed": 1}, id="noise"),
    pytest.param("reparameterize_kl", [(3, 5), (3, 5)], {"seed": 2}, id="noise and divergence"),
    pytest.param(
        CONV,
        [(2, 4, 6, 5), (6, 2, 3, 2), (6,)],
        {"stride": 2, "padding": 1, "groups": 2, "negative_slope": 0.0},
        id="groups",
    ),
    pytest.param(CONV, [(2, 3, 6, 6), (5, 3, 4, 4), (5,)], {"stride": 2}, id="from a picture"),
    pytest.param(CONV, [(2, 6, 4, 4), (2, 6, 3, 3), (2,)], {"padding": 1}, id="into a picture"),
    pytest.param(
        CONV, [(8, 16, 4, 4), (32, 16, 4, 4), (32,)], {"negative_slope": 1.0}, id="product"
    ),
    *(
        pytest.param(CONV, [(2, 16, 5, 4), (16, 16, kernel, kernel), (16,)],
                     {"stride": stride, "padding": 1}, id=f"winograd {kernel}, {stride}")
        for kernel, stride in ((3, 1), (3, 2), (4, 2), (5, 2))
    ),
    pytest.param(
        UP,
        [(2, 4, 3, 3), (4, 2, 3, 3), (4,)],
        {"stride": 2, "dilation": 3, "output_padding": 2, "groups": 2},
        id="up, rows that no input has",
    ),
    pytest.param(
        UP, [(2, 5, 3, 3), (5, 3, 4, 4), (3,)], {"stride": 2, "tanh": True}, id="up, tanh"
    ),
    *(
        pytest.param(UP, [(2, 16, 3, 2), (16, 16, kernel, kernel), (16,)],
                     {"stride": stride, "padding": 1}, id=f"up, winograd {kernel}, {stride}")
        for kernel, stride in ((3, 1), (3, 2), (4, 2), (5, 2))
    ),
]  # fmt: skip


def leaves(name: str, shapes: list[tuple[int, ...]], layout: torch.memory_format) -> list[Tensor]:
    found = []
    for shape in shapes:
        tensor = torch.randn(shape, dtype=torch.float64)
        if len(shape) == 4:
            tensor = tensor.contiguous(memory_format=layout)
        if name in (CONV, UP) and len(found) == 1:
            tensor /= shape[1] * shape[2]
        found.append(tensor.requires_grad_())
    return found


def slope_of_slopes(function, *tensors: Tensor, order: int) -> Tensor:
    """A number that depends on gradients of `function` to the given order."""
    result = function(*tensors)
    value = sum(each.pow(3).sum() for each in (result if isinstance(result, tuple) else [result]))
    for _ in range(order):
        gradients = torch.autograd.grad(value, tensors, create_graph=True)
        value = sum((g + g.square() / 2).sum() / g.numel() for g in gradients)
    return value


def every_case(test):
    """Each operation and its shapes, by each backend in each layout."""
    layouts = [torch.contiguous_format, torch.channels_last]
    test = pytest.mark.parametrize(("name", "shapes", "options"), CASES)(test)
    test = pytest.mark.parametrize("backend", BACKENDS)(test)
    return pytest.mark.parametrize("layout", layouts, ids=str)(test)


@every_case
def test_gradients_of_gradients_pass_gradcheck(name, shapes, options, backend, layout):
    """The third order by the second, and the fourth by the third."""
    function = partial(getattr(ops, name), backend=backend, **options)
    tensors = leaves(name, shapes, layout)
    second = partial(slope_of_slopes, function, order=2)
    assert gradcheck(second, tensors, fast_mode=True)
    assert gradgradcheck(second, tensors, fast_mode=True)


@every_case
def test_the_fourth_order_is_that_of_plain_pytorch(name, shapes, options, backend, layout):
    ours = partial(getattr(ops, name), backend=backend, **options)
    tensors = leaves(name, shapes, layout)
    found = torch.autograd.grad(slope_of_slopes(ours, *tensors, order=3), tensors)

    if "seed" in options:
        options = {"seed": torch.tensor(options["seed"])}
    truth = partial(theirs, name, **options)
    expected = torch.autograd.grad(slope_of_slopes(truth, *tensors, order=3), tensors)
    # Noise is the same float32 numbers within two units of their last place.
    tolerance = 1e-5 if "seed" in options else 1e-9
    for one, other in zip(found, expected, strict=True):
        assert other.abs().max() > 0
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance * other.abs().max())


def theirs(name: str, *tensors: Tensor, **options):
    """The reference; a transposed convolution with an output padding as one without, padded, for
    PyTorch has no third order of the former (torch 2.13).
    """
    function = getattr(reference, name)
    if not options.get("output_padding"):
        return function(*tensors, **options)
    input, weight, bias = tensors
    options = dict(options)
    slope, added = options.pop("negative_slope", 0.2), options.pop("output_padding")
    plain = function(input, weight, None, negative_slope=1.0, **options)
    padded = torch.nn.functional.pad(plain, [0, added, 0, added])
    return reference.bias_leaky_relu(padded, bias, slope)
