from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from accuracy import assert_as_accurate_as_torch, derivatives
from convolution_cases import GEOMETRIES, LAYOUTS, SLOPES, geometries, tensors
from cpu_programs import run_program
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import gradcheck, gradgradcheck

import fastgen
from fastgen.ops import (
    compiled,
    conv2d_bias_leaky_relu,
    conv_transpose2d_bias_leaky_relu,
    reference,
)


def case(geometry, dtype=torch.float64, layout=torch.contiguous_format, batch=2, seed=0):
    inner, outer, height, width, kernel, stride, padding, dilation, groups = geometry
    shapes = ((batch, inner, height, width), (outer, inner // groups, kernel, kernel), (outer,))
    options = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    return tensors(shapes, dtype, layout, seed), options


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("slope", SLOPES)
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_first_and_second_gradients_pass_gradcheck(geometry, slope, layout):
    arguments, options = case(geometry, layout=layout)
    function = partial(conv2d_bias_leaky_relu, negative_slope=slope, **options)
    leaves = [t.requires_grad_() for t in arguments]
    assert gradcheck(function, leaves, fast_mode=True)
    assert gradgradcheck(function, leaves, fast_mode=True)


def test_gradients_are_exact_without_fast_mode_and_without_bias():
    (input, weight, _), options = case(GEOMETRIES[1])
    leaves = [input.requires_grad_(), weight.requires_grad_()]
    function = partial(conv2d_bias_leaky_relu, **options)
    assert gradcheck(function, leaves)
    assert gradgradcheck(function, leaves)


@pytest.mark.parametrize("leaves", ["xw", "xb", "wb", "xwb"])
def test_a_loss_of_several_first_gradients_has_pytorchs_gradients(leaves):
    """`gradgradcheck` takes first gradients one by one: no backward sees two of them at once."""
    arguments, options = case(GEOMETRIES[1])

    def second(function):
        given = {name: t.clone() for name, t in zip("xwb", arguments, strict=True)}
        asked = [given[name].requires_grad_() for name in leaves]
        value = function(*given.values(), **options).pow(3).sum()
        gradients = torch.autograd.grad(value, asked, create_graph=True)
        return torch.autograd.grad(sum(gradient.pow(3).sum() for gradient in gradients), asked)

    ours, theirs = second(conv2d_bias_leaky_relu), second(reference.conv2d_bias_leaky_relu)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-8)


def test_third_gradient_equals_pytorchs():
    arguments, options = case(GEOMETRIES[1])

    def third(function):
        x, w, b = (t.clone().requires_grad_() for t in arguments)
        value = function(x, w, b, **options).pow(4).sum()
        for leaf in (x, w, x):
            (gradient,) = torch.autograd.grad(value, leaf, create_graph=True)
            value = gradient.pow(3).sum()
        return torch.autograd.grad(value, w)[0]

    torch.testing.assert_close(
        third(conv2d_bias_leaky_relu),
        third(reference.conv2d_bias_leaky_relu),
        rtol=1e-10,
        atol=1e-8,
    )


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    geometry=geometries(transposed=False),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    layout=st.sampled_from(list(LAYOUTS.values())),
    seed=st.integers(0, 1000),
)
def test_is_as_accurate_as_pytorch_through_the_second_order(geometry, dtype, layout, seed):
    arguments = tensors(geometry["shapes"], dtype, layout, seed)
    assert_as_accurate_as_torch(
        partial(conv2d_bias_leaky_relu, **geometry["options"]),
        partial(reference.conv2d_bias_leaky_relu, **geometry["options"]),
        arguments,
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize(
    ("inner", "outer", "size", "kernel", "padding"),
    [
        (3, 32, 16, 4, 1),
        (1, 8, 28, 4, 1),
        (4, 16, 12, 5, 2),
        (3, 64, 8, 2, 0),
        (64, 96, 8, 4, 1),
        (64, 64, 6, 5, 2),
        (256, 480, 8, 5, 2),
    ],
)
def test_special_routes_of_image_edges_and_small_maps_are_as_accurate(
    inner, outer, size, kernel, padding, layout, dtype
):
    arguments = tensors(
        ((3, inner, size, size), (outer, inner, kernel, kernel), (outer,)), dtype, layout
    )
    assert_as_accurate_as_torch(
        partial(conv2d_bias_leaky_relu, stride=2, padding=padding),
        partial(reference.conv2d_bias_leaky_relu, stride=2, padding=padding),
        arguments,
    )


@pytest.mark.parametrize("padding", ["same", "valid"])
@pytest.mark.parametrize("kernel", [(3, 3), (4, 3), (2, 4)])
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_named_paddings_mean_what_they_mean_in_pytorch(padding, kernel, layout):
    arguments = tensors(((2, 3, 7, 9), (4, 3, *kernel), (4,)), torch.float64, layout)
    ours = derivatives(
        partial(conv2d_bias_leaky_relu, padding=padding, dilation=2 if kernel[0] == 3 else 1),
        arguments,
    )
    theirs = derivatives(
        partial(
            reference.conv2d_bias_leaky_relu, padding=padding, dilation=2 if kernel[0] == 3 else 1
        ),
        arguments,
    )
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b)


def test_output_has_pytorchs_shape_and_layout_for_every_mix_of_layouts():
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        for geometry in GEOMETRIES:
            for first in LAYOUTS.values():
                for second in LAYOUTS.values():
                    (x, w, b), options = case(geometry, dtype)
                    x, w = x.contiguous(memory_format=first), w.contiguous(memory_format=second)
                    ours = conv2d_bias_leaky_relu(x, w, b, **options)
                    theirs = reference.conv2d_bias_leaky_relu(x, w, b, **options)
                    assert ours.shape == theirs.shape
                    if first is second:
                        assert ours.is_contiguous(memory_format=first)


def test_strided_views_and_expanded_inputs_give_the_same_result():
    (x, w, b), options = case(GEOMETRIES[1])
    wide = torch.randn(4, 3, 9, 18, dtype=torch.float64)
    for view in (
        wide[::2, :, :, ::2],
        wide.transpose(2, 3)[:, :, :9],
        x[:1].expand(3, -1, -1, -1),
        wide[1:, :, :, 4:13],
    ):
        for dtype in (torch.float64, torch.float32, torch.bfloat16):
            ours = derivatives(
                partial(conv2d_bias_leaky_relu, **options), [t.to(dtype) for t in (view, w, b)]
            )
            exact = derivatives(
                partial(reference.conv2d_bias_leaky_relu, **options),
                [t.to(dtype).double() for t in (view, w, b)],
            )
            scale = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 5e-2}[dtype]
            for a, e in zip(ours, exact, strict=True):
                assert (a.double() - e).abs().max() <= scale * e.abs().max()


def test_a_single_picture_without_a_batch_works():
    (x, w, b), options = case(GEOMETRIES[1])
    single = conv2d_bias_leaky_relu(x[0], w, b, **options)
    torch.testing.assert_close(single, conv2d_bias_leaky_relu(x, w, b, **options)[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_an_empty_batch_gives_empty_output_and_zero_gradients(dtype):
    (x, w, b), options = case(GEOMETRIES[0], dtype, batch=0)
    for leaf in (x, w, b):
        leaf.requires_grad_()
    output = conv2d_bias_leaky_relu(x, w, b, **options)
    assert output.shape == (0, 4, 7, 6)
    output.sum().backward()
    assert x.grad.shape == x.shape
    assert not w.grad.any()
    assert not b.grad.any()


def test_without_gradients_nothing_is_recorded():
    (x, w, b), options = case(GEOMETRIES[0])
    w.requires_grad_()
    with torch.no_grad():
        assert conv2d_bias_leaky_relu(x, w, b, **options).grad_fn is None
    assert conv2d_bias_leaky_relu(x, w.detach(), b, **options).grad_fn is None


def test_frozen_weights_get_no_gradient_and_the_input_is_not_saved_for_them():
    (x, w, b), options = case(GEOMETRIES[0])
    x.requires_grad_()
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda t: saved.append(t.data_ptr()) or t, lambda t: t
    ):
        output = conv2d_bias_leaky_relu(x, w, b, **options)
    assert x.data_ptr() not in saved
    output.sum().backward()
    assert x.grad is not None
    assert w.grad is None


@pytest.mark.parametrize("slope", [0.2, 1])
@pytest.mark.parametrize("frozen", ["input", "weight"])
def test_a_gradient_with_a_graph_saves_nothing_for_what_is_frozen(frozen, slope):
    (x, w, b), options = case(GEOMETRIES[0])
    leaf = (w if frozen == "input" else x).requires_grad_()
    output = conv2d_bias_leaky_relu(x, w, b, negative_slope=slope, **options)
    grad_output = torch.randn_like(output).requires_grad_()
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda t: saved.append(t.data_ptr()) or t, lambda t: t
    ):
        torch.autograd.grad(output, leaf, grad_output, create_graph=True)
    other = x if frozen == "input" else w  # what the gradient is linear in, and the mask
    assert set(saved) == {other.data_ptr()} | ({output.data_ptr()} if slope != 1 else set())


@pytest.mark.parametrize("second_order", [False, True])
def test_autocast_computes_in_bfloat16_and_returns_float32_gradients(second_order):
    (x, w, b), options = case(GEOMETRIES[1], torch.float32)
    leaves = [t.requires_grad_() for t in (x, w, b)]

    def gradients(function):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            output = function(x, w, b, **options)
            assert output.dtype == torch.bfloat16
            first = torch.autograd.grad(
                output.float().pow(2).sum(), leaves, create_graph=second_order
            )
        if not second_order:
            return first
        return torch.autograd.grad(first[0].pow(2).sum(), [x, w])

    ours, theirs = gradients(conv2d_bias_leaky_relu), gradients(reference.conv2d_bias_leaky_relu)
    for a, b_ in zip(ours, theirs, strict=True):
        assert a.dtype == torch.float32
        assert (a - b_).norm() <= 0.03 * b_.norm()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_autocast_without_a_bias_leaves_float64_alone(dtype):
    (x, w, _), options = case(GEOMETRIES[1], dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = conv2d_bias_leaky_relu(x, w, None, **options)
    assert output.dtype == (torch.bfloat16 if dtype == torch.float32 else torch.float64)


def test_autocast_neither_casts_integers_nor_asks_what_has_no_memory():
    (x, w, b), options = case(GEOMETRIES[1], torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        with pytest.raises(TypeError, match="weight must have one of the dtypes"):
            conv2d_bias_leaky_relu(x, w.long(), b, **options)
        output = conv2d_bias_leaky_relu(*(t.to("meta") for t in (x, w, b)), **options)
    assert output.is_meta


@pytest.mark.parametrize("compiler", ["aot_eager", "inductor"])
def test_compiles_without_a_graph_break_and_equals_eager(compiler):
    torch.compiler.reset()
    (x, w, b), options = case(GEOMETRIES[1], torch.float32)
    function = partial(conv2d_bias_leaky_relu, **options)
    compiled = torch.compile(function, fullgraph=True, backend=compiler)

    def run(f):
        leaves = [t.detach().clone().requires_grad_() for t in (x, w, b)]
        output = f(*leaves)
        return (output, *torch.autograd.grad(output.pow(2).sum(), leaves))

    for a, e in zip(run(compiled), run(function), strict=True):
        torch.testing.assert_close(a, e, rtol=1e-5, atol=1e-4)


def test_exports_to_a_graph_that_computes_the_same():
    (x, w, b), options = case(GEOMETRIES[1], torch.float32)

    class Layer(torch.nn.Module):
        def forward(self, x, w, b):
            return conv2d_bias_leaky_relu(x, w, b, **options)

    exported = torch.export.export(Layer(), (x, w, b)).module()
    torch.testing.assert_close(exported(x, w, b), conv2d_bias_leaky_relu(x, w, b, **options))


@pytest.mark.skipif(compiled.missing("cpu") is not None, reason="no compiled operators")
def test_an_exported_program_loads_where_no_operation_has_run(tmp_path):
    layer, x = fastgen.nn.ConvLeakyReLU2d(3, 16, 4, stride=2, padding=1), torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        program = torch.export.export(layer, (x,))
        assert "torch.ops.fastgen." in program.graph_module.code
        torch.export.save(program, tmp_path / "program.pt2")
        torch.save((x, layer(x)), tmp_path / "numbers.pt")
    code = (
        "import sys, torch, fastgen.ops\n"
        "x, y = torch.load(sys.argv[2], weights_only=True)\n"  # written by this very test
        "torch.testing.assert_close(torch.export.load(sys.argv[1]).module()(x), y)\n"
    )
    run_program(code, str(tmp_path / "program.pt2"), str(tmp_path / "numbers.pt"))


def test_nan_and_infinity_propagate_as_in_pytorch():
    (x, w, b), options = case(GEOMETRIES[0], torch.float32)
    x[0, 0, 0, 0], x[1, 1, 2, 2] = float("nan"), float("inf")
    ours = conv2d_bias_leaky_relu(x, w, b, **options)
    theirs = reference.conv2d_bias_leaky_relu(x, w, b, **options)
    torch.testing.assert_close(ours, theirs, equal_nan=True)


X, W, B = torch.randn(2, 4, 8, 8), torch.randn(6, 4, 3, 3), torch.randn(6)


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        ((X, W, B), {"negative_slope": -0.1}, ValueError, "negative_slope must lie in"),
        ((X, W, B), {"negative_slope": 1.5}, ValueError, "negative_slope must lie in"),
        ((X, W, B), {"negative_slope": float("nan")}, ValueError, "negative_slope must lie in"),
        ((X, W, B), {"negative_slope": "0.2"}, TypeError, "negative_slope must be a number"),
        ((X, W, B), {"stride": 0}, ValueError, "stride must be at least 1"),
        ((X, W, B), {"stride": (1, 2, 3)}, TypeError, "stride must be an integer or a pair"),
        ((X, W, B), {"stride": 1.5}, TypeError, r"stride must be an integer .*got 1\.5"),
        ((X, W, B), {"stride": None}, TypeError, "stride must be an integer or a pair"),
        ((X, W, B), {"dilation": True}, TypeError, "dilation must be an integer or a pair"),
        ((X, W, B), {"dilation": "2"}, TypeError, "dilation must be an integer or a pair"),
        ((X, W, B), {"groups": 1.0}, TypeError, "groups must be an integer"),
        ((X, W, B), {"padding": (1.0, 0)}, TypeError, "padding must be an integer or a pair"),
        ((X, W, B), {"padding": -1}, ValueError, "padding must be at least 0"),
        ((X, W, B), {"padding": "reflect"}, ValueError, "padding must be"),
        ((X, W, B), {"padding": "same", "stride": 2}, ValueError, "needs stride 1"),
        ((X, W, B), {"dilation": 5}, ValueError, "smaller than the kernel"),
        ((X, W, B), {"groups": 2}, ValueError, "input must have 8 channels"),
        ((X, W, B), {"groups": 0}, ValueError, "groups must be at least 1"),
        ((X, torch.randn(5, 2, 3, 3), None), {"groups": 2}, ValueError, "groups must divide"),
        ((X[:, :3], W, B), {}, ValueError, "input must have 4 channels"),
        ((X[0, 0], W, B), {}, ValueError, "input must have shape"),
        ((X, W[0], B), {}, ValueError, "weight must have four dimensions"),
        ((X, W, B[:5]), {}, ValueError, r"bias must have shape \(6,\)"),
        ((X, W.double(), B), {}, TypeError, "weight must have the dtype of input"),
        ((X, W, B.double()), {}, TypeError, "bias must have the dtype of input"),
        ((X.long(), W, B), {}, TypeError, "input must have one of the dtypes"),
        ((X.numpy(), W, B), {}, TypeError, r"input must be a torch.Tensor \(got ndarray\)"),
        ((X, W.to("meta"), B), {}, ValueError, "weight must be on the device of input"),
        ((X, W, B), {"backend": "cudnn"}, ValueError, "backend must be one of"),
        (
            (X, W, B),
            {"backend": "cuda"},
            fastgen.BackendUnavailable,
            "backend 'cuda' (is not available|runs on cuda tensors)",
        ),
    ],
)
def test_what_does_not_fit_is_refused_by_name(arguments, options, error, message):
    with pytest.raises(error, match=message):
        conv2d_bias_leaky_relu(*arguments, **options)


def test_numpys_integers_and_lists_are_as_good():
    two, one = np.int64(2), np.int32(1)
    weight = W[:, :2].clone().requires_grad_()
    ours = conv2d_bias_leaky_relu(X, weight, B, two, [one], (one, 1), two)
    assert torch.equal(ours, conv2d_bias_leaky_relu(X, weight, B, 2, 1, 1, 2))
    ours.square().sum().backward()
    up = torch.randn(4, 6, 3, 3)
    ours = conv_transpose2d_bias_leaky_relu(X, up, None, two, output_padding=one)
    assert torch.equal(ours, conv_transpose2d_bias_leaky_relu(X, up, None, 2, output_padding=1))
