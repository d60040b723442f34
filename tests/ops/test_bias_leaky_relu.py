from __future__ import annotations

from functools import partial

import pytest
import torch
from accuracy import assert_as_accurate_as_torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import gradcheck, gradgradcheck

from fastgen.ops import bias_leaky_relu, compiled, reference
from fastgen.ops.backend import KERNELS

SHAPES = [(3, 5), (2, 3, 17), (2, 3, 4, 5), (1, 1, 1, 1), (0, 3, 2, 2), (2, 3, 2, 2, 2)]


@pytest.mark.parametrize("slope", [0.0, 0.2, 1.0])
@pytest.mark.parametrize("shape", SHAPES)
def test_first_and_second_gradients_pass_gradcheck(shape, slope):
    torch.manual_seed(0)
    leaves = [torch.randn(s, dtype=torch.float64, requires_grad=True) for s in (shape, shape[1])]
    assert gradcheck(partial(bias_leaky_relu, negative_slope=slope), leaves)
    assert gradgradcheck(partial(bias_leaky_relu, negative_slope=slope), leaves)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    shape=st.lists(st.integers(1, 7), min_size=2, max_size=5),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    slope=st.sampled_from([0.0, 0.01, 0.2, 1.0]),
    seed=st.integers(0, 1000),
)
def test_is_as_accurate_as_pytorch_through_the_second_order(shape, dtype, slope, seed):
    torch.manual_seed(seed)
    tensors = [torch.randn(shape).to(dtype), torch.randn(shape[1]).to(dtype)]
    assert_as_accurate_as_torch(
        partial(bias_leaky_relu, negative_slope=slope),
        partial(reference.bias_leaky_relu, negative_slope=slope),
        tensors,
    )


def test_saves_the_output_alone_and_nothing_when_linear():
    x, b = torch.randn(4, 3, 5, 5, requires_grad=True), torch.randn(3, requires_grad=True)
    for slope, expected in ((0.2, 1), (1.0, 0)):
        saved: list[torch.Tensor] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):  # noqa: B023
            y = bias_leaky_relu(x, b, slope)
        assert len(saved) == expected
        assert all(t.data_ptr() == y.data_ptr() for t in saved)


def test_channels_last_stays_channels_last_in_every_order():
    x = torch.randn(2, 3, 5, 7).contiguous(memory_format=torch.channels_last).requires_grad_()
    b = torch.randn(3, requires_grad=True)
    y = bias_leaky_relu(x, b)
    (g,) = torch.autograd.grad(y.pow(3).sum(), x, create_graph=True)
    (gg,) = torch.autograd.grad(g.pow(2).sum(), x)
    for tensor in (y, g, gg):
        assert tensor.is_contiguous(memory_format=torch.channels_last)


def test_never_returns_or_changes_its_input():
    x = torch.randn(2, 3)
    before = x.clone()
    for bias in (None, torch.randn(3)):
        for slope in (0.2, 1.0):
            assert bias_leaky_relu(x, bias, slope).data_ptr() != x.data_ptr()
    assert torch.equal(x, before)


def test_an_undefined_gradient_stays_undefined():
    x = torch.randn(2, 3, requires_grad=True)
    y = bias_leaky_relu(x, torch.randn(3, requires_grad=True))
    (g,) = torch.autograd.grad(y.sum(), x, create_graph=True)
    # g depends on x through the mask alone, whose derivative is 0 almost everywhere.
    assert torch.autograd.grad(g.sum(), x, allow_unused=True) == (None,)


def test_compiles_and_runs_under_autocast():
    torch.compiler.reset()
    x, b = torch.randn(2, 3, 4, 4), torch.randn(3)
    compiled = torch.compile(bias_leaky_relu, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x, b), bias_leaky_relu(x, b))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert bias_leaky_relu(x, b).dtype == torch.float32


@pytest.mark.parametrize(
    ("input", "bias", "error", "message"),
    [
        (torch.randn(2, 3), torch.randn(2), ValueError, r"bias must have shape \(3,\)"),
        (torch.randn(3), torch.randn(3), ValueError, "input must have shape"),
        (torch.randn(2, 3), torch.randn(3).double(), TypeError, "bias must have the dtype"),
        (
            torch.ones(2, 3, dtype=torch.complex64),
            None,
            TypeError,
            "input must have one of the dtypes",
        ),
    ],
)
def test_what_does_not_fit_is_refused_by_name(input, bias, error, message):
    with pytest.raises(error, match=message):
        bias_leaky_relu(input, bias)


@pytest.mark.skipif(compiled.missing("cpu") is not None, reason="built without C++ kernels")
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(
    "shape", [(3, 5, 17, 127), (70, 16, 4, 4), (16, 64, 32, 32), (4, 3, 128, 128)]
)
def test_long_sums_of_a_bias_gradient_are_as_accurate_as_pytorchs(shape, layout):
    """Float32 chains of thousands lose digits; the error is a mean over draws, so luck is out."""
    errors = {"cpp": 0.0, "torch": 0.0}
    for _ in range(20):
        g, y = (torch.randn(shape).contiguous(memory_format=layout) for _ in "gy")
        exact = torch.where(y > 0, g, g * 0.2).double().sum((0, 2, 3))
        for name in errors:
            _, total = KERNELS["bias_leaky_relu", name].mask_sum(g, y, 0.2)
            errors[name] += float((total.double() - exact).square().mean().sqrt())
    assert errors["cpp"] <= 1.5 * errors["torch"]


def test_a_tensor_that_outlives_a_transform_is_a_plain_one():
    kept = []
    x = torch.randn(2, 3, 4)
    torch.func.grad(lambda x: kept.append(2 * x) or x.sum())(x)
    output = bias_leaky_relu(kept[0], torch.ones(3))
    assert not output.requires_grad
    torch.testing.assert_close(output, bias_leaky_relu(2 * x, torch.ones(3)))
