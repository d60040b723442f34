"""Backend "triton" as users call it, interpreted: forward, first and second gradients.

The kernels themselves have tests of their own beside this file; here the whole way down to them is
held to PyTorch's own composition, by the rule of `accuracy`.
"""

from __future__ import annotations

from functools import partial

import pytest
import torch
from accuracy import assert_as_accurate_as_torch
from convolution_cases import GEOMETRIES, LAYOUTS, SLOPES, tensors

import fastgen
from fastgen.ops import backend, reference


def test_auto_never_takes_the_interpreter() -> None:
    assert "triton" not in backend.automatic_names("cpu")


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("slope", SLOPES)
@pytest.mark.parametrize("transposed", [False, True], ids=["conv", "transposed"])
@pytest.mark.parametrize("geometry", [GEOMETRIES[1], GEOMETRIES[2], GEOMETRIES[4]])
def test_convolutions_through_the_second_order(geometry, transposed, slope, layout):
    inner, outer, height, width, kernel, stride, padding, dilation, groups = geometry
    weight = (inner, outer // groups) if transposed else (outer, inner // groups)
    shapes = ((2, inner, height, width), (*weight, kernel, kernel), (outer,))
    options = {
        "stride": stride,
        "padding": padding,
        "dilation": dilation,
        "groups": groups,
        "negative_slope": slope,
    }
    name = "conv_transpose2d_bias_leaky_relu" if transposed else "conv2d_bias_leaky_relu"
    operation = partial(getattr(fastgen.ops, name), backend="triton", **options)
    x, w, b = tensors(shapes, torch.float32, layout)
    output = operation(x, w, b)
    assert output.is_contiguous(memory_format=layout)
    assert_as_accurate_as_torch(operation, partial(getattr(reference, name), **options), (x, w, b))


def test_a_generators_end_by_tanh():
    shapes = ((2, 5, 4, 4), (5, 3, 4, 4), (3,))
    options = {"stride": 2, "padding": 1, "tanh": True}
    assert_as_accurate_as_torch(
        partial(fastgen.ops.conv_transpose2d_bias_leaky_relu, backend="triton", **options),
        partial(reference.conv_transpose2d_bias_leaky_relu, **options),
        tensors(shapes, torch.float32, torch.channels_last),
    )


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("slope", SLOPES)
def test_bias_leaky_relu_through_the_second_order(slope, layout):
    assert_as_accurate_as_torch(
        partial(fastgen.ops.bias_leaky_relu, negative_slope=slope, backend="triton"),
        partial(reference.bias_leaky_relu, negative_slope=slope),
        tensors(((3, 17, 5, 7), (17,)), torch.float32, layout),
    )


@pytest.mark.parametrize("shape", [(3, 17), (2, 3, 5, 1)])
def test_reparameterize_kl_through_the_second_order(shape):
    def both(function, seed):
        def sum_of_both(mu, logvar):
            z, kl = function(mu, logvar, seed=seed)
            return z.flatten(1) * kl[:, None].to(z.dtype)

        return sum_of_both

    assert_as_accurate_as_torch(
        both(partial(fastgen.ops.reparameterize_kl, backend="triton"), 5),
        both(reference.reparameterize_kl, torch.tensor(5)),
        tensors((shape, shape), torch.float32, torch.contiguous_format),
    )


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("transposed", [False, True], ids=["conv", "transposed"])
def test_compiles_without_a_graph_break_and_equals_eager(transposed, layout):
    torch.compiler.reset()
    name = "conv_transpose2d_bias_leaky_relu" if transposed else "conv2d_bias_leaky_relu"
    operation = partial(getattr(fastgen.ops, name), stride=2, padding=1, backend="triton")
    compiled = torch.compile(operation, fullgraph=True, backend="aot_eager")
    weight = (3, 4, 4, 4) if transposed else (4, 3, 4, 4)
    given = tensors(((2, 3, 6, 6), weight, (4,)), torch.float32, layout)

    def run(function):
        leaves = [t.detach().clone().requires_grad_() for t in given]
        output = function(*leaves)
        return (output, *torch.autograd.grad(output.pow(2).sum(), leaves))

    for a, e in zip(run(compiled), run(operation), strict=True):
        torch.testing.assert_close(a, e, rtol=1e-5, atol=1e-5)


def test_float64_is_refused_with_the_remedy():
    with pytest.raises(fastgen.BackendUnavailable, match=r"float64.*use backend='torch'"):
        fastgen.ops.bias_leaky_relu(torch.randn(2, 3, dtype=torch.float64), backend="triton")
