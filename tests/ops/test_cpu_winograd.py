"""Backend "cpp" by Winograd's method: gradients, accuracy, infinities, versions, the rule."""

from __future__ import annotations

import itertools
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from accuracy import assert_as_accurate_as_torch
from convolution_cases import SLOPES, tensors
from cpu_programs import (
    SAME_FOR_ALL_THREADS,
    chosen,
    counted,
    results_by_version,
    run_program,
)
from torch.autograd import gradcheck, gradgradcheck

import fastgen
from fastgen.ops import compiled, cpu_winograd, reference
from fastgen.ops.geometry import Geometry

pytestmark = pytest.mark.skipif(
    compiled.missing("cpu") is not None, reason=str(compiled.missing("cpu"))
)
CONV, UP = "conv2d_bias_leaky_relu", "conv_transpose2d_bias_leaky_relu"
DTYPES = [torch.float32, torch.bfloat16]
OPERATORS = {"winograd_conv2d", "winograd_conv_transpose2d", "winograd_conv2d_weight_gradient"}
LAST = torch.channels_last
LAYOUTS = (torch.contiguous_format, LAST)

# (input channels, filters, height, width, kernel, stride, padding) of the convolution
WIDE = [
    (16, 32, 9, 8, 3, 1, 1),
    (32, 16, 5, 11, 3, 1, 0),
    (48, 16, 4, 3, 3, 1, 2),
    (16, 48, 8, 6, 4, 2, 1),
    (32, 16, 7, 9, 4, 2, 0),
    (16, 16, 6, 9, 4, 2, 3),
    (32, 16, 8, 5, 3, 2, 1),
    (16, 48, 5, 9, 3, 2, 2),
    (16, 32, 8, 6, 5, 2, 2),
    (48, 16, 7, 10, 5, 2, 1),
]
KINDS = [(kernel, stride) for (kernel, _), (stride, _) in cpu_winograd.KINDS]


def geometry_of(stride: int, padding: int, *, transposed: bool = False) -> Geometry:
    return Geometry((stride,) * 2, (padding,) * 2, (1, 1), 1, transposed, (0, 0))


def case(name, wide, dtype, batch=2, layout=LAST, weights=LAST):
    """Input, weight and bias, and the options, of a wide layer."""
    channels, filters, height, width, kernel, stride, padding = wide
    low = [(size + 2 * padding - kernel) // stride + 1 for size in (height, width)]
    inner, size = (channels, (height, width)) if name == CONV else (filters, low)
    outer = filters if name == CONV else channels
    shapes = ((batch, inner, *size), (filters, channels, kernel, kernel), (outer,))
    x, w, b = tensors(shapes, dtype, layout)
    return [x, w.contiguous(memory_format=weights) / kernel, b], {
        "stride": stride,
        "padding": padding,
    }


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("slope", SLOPES)
@pytest.mark.parametrize("wide", WIDE, ids=str)
@pytest.mark.parametrize("name", [CONV, UP])
def test_first_and_second_gradients_pass_gradcheck(monkeypatch, name, wide, slope, layout):
    arguments, options = case(name, wide, torch.float64, layout=layout, weights=layout)
    leaves = [t.requires_grad_() for t in arguments]
    function = partial(getattr(fastgen.ops, name), negative_slope=slope, backend="cpp", **options)
    exact = getattr(reference, name)(*leaves, negative_slope=slope, **options)
    used = counted(monkeypatch, cpu_winograd)
    torch.testing.assert_close(function(*leaves), exact)
    assert gradcheck(function, leaves, fast_mode=True)
    assert gradgradcheck(function, leaves, fast_mode=True)
    assert set(used) - {"leaky_relu_mask_"} == OPERATORS


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "wide",
    [
        *WIDE,
        (64, 80, 10, 6, 3, 1, 1),
        (80, 64, 12, 8, 4, 2, 1),
        (80, 64, 11, 8, 3, 2, 1),
        (64, 80, 9, 12, 5, 2, 2),
    ],
    ids=str,
)
@pytest.mark.parametrize("name", [CONV, UP])
def test_is_as_accurate_as_pytorch_through_the_second_order(monkeypatch, name, wide, dtype, layout):
    arguments, options = case(name, wide, dtype, batch=3, layout=layout, weights=layout)
    used = counted(monkeypatch, cpu_winograd)
    assert_as_accurate_as_torch(
        partial(getattr(fastgen.ops, name), backend="cpp", **options),
        partial(getattr(reference, name), **options),
        arguments,
    )
    assert set(used) - {"leaky_relu_mask_"} == OPERATORS


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64])
@pytest.mark.parametrize(
    "wide",
    [
        *WIDE,
        (48, 32, 33, 20, 3, 1, 1),
        (32, 48, 24, 40, 4, 2, 1),
        (48, 32, 33, 40, 3, 2, 1),
        (32, 48, 24, 37, 5, 2, 2),
    ],
)
def test_every_layout_gives_the_same_bits_in_the_layout_that_pytorch_would_answer_in(wide, dtype):
    stride, padding = wide[-2:]
    geometries = geometry_of(stride, padding), geometry_of(stride, padding, transposed=True)
    (x, w, b), options = case(CONV, wide, dtype, batch=3)
    g = torch.randn_like(F.conv2d(x, w, None, **options))
    mask, mask_back = torch.randn_like(g), torch.randn_like(F.conv_transpose2d(g, w, **options))
    up = b.new_tensor(range(x.shape[1]))
    expected = None
    for of_x, of_w, of_g, of_mask in itertools.product(LAYOUTS, repeat=4):
        pictures, weight, grads = (
            t.contiguous(memory_format=f) for t, f in ((x, of_x), (w, of_w), (g, of_g))
        )
        masks = [t.contiguous(memory_format=of_mask) for t in (mask, mask_back)]
        down_last, up_last = LAST in (of_x, of_w), LAST in (of_g, of_w)
        results = {
            (0, down_last): cpu_winograd.forward(pictures, weight, b, 0.2, geometries[0]),
            (1, up_last): cpu_winograd.forward(grads, weight, up, 0.2, geometries[1]),
            (2, up_last): cpu_winograd.input_gradient(
                grads, weight, tuple(x.shape[2:]), geometries[0]
            ),
            (3, of_w == LAST): cpu_winograd.weight_gradient(pictures, grads, weight, geometries[0]),
            (4, down_last): cpu_winograd.masked_forward(
                pictures, weight, b, masks[0], 0.2, geometries[0]
            ),
            (5, None): cpu_winograd.masked_forward(
                grads, weight, None, masks[1], 0.2, geometries[1]
            ),
        }
        for (_, in_last), result in results.items():
            assert in_last is None or result.is_contiguous(memory_format=LAYOUTS[in_last])
        expected = expected or list(results.values())
        for ours, other in zip(results.values(), expected, strict=True):
            assert torch.equal(ours, other)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("batch", [3, 4])  # 4: tiles of three
@pytest.mark.parametrize(("kernel", "stride"), KINDS)
def test_long_sums_are_as_accurate_as_pytorchs(kernel, stride, batch, dtype):
    """Of pictures with a mean, as they come out of a leaky ReLU: nothing cancels there that does
    not cancel in PyTorch."""
    x = (
        torch.randn(batch, 256, 8 * stride, 8 * stride)
        .add(1)
        .to(dtype)
        .contiguous(memory_format=LAST)
    )
    w = (torch.randn(64, 256, kernel, kernel) / 50).to(dtype).contiguous(memory_format=LAST)
    geometry = geometry_of(stride, 1)
    exact = F.conv2d(x.double(), w.double(), None, stride, 1)
    theirs = (F.conv2d(x, w, None, stride, 1).double() - exact).square().mean().sqrt()
    ours = cpu_winograd.forward(x, w, None, 1.0, geometry)
    error = (ours.double() - exact).square().mean().sqrt()
    # Measured: 0.9 to 1.1 in float32, 2.2 to 2.5 in bfloat16.
    assert error <= (2 if dtype == torch.float32 else 3) * theirs


@pytest.mark.parametrize("weights", [LAST, torch.contiguous_format, None], ids=str)
@pytest.mark.parametrize("padding", range(5))
@pytest.mark.parametrize(("kernel", "stride"), KINDS)
def test_every_size_and_padding_against_float64(kernel, stride, padding, weights):
    if padding >= kernel:
        pytest.skip("such padding is not taken")
    geometry = geometry_of(stride, padding)
    for size in range(max(1, kernel - 2 * padding), 12):
        for other, dtype in ((13 - size, torch.float64), (33, torch.float32), (9, torch.bfloat16)):
            if other + 2 * padding < kernel:
                continue
            x = torch.randn(3, 48, size, other).to(dtype).contiguous(memory_format=LAST)
            w = torch.randn(16, 48, kernel, kernel).to(dtype)
            if weights is None:
                w = torch.randn(16, 48, kernel, 2 * kernel).to(dtype)[..., ::2]
            else:
                w = w.contiguous(memory_format=weights)
            wide = x.double(), w.double()
            exact = F.conv2d(*wide, None, stride, padding)
            g = torch.randn(exact.shape).to(dtype).contiguous(memory_format=LAST)
            truths = [
                F.leaky_relu(exact, 0.2),
                torch.nn.grad.conv2d_input(x.shape, wide[1], g.double(), stride, padding),
                torch.nn.grad.conv2d_weight(wide[0], w.shape, g.double(), stride, padding),
            ]
            results = [
                cpu_winograd.forward(x, w, None, 0.2, geometry),
                cpu_winograd.input_gradient(g, w, (size, other), geometry),
                cpu_winograd.weight_gradient(x, g, w, geometry),
            ]
            tolerance = {8: 1e-14, 4: 1e-6, 2: 9e-3}[dtype.itemsize]
            for result, truth in zip(results, truths, strict=True):
                assert result.dtype == dtype
                assert result.shape == truth.shape
                assert (result.double() - truth).norm() <= tolerance * truth.norm()


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64])
@pytest.mark.parametrize("height", range(1, 9))
@pytest.mark.parametrize("kernel", [3, 4])
def test_maps_are_cut_into_tiles_of_two_and_three(kernel, height, dtype):
    geometry = geometry_of(2, 1)
    for width in (1, 2, 3, 4, 7, 8, 9):
        batch = -(-cpu_winograd.MIXED_PIXELS_OF_WEIGHT_GRADIENT // (height * width))
        x, w, g = (
            torch.randn(shape).to(dtype).contiguous(memory_format=LAST)
            for shape in (
                (batch, 16, 2 * height, 2 * width),
                (48, 16, kernel, kernel),
                (batch, 48, height, width),
            )
        )
        wide = x.double(), w.double(), g.double()
        truths = (
            F.conv2d(*wide[:2], None, 2, 1),
            torch.nn.grad.conv2d_input(x.shape, *wide[1:], 2, 1),
            torch.nn.grad.conv2d_weight(wide[0], w.shape, wide[2], 2, 1),
        )
        tolerance = {8: 1e-14, 4: 1e-6, 2: 9e-3}[dtype.itemsize]
        for result, truth in zip(passes(x, w, g, 2), truths, strict=True):
            assert (result.double() - truth).norm() <= tolerance * truth.norm()
        bias = torch.randn(48).to(dtype)
        masked = cpu_winograd.masked_forward(x, w, bias, g, 0.2, geometry)
        truth = truths[0] + bias.double()[:, None, None]
        truth = torch.where(g > 0, truth, 0.2 * truth)
        assert (masked.double() - truth).norm() <= tolerance * truth.norm()


@pytest.mark.parametrize("rows", [1, 30, 100])
def test_large_pictures_are_cut_and_joined(rows):
    """Many blocks of tiles in one picture, and pictures of one row of tiles."""
    for kernel, stride in KINDS:
        x = torch.randn(1, 32, 2 * rows * stride, 140).contiguous(memory_format=LAST)
        w = torch.randn(32, 32, kernel, kernel)
        geometry = geometry_of(stride, 1)
        exact = F.conv2d(x.double(), w.double(), None, stride, 1)
        g = torch.randn(exact.shape).contiguous(memory_format=LAST)
        back = torch.nn.grad.conv2d_input(x.shape, w.double(), g.double(), stride, 1)
        forth = cpu_winograd.forward(x, w, None, 1.0, geometry)
        assert (forth - exact).norm() <= 1e-6 * exact.norm()
        result = cpu_winograd.input_gradient(g, w, tuple(x.shape[2:]), geometry)
        assert (result - back).norm() <= 1e-6 * back.norm()
        sums = torch.nn.grad.conv2d_weight(x.double(), w.shape, g.double(), stride, 1)
        for dtype, tolerance in ((torch.float32, 1e-6), (torch.bfloat16, 9e-3)):
            added = cpu_winograd.weight_gradient(x.to(dtype), g.to(dtype), w.to(dtype), geometry)
            assert (added - sums).norm() <= tolerance * sums.norm()


def passes(x, w, g, stride):
    """The three passes with a padding of 1."""
    x, g = (t.contiguous(memory_format=LAST) for t in (x, g))
    geometry = geometry_of(stride, 1)
    return (
        cpu_winograd.forward(x, w, None, 1.0, geometry),
        cpu_winograd.input_gradient(g, w, tuple(x.shape[2:]), geometry),
        cpu_winograd.weight_gradient(x, g, w, geometry),
    )


def weight_gradient_by_definition(x, w, g, stride):
    """Of the pixels that there are: zeros around them, times infinity, would be NaN."""
    result = torch.zeros_like(w)
    for i in range(w.shape[2]):
        for j in range(w.shape[3]):
            rows, columns = (
                [p for p in range(n) if 0 <= p * stride + tap - 1 < size]
                for n, tap, size in zip(g.shape[2:], (i, j), x.shape[2:], strict=True)
            )
            seen = x[
                :, :, rows[0] * stride + i - 1 :: stride, columns[0] * stride + j - 1 :: stride
            ]
            some = g[:, :, rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
            seen = seen[:, :, : len(rows), : len(columns)]
            result[:, :, i, j] = torch.einsum("nkpq,ncpq->kc", some, seen)
    return result


@pytest.mark.parametrize("batch", [2, 160])  # so many that a weight gradient is cut
@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64])
@pytest.mark.parametrize(("kernel", "stride"), KINDS)
def test_what_is_not_finite_is_what_the_definition_says(kernel, stride, dtype, batch):
    """Also where a transform would carry it to the other outputs of its tile."""
    x, w = torch.randn(batch, 16, 10, 12), torch.randn(32, 16, kernel, kernel)
    g = torch.randn(F.conv2d(x, w, None, stride, 1).shape)
    x[0, 3, 4, 5], x[0, 9, 4, 11], x[1, 0, 0, 0] = torch.inf, -torch.inf, torch.nan
    g[0, 3, 2, 1], g[1, 6, 0, -1] = torch.nan, torch.inf
    x, w, g = (t.to(dtype) for t in (x, w, g))
    wide = x.double(), w.double(), g.double()
    truths = (
        F.conv2d(*wide[:2], None, stride, 1),
        torch.nn.grad.conv2d_input(x.shape, *wide[1:], stride, 1),
        weight_gradient_by_definition(*wide, stride),
    )
    for result, truth in zip(passes(x, w, g, stride), truths, strict=True):
        assert torch.equal(result.isnan(), truth.isnan())
        infinite = truth.isinf()
        assert torch.equal(result[infinite], truth[infinite].to(dtype))
        assert result[~infinite].isinf().sum() == 0
        assert infinite.any()
        assert truth.isnan().any()
        assert truth.isfinite().any()


@pytest.mark.parametrize("batch", [2, 40])
@pytest.mark.parametrize(("kernel", "stride"), KINDS)
def test_where_only_a_transform_overflows_the_result_is_right(kernel, stride, batch):
    x, w = torch.randn(batch, 16, 10, 12), torch.randn(32, 16, kernel, kernel).sign() / 64
    g = torch.randn(F.conv2d(x, w, None, stride, 1).shape)
    flat, small = torch.full_like(x, 1 / 64), torch.full_like(g, 1 / 64)
    x[1, 5, 6:8, 6:8], g[1, 9, 2:4, 2:4] = 3e38, 3e38
    forth, back, _ = passes(x, w, g, stride)
    of_large_inputs, of_large_gradients = (
        passes(x, w, small, stride)[2],
        passes(flat, w, g, stride)[2],
    )
    wide = x.double(), w.double(), g.double()
    for result, truth in (
        (forth, F.conv2d(*wide[:2], None, stride, 1)),
        (back, torch.nn.grad.conv2d_input(x.shape, *wide[1:], stride, 1)),
        (of_large_inputs, torch.nn.grad.conv2d_weight(wide[0], w.shape, small.double(), stride, 1)),
        (
            of_large_gradients,
            torch.nn.grad.conv2d_weight(flat.double(), w.shape, wide[2], stride, 1),
        ),
    ):
        assert result.isfinite().all()
        assert (result.double() - truth).norm() <= 1e-6 * truth.norm()


def test_an_empty_batch_and_its_gradients():
    for name in (CONV, UP):
        arguments, options = case(name, WIDE[0], torch.float32, batch=0)
        x, w, b = (t.requires_grad_() for t in arguments)
        y = getattr(fastgen.ops, name)(x, w, b, backend="cpp", **options)
        grads = torch.autograd.grad(y.sum(), (x, w, b))
        assert y.shape[0] == 0
        assert all(g.eq(0).all() for g in grads)


def test_operators_pass_opcheck():
    o = torch.ops.fastgen
    for dtype in (*DTYPES, torch.float64):
        for layout, last in zip(LAYOUTS, (False, True), strict=True):
            (x, w, b), _ = case(CONV, WIDE[3], dtype, layout=layout, weights=LAYOUTS[0])
            g = torch.randn(2, 48, 4, 3).to(dtype).contiguous(memory_format=LAST)
            for operator, arguments in (
                (o.winograd_conv2d, (x, w, b, g, 0.2, 2, 1, 1, last)),
                (o.winograd_conv_transpose2d, (g, w, None, 1.0, 2, 1, 1, 8, 6, last)),
                (o.winograd_conv2d_weight_gradient, (x, g, 4, 4, 2, 1, 1, last)),
            ):
                torch.library.opcheck(operator.default, arguments)


def last(*shape: int, **options: object) -> torch.Tensor:
    return torch.zeros(shape, **options).contiguous(memory_format=LAST)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"input": last(2, 16, 9, 18)[..., ::2]}, "input must be contiguous or channels_last"),
        ({"input": torch.zeros(16, 9, 9)}, "four dimensions"),
        ({"input": last(2, 16, 9, 9).half()}, "on a CPU"),
        ({"input": last(2, 12, 9, 9)}, "multiples of 16"),
        ({"grad": last(2, 32, 4, 3)}, "must have shape"),
        ({"grad": torch.zeros(2, 32, 8, 4)[:, :, ::2]}, "grad must be contiguous or channels_last"),
        ({"grad": last(2, 32, 4, 4).double()}, "dtype of input"),
        ({"kernel": (3, 4)}, "3x3 with stride 1, and of 3x3, 4x4 and 5x5"),
        ({"kernel": (6, 6)}, "3x3 with stride 1, and of 3x3, 4x4 and 5x5"),
        ({"stride": 1}, "3x3 with stride 1, and of 3x3, 4x4 and 5x5"),
        ({"stride": 3}, "3x3 with stride 1, and of 3x3, 4x4 and 5x5"),
        ({"padding": (4, 0)}, "padding must lie"),
        ({"padding": (-1, 0)}, "padding must lie"),
        ({"input": last(2, 16, 1, 9)}, "height must be at least 4"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_the_weight_gradient_says_what_is_wrong(change, message):
    call = {"input": last(2, 16, 9, 9), "grad": last(2, 32, 4, 4), "kernel": (4, 4)}
    call |= {"stride": 2, "padding": (1, 1)} | change
    if call["input"].dtype == torch.float16:
        call["grad"] = call["grad"].half()
    with pytest.raises(RuntimeError, match=message):
        torch.ops.fastgen.winograd_conv2d_weight_gradient(
            call["input"], call["grad"], *call["kernel"], call["stride"], *call["padding"], False
        )


def test_the_transposed_convolution_says_which_input_belongs_to_an_output():
    with pytest.raises(RuntimeError, match="belongs to an input of 4x3"):
        torch.ops.fastgen.winograd_conv_transpose2d(
            last(2, 16, 4, 4), torch.zeros(16, 16, 4, 4), None, 1.0, 2, 1, 1, 8, 6, True
        )


PROGRAM = """
import sys, torch
from fastgen.ops import compiled
compiled.missing("cpu")

def everything():
    torch.manual_seed(0)
    o, results = torch.ops.fastgen, []
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        for n, c, f, size, kernel, stride in (
            (1, 32, 32, 40, 4, 2), (33, 16, 48, 7, 3, 1), (2, 80, 64, 18, 4, 2),
            (5, 96, 160, 6, 3, 1), (9, 16, 32, 48, 4, 2), (6, 32, 48, 31, 3, 1),
            (1, 16, 32, 101, 3, 1), (1, 32, 48, 128, 4, 2), (9, 48, 32, 33, 3, 2),
            (3, 80, 64, 20, 5, 2), (1, 32, 16, 101, 5, 2), (2, 32, 160, 9, 3, 2),
        ):
            x = torch.randn(n, c, size, size).to(dtype)
            last = n % 2 == 0
            if last:
                x = x.contiguous(memory_format=torch.channels_last)
            w = (torch.randn(f, c, kernel, kernel) / kernel).to(dtype)
            y = o.winograd_conv2d(x, w, None, None, 0.2, stride, 1, 1, last)
            g = torch.randn(y.shape).to(dtype).contiguous(memory_format=torch.channels_last) / 8
            results += [
                y, o.winograd_conv2d(x, w, None, g, 0.2, stride, 1, 1, last),
                o.winograd_conv_transpose2d(g, w, None, 0.2, stride, 1, 1, size, size, last),
                o.winograd_conv2d_weight_gradient(x, g, kernel, kernel, stride, 1, 1, False),
            ]
    return results
"""


def test_versions_agree_within_rounding(tmp_path):
    """Every one that this CPU has. Where it multiplies bfloat16, transformed numbers are rounded to
    it; elsewhere they stay float32.
    """
    found = results_by_version(PROGRAM, tmp_path)
    for results in found.values():
        for ours, other in zip(results, found["portable"], strict=True):
            allowed = 4 * torch.finfo(ours.dtype).eps
            assert (ours.double() - other.double()).norm() <= allowed * other.double().norm()


def test_the_number_of_threads_changes_no_bit():
    run_program(PROGRAM + SAME_FOR_ALL_THREADS)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize(
    ("kernel", "variable", "dynamic"),
    [(4, None, None), (4, "on", None), (4, "off", None), (4, None, True), (5, None, True)],
)
def test_a_wide_convolution_compiles_without_a_graph_break(
    kernel, variable, dynamic, layout, monkeypatch
):
    if variable is not None:
        monkeypatch.setenv("FASTGEN_WINOGRAD", variable)
    torch.compiler.reset()
    x, w = (
        torch.randn(shape).contiguous(memory_format=layout)
        for shape in ((4, 64, 16, 16), (64, 64, kernel, kernel))
    )
    layer = torch.compile(
        fastgen.ops.conv2d_bias_leaky_relu, fullgraph=True, backend="aot_eager", dynamic=dynamic
    )
    for leaf in (x, w):
        leaf.requires_grad_()
    found, expected = (
        (y := function(x, w, None, 2, 1), *torch.autograd.grad(y.pow(2).sum(), (x, w)))
        for function in (layer, fastgen.ops.conv2d_bias_leaky_relu)
    )
    for ours, other in zip(found, expected, strict=True):
        assert ours.stride() == other.stride()
        assert (ours - other).norm() <= 1e-5 * other.norm()


def test_the_rule_takes_it_where_it_was_measured_to_be_faster(monkeypatch):
    if compiled.cpu_version() == "portable":
        pytest.skip("nothing was measured in portable code")
    ours, onednn = "Winograd (C++)", "plain PyTorch"
    down, up = geometry_of(2, 1), geometry_of(2, 1, transposed=True)
    for dtype in DTYPES:
        x, w, g = (last(*s, dtype=dtype) for s in ((2, 32, 16, 16), (64, 32, 4, 4), (2, 64, 8, 8)))
        calls = [
            (CONV, "forward", x, w, None, 0.2, down),
            (CONV, "masked_forward", x, w, None, g, 0.2, down),
            (CONV, "input_gradient", g, w, (16, 16), down),
            (CONV, "weight_gradient", x, g, w, down),
            (UP, "forward", g, w, None, 0.2, up),
            (UP, "input_gradient", x, w, (8, 8), up),
            (UP, "weight_gradient", g, x, w, up),
        ]
        for call in calls:
            assert chosen(*call) == ours
        monkeypatch.setenv("FASTGEN_WINOGRAD", "off")
        for call in calls:
            assert chosen(*call) != ours
        monkeypatch.setenv("FASTGEN_WINOGRAD", "OFF")
        with pytest.raises(ValueError, match="FASTGEN_WINOGRAD must be one of 'on', 'off'"):
            chosen(*calls[0])
        monkeypatch.delenv("FASTGEN_WINOGRAD")
        contiguous = [t.contiguous() if torch.is_tensor(t) else t for t in calls[0]]
        assert chosen(*contiguous) == ours
        w3, square = torch.zeros(32, 32, 3, 3, dtype=dtype), geometry_of(1, 1)
        for size, name in (((2, 6), onednn), ((2, 8), ours), ((4, 4), ours)):
            t = torch.zeros(8, 32, *size, dtype=dtype)
            assert chosen(CONV, "forward", t, w3, None, 0.2, square) == name
            t = t.contiguous(memory_format=LAST)
            assert chosen(CONV, "forward", t, w3, None, 0.2, square) == ours
        assert chosen(UP, "forward", g, w, None, "tanh", up) != ours
        dilated = down._replace(dilation=(2, 2))
        assert chosen(CONV, "forward", x, w, None, 0.2, dilated) == onednn


# How many images of such maps a pass takes at least: for 8 tiles, or for tiles of three, without
# which those of 5x5 are not full; for 2 in small calls; for enough pixels where the phases of a
# weight gradient have unequal taps. (pass, kernel and stride, map, channels and filters, images)
EVEN, UNEVEN = [(3, 1), (4, 2)], [(3, 2), (5, 2)]
FORTH, BACK, OF_WEIGHT = "forward", "input_gradient", "weight_gradient"
LEAST_IMAGES = [
    *((pass_, kind, size, (96, 96), images)
      for pass_, kinds in ((FORTH, KINDS), (BACK, KINDS), (OF_WEIGHT, EVEN))
      for kind in kinds
      for size, images in (((4, 4), 2), ((2, 6), 3), ((6, 2), 3), ((9, 7), 1), ((7, 7), 1))),
    *((OF_WEIGHT, kind, size, (96, 96), images)
      for kind in UNEVEN
      for size, images in (((4, 4), 5), ((2, 6), 6), ((6, 2), 6), ((9, 7), 2), ((9, 8), 1))),
    *((FORTH, kind, (5, 5), channels, images)
      for kind in ((3, 2), (4, 2)) for channels, images in (((96, 96), 11), ((128, 512), 21))),
    *((pass_, kind, (5, 5), (128, 512), images)
      for kind in ((3, 2), (4, 2)) for pass_, images in ((BACK, 11), (OF_WEIGHT, 41))),
    (FORTH, (3, 1), (5, 5), (96, 96), None), (OF_WEIGHT, (3, 1), (9, 3), (96, 96), None),
    (FORTH, (5, 2), (5, 5), (96, 96), None), (OF_WEIGHT, (5, 2), (5, 5), (96, 96), None),
    *((pass_, kind, size, (64, 128), images)
      for pass_, kinds in ((FORTH, KINDS), (BACK, KINDS), (OF_WEIGHT, EVEN))
      for kind in kinds
      for size, images in (((4, 4), 1), ((2, 2), 2), ((3, 3), 1), ((1, 4), 1), ((1, 3), None))),
    *((OF_WEIGHT, kind, size, (64, 128), images)
      for kind in UNEVEN for size, images in (((4, 4), 4), ((2, 2), 16))),
    (FORTH, (3, 1), (4, 4), (80, 112), 2),  # too many pairs of channels to be small
]  # fmt: skip

# And at most: where a small call ends, whose tiles need not be full, or a large one with few
# channels. (pass, kernel and stride, map, channels and filters, dtype, layout, images)
SINGLE, HALF = DTYPES
MOST_IMAGES = [
    (FORTH, (3, 1), (3, 3), (32, 32), SINGLE, LAST, 50),
    (OF_WEIGHT, (3, 1), (5, 5), (32, 32), HALF, LAST, 18),
    (FORTH, (5, 2), (3, 3), (32, 32), SINGLE, LAST, 18),
    (FORTH, (3, 1), (8, 8), (16, 64), HALF, LAST, 32),
    (BACK, (3, 1), (8, 8), (16, 64), HALF, LAYOUTS[0], 32),
    (BACK, (3, 1), (8, 8), (256, 16), HALF, LAST, 15),
    (OF_WEIGHT, (3, 1), (8, 8), (16, 64), HALF, LAST, None),
    (FORTH, (4, 2), (8, 8), (16, 64), HALF, LAYOUTS[0], None),
    (FORTH, (3, 2), (8, 8), (16, 64), HALF, LAST, None),
    (FORTH, (3, 1), (8, 8), (32, 64), HALF, LAST, None),
    (FORTH, (3, 1), (8, 8), (16, 64), SINGLE, LAST, None),
    (FORTH, (3, 1), (8, 8), (16, 64), SINGLE, LAYOUTS[0], 63),
    (FORTH, (5, 2), (8, 8), (16, 64), SINGLE, LAYOUTS[0], 63),
    (BACK, (3, 1), (8, 8), (16, 64), SINGLE, LAYOUTS[0], 63),
    (BACK, (5, 2), (8, 8), (16, 64), SINGLE, LAYOUTS[0], None),
    (OF_WEIGHT, (4, 2), (8, 8), (128, 16), SINGLE, LAYOUTS[0], 31),
]


@pytest.mark.parametrize("transposed", [False, True], ids=["conv2d", "conv_transpose2d"])
def test_the_rule_counts_tiles_and_how_full_they_are(monkeypatch, transposed):
    monkeypatch.setattr(compiled, "cpu_version", lambda: "avx512")

    def takes(pass_, kind, size, channels, images, dtype=torch.float32, layout=LAST):
        (kernel, stride), padding = kind, (1, 0)
        wide = [(m - 1) * stride + kernel - 2 * p for m, p in zip(size, padding, strict=True)]
        geometry = geometry_of(stride, 1, transposed=transposed)._replace(padding=padding)
        shapes = [(images, n, *extent) for n, extent in zip(channels, (wide, size), strict=True)]
        x, y, w = (
            torch.zeros(shape, dtype=dtype).contiguous(memory_format=layout)
            for shape in (*shapes, (*reversed(channels), kernel, kernel))
        )
        x, y = (y, x) if transposed else (x, y)
        arguments = {
            "forward": (x, w, None, 0.2, geometry),
            "input_gradient": (y, w, tuple(x.shape[2:]), geometry),
            "weight_gradient": (x, y, w, geometry),
        }[pass_]
        return chosen(UP if transposed else CONV, pass_, *arguments) == "Winograd (C++)"

    # A transposed convolution's passes are a convolution's, the other way round.
    other = {"forward": "input_gradient", "input_gradient": "forward"}
    for pass_, kind, size, channels, images in LEAST_IMAGES:
        pass_ = other.get(pass_, pass_) if transposed else pass_
        call = (pass_, kind, size, channels)
        if images is None:
            assert not takes(*call, 5 if cpu_winograd.mixes(*kind) else 50), call
            continue
        assert takes(*call, images), call
        assert not takes(*call, images, torch.float64), call
        assert images == 1 or not takes(*call, images - 1), call
    for pass_, *call, dtype, layout, images in MOST_IMAGES:
        call = (other.get(pass_, pass_) if transposed else pass_, *call)
        assert takes(*call, images or 200, dtype, layout), (call, dtype, layout)
        assert not images or not takes(*call, images + 1, dtype, layout), (call, dtype, layout)
    monkeypatch.setattr(compiled, "cpu_version", lambda: "portable")
    assert not takes("forward", (4, 2), (4, 4), (32, 32), 2)


def test_a_side_is_multiplied_at_as_few_points_as_can_be():
    """A tile of so many outputs takes one point less than outputs and taps together."""
    for kernel, stride, mixed in (
        (3, 1, False), (3, 2, False), (3, 2, True), (4, 2, False), (4, 2, True), (5, 2, False),
    ):  # fmt: skip
        taps = [-(-(kernel - first) // stride) for first in range(stride)]
        for size in range(1, 30):
            least = min(
                sum(threes * (n + 2) + twos * (n + 1) for n in taps)
                for threes in range(size if mixed else 1)
                for twos in range(size + 1)
                if 3 * threes + 2 * twos >= size
            )
            assert cpu_winograd.products(size, kernel, stride, mixed=mixed) == least
        assert cpu_winograd.mixes(kernel, stride) == (max(taps) == 2)
