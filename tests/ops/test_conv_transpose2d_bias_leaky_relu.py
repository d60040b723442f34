from __future__ import annotations

from functools import partial

import pytest
import torch
from accuracy import assert_as_accurate_as_torch
from convolution_cases import GEOMETRIES, LAYOUTS, SLOPES, geometries, tensors
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import gradcheck, gradgradcheck

from fastgen.ops import conv_transpose2d_bias_leaky_relu, reference


def case(geometry, dtype=torch.float64, layout=torch.contiguous_format, batch=2):
    inner, outer, height, width, kernel, stride, padding, dilation, groups = geometry
    shapes = (
        (batch, inner, height, width),
        (inner, -(-outer // groups), kernel, kernel),
        (-(-outer // groups) * groups,),
    )
    options = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    return tensors(shapes, dtype, layout), options


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("slope", SLOPES)
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_first_and_second_gradients_pass_gradcheck(geometry, slope, layout):
    arguments, options = case(geometry, layout=layout)
    function = partial(conv_transpose2d_bias_leaky_relu, negative_slope=slope, **options)
    leaves = [t.requires_grad_() for t in arguments]
    assert gradcheck(function, leaves, fast_mode=True)
    assert gradgradcheck(function, leaves, fast_mode=True)


def test_an_output_padding_of_a_whole_stride_has_right_gradients():
    arguments = tensors(((2, 3, 4, 5), (3, 2, 3, 3), (2,)), torch.float64, torch.contiguous_format)
    function = partial(conv_transpose2d_bias_leaky_relu, stride=1, dilation=3, output_padding=2)
    leaves = [t.requires_grad_() for t in arguments]
    assert gradcheck(function, leaves)
    assert gradgradcheck(function, leaves)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    geometry=geometries(transposed=True),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    layout=st.sampled_from(list(LAYOUTS.values())),
    seed=st.integers(0, 1000),
)
def test_is_as_accurate_as_pytorch_through_the_second_order(geometry, dtype, layout, seed):
    arguments = tensors(geometry["shapes"], dtype, layout, seed)
    assert_as_accurate_as_torch(
        partial(conv_transpose2d_bias_leaky_relu, **geometry["options"]),
        partial(reference.conv_transpose2d_bias_leaky_relu, **geometry["options"]),
        arguments,
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize(
    ("outer", "kernel", "padding", "extra"),
    [(3, 4, 1, 0), (1, 4, 1, 0), (4, 2, 0, 0), (3, 5, 2, 1), (2, 6, 2, 0)],
)
def test_the_generators_last_layer_is_as_accurate_by_phases(
    outer, kernel, padding, extra, layout, dtype
):
    arguments = tensors(((3, 16, 8, 8), (16, outer, kernel, kernel), (outer,)), dtype, layout)
    options = {"stride": 2, "padding": padding, "output_padding": extra}
    result = conv_transpose2d_bias_leaky_relu(*arguments, **options)
    assert result.shape == (3, outer, 16, 16)
    assert outer == 1 or result.is_contiguous(memory_format=layout)
    assert_as_accurate_as_torch(
        partial(conv_transpose2d_bias_leaky_relu, **options),
        partial(reference.conv_transpose2d_bias_leaky_relu, **options),
        arguments,
    )


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("geometry", GEOMETRIES[:4])
def test_tanh_has_right_gradients_to_the_second_order(geometry, layout):
    arguments, options = case(geometry, layout=layout)
    function = partial(conv_transpose2d_bias_leaky_relu, tanh=True, **options)
    leaves = [t.requires_grad_() for t in arguments]
    assert gradcheck(function, leaves)
    assert gradgradcheck(function, leaves, fast_mode=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("inner", [16, 3])
def test_tanh_is_as_accurate_as_pytorchs(inner, layout, dtype):
    arguments = tensors(((3, inner, 8, 8), (inner, 3, 4, 4), (3,)), dtype, layout)
    options = {"stride": 2, "padding": 1, "tanh": True}
    assert_as_accurate_as_torch(
        partial(conv_transpose2d_bias_leaky_relu, **options),
        partial(reference.conv_transpose2d_bias_leaky_relu, **options),
        arguments,
    )


def test_a_single_picture_and_an_empty_batch_work():
    (x, w, b), options = case(GEOMETRIES[1])
    batch = conv_transpose2d_bias_leaky_relu(x, w, b, **options)
    torch.testing.assert_close(conv_transpose2d_bias_leaky_relu(x[0], w, b, **options), batch[0])
    for dtype in (torch.float32, torch.float64):
        (x, w, b), options = case(GEOMETRIES[1], dtype, batch=0)
        w.requires_grad_()
        output = conv_transpose2d_bias_leaky_relu(x, w, b, **options)
        assert output.shape == (0, *batch.shape[1:])
        output.sum().backward()
        assert not w.grad.any()


@pytest.mark.parametrize("tanh", [False, True])
def test_compiles_without_a_graph_break_and_equals_eager(tanh):
    torch.compiler.reset()
    (x, w, b), options = case(GEOMETRIES[1], torch.float32)
    function = partial(conv_transpose2d_bias_leaky_relu, tanh=tanh, **options)
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")

    def run(f):
        leaves = [t.detach().clone().requires_grad_() for t in (x, w, b)]
        output = f(*leaves)
        return (output, *torch.autograd.grad(output.pow(2).sum(), leaves))

    for a, e in zip(run(compiled), run(function), strict=True):
        torch.testing.assert_close(a, e, rtol=1e-5, atol=1e-4)


def test_autocast_computes_in_bfloat16():
    (x, w, b), options = case(GEOMETRIES[1], torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = conv_transpose2d_bias_leaky_relu(x, w, b, **options)
    assert output.dtype == torch.bfloat16


X, W, B = torch.randn(2, 4, 5, 5), torch.randn(4, 6, 3, 3), torch.randn(6)


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        (
            (X, W, B),
            {"output_padding": 1},
            ValueError,
            "output_padding must be below the stride or the dilation",
        ),
        ((X, W, B), {"output_padding": -1}, ValueError, "output_padding must be at least 0"),
        ((X, W, B), {"padding": 4}, ValueError, "use less padding or a larger input"),
        ((X, W, B[:3]), {}, ValueError, r"bias must have shape \(6,\)"),
        ((X, W, B), {"groups": 3}, ValueError, "groups must divide"),
        ((X[:, :3], W, B), {}, ValueError, "input must have 4 channels"),
        ((X, W, B), {"padding": "same"}, TypeError, "padding must be an integer or a pair"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(arguments, options, error, message):
    with pytest.raises(error, match=message):
        conv_transpose2d_bias_leaky_relu(*arguments, **options)
