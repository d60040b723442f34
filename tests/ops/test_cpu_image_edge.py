"""Backend "cpp" at image edges: gradients, accuracy, memory, versions, threads, the rule."""

from __future__ import annotations

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from accuracy import assert_as_accurate_as_torch
from convolution_cases import LAYOUTS, SLOPES, tensors
from cpu_programs import (
    SAME_FOR_ALL_THREADS,
    chosen,
    counted,
    results_by_version,
    run_program,
)
from torch.autograd import gradcheck, gradgradcheck

import fastgen
from fastgen.ops import compiled, cpu_image_edge, image_edge, reference
from fastgen.ops.geometry import Geometry
from fastgen.ops.layouts import same_order

pytestmark = pytest.mark.skipif(
    compiled.missing("cpu") is not None, reason=str(compiled.missing("cpu"))
)
CONV, UP = "conv2d_bias_leaky_relu", "conv_transpose2d_bias_leaky_relu"
DTYPES = [torch.float32, torch.bfloat16]

# (picture channels, other channels, height, width, kernel, stride, padding)
EDGES = [
    (3, 5, 9, 7, (4, 4), (2, 2), (1, 1)),
    (1, 33, 8, 17, (4, 4), (2, 2), (1, 1)),
    (4, 17, 5, 6, (3, 3), (1, 1), (1, 1)),
    (2, 7, 11, 4, (5, 2), (3, 1), (2, 0)),
    (3, 4, 4, 4, (1, 1), (1, 1), (0, 0)),
    (3, 1, 1, 3, (3, 7), (1, 2), (3, 3)),
]


def case(name, edge, dtype, layout, batch=2):
    """Input, weight and bias, and the options, of a layer with a picture on one side."""
    picture, other, height, width, kernel, stride, padding = edge
    low = [
        (size + 2 * p - k) // s + 1
        for size, k, s, p in zip((height, width), kernel, stride, padding, strict=True)
    ]
    inner, size = (picture, (height, width)) if name == CONV else (other, low)
    outer = other if name == CONV else picture
    shapes = ((batch, inner, *size), (other, picture, *kernel), (outer,))
    return tensors(shapes, dtype, layout), {"stride": stride, "padding": padding}


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("slope", SLOPES)
@pytest.mark.parametrize("edge", EDGES, ids=str)
@pytest.mark.parametrize("name", [CONV, UP])
def test_first_and_second_gradients_pass_gradcheck(monkeypatch, name, edge, slope, layout):
    arguments, options = case(name, edge, torch.float64, layout)
    leaves = [t.requires_grad_() for t in arguments]
    function = partial(getattr(fastgen.ops, name), negative_slope=slope, backend="cpp", **options)
    exact = getattr(reference, name)(*leaves, negative_slope=slope, **options)
    used = counted(monkeypatch, cpu_image_edge, image_edge)
    torch.testing.assert_close(function(*leaves), exact)
    assert gradcheck(function, leaves, fast_mode=True)
    assert gradgradcheck(function, leaves, fast_mode=True)
    assert {
        "image_edge_conv2d",
        "image_edge_conv_transpose2d",
        "image_edge_conv2d_weight_gradient",
    } == set(used)


def test_a_generators_end_passes_gradcheck():
    x, w, b = tensors(((2, 5, 4, 6), (5, 3, 4, 4), (3,)), torch.float64, torch.channels_last)
    leaves = [t.requires_grad_() for t in (x, w, b)]
    operation = partial(fastgen.ops.conv_transpose2d_bias_leaky_relu, stride=2, padding=1)
    ended = partial(operation, tanh=True, backend="cpp")
    torch.testing.assert_close(ended(*leaves), operation(*leaves, negative_slope=1).tanh())
    assert gradcheck(ended, leaves, fast_mode=True)
    assert gradgradcheck(ended, leaves, fast_mode=True)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("edge", EDGES, ids=str)
@pytest.mark.parametrize("name", [CONV, UP])
def test_is_as_accurate_as_pytorch_through_the_second_order(name, edge, layout, dtype):
    arguments, options = case(name, edge, dtype, layout, batch=3)
    assert_as_accurate_as_torch(
        partial(getattr(fastgen.ops, name), backend="cpp", **options),
        partial(getattr(reference, name), **options),
        arguments,
    )


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("kernel", range(1, 8))
def test_every_kernel_stride_and_padding_against_float64(kernel, stride, channels):
    for padding in {0, kernel // 2, kernel}:
        for filters, dtype in ((1, torch.float64), (33, torch.float32), (64, torch.bfloat16)):
            first, second = (
                LAYOUTS[["contiguous", "channels_last"][(filters + padding + i) % 2]]
                for i in (0, 1)
            )
            x = torch.randn(2, channels, 9, 17).to(dtype).contiguous(memory_format=first)
            w = torch.randn(filters, channels, kernel, kernel).to(dtype)
            w = w.contiguous(memory_format=second)
            geometry = Geometry((stride,) * 2, (padding,) * 2, (1, 1), 1, False, (0, 0))
            wide = x.double(), w.double()
            exact = F.conv2d(*wide, None, stride, padding)
            g = torch.randn(exact.shape).to(dtype).contiguous(memory_format=second)
            truths = [
                F.leaky_relu(exact, 0.2),
                torch.nn.grad.conv2d_input(x.shape, wide[1], g.double(), stride, padding),
                torch.nn.grad.conv2d_weight(wide[0], w.shape, g.double(), stride, padding),
            ]
            results = [
                cpu_image_edge.forward(x, w, None, 0.2, geometry),
                cpu_image_edge.input_gradient(g, w, (9, 17), geometry),
                cpu_image_edge.weight_gradient(x, g, w, geometry),
            ]
            tolerance = {8: 1e-14, 4: 1e-6, 2: 4e-3}[dtype.itemsize]
            for result, truth in zip(results, truths, strict=True):
                assert result.dtype == dtype
                assert result.shape == truth.shape
                assert (result.double() - truth).norm() <= tolerance * truth.norm()


def test_the_results_layout_is_that_of_pytorch_for_every_mix():
    for name in (CONV, UP):
        for edge in EDGES:
            for first in LAYOUTS.values():
                for second in LAYOUTS.values():
                    (x, w, b), options = case(name, edge, torch.float32, first)
                    w = w.contiguous(memory_format=second)
                    ours = getattr(fastgen.ops, name)(x, w, b, backend="cpp", **options)
                    theirs = getattr(reference, name)(x, w, b, **options)
                    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
                    if first is second:  # a single channel counts as contiguous
                        assert same_order(ours, theirs)


@pytest.mark.parametrize("dtype", DTYPES)
def test_sliced_shifted_and_expanded_operands(dtype):
    wide = torch.randn(4, 3, 18, 40).to(dtype)
    w, b = torch.randn(6, 3, 5, 5).to(dtype), torch.randn(12).to(dtype)[::2]
    views = (
        wide[::2, :, :, ::2],
        wide.transpose(2, 3)[:, :, :17],
        wide[:1].expand(3, -1, -1, -1),
        wide[1:, :, 1:, 3:20],
        wide.contiguous(memory_format=torch.channels_last)[:, :, ::3],
        wide[:, :1].expand(-1, 3, -1, -1),
    )
    options = {"stride": 2, "padding": 2}
    for view in views:
        for weight in (w, torch.randn(6, 3, 5, 9).to(dtype)[..., ::2], w.flip(0).transpose(2, 3)):
            assert_as_accurate_as_torch(
                partial(fastgen.ops.conv2d_bias_leaky_relu, backend="cpp", **options),
                partial(reference.conv2d_bias_leaky_relu, **options),
                (view, weight, b),
            )
            map_ = view.repeat_interleave(2, 1)
            assert_as_accurate_as_torch(
                partial(fastgen.ops.conv_transpose2d_bias_leaky_relu, backend="cpp", **options),
                partial(reference.conv_transpose2d_bias_leaky_relu, **options),
                (map_[:, ::1], weight, b[:3]),
            )


def test_an_expanded_gradient_reaches_the_operators():
    x = torch.randn(2, 3, 8, 8, requires_grad=True)
    w = torch.randn(5, 3, 4, 4, requires_grad=True)
    y = fastgen.ops.conv2d_bias_leaky_relu(x, w, None, 2, 1, negative_slope=1, backend="cpp")
    exact = F.conv2d(x, w, None, 2, 1)
    for ours, theirs in zip(
        torch.autograd.grad(y.sum(), (x, w)), torch.autograd.grad(exact.sum(), (x, w)), strict=True
    ):
        torch.testing.assert_close(ours, theirs)


def test_an_empty_batch_and_its_gradients():
    for name in (CONV, UP):
        arguments, options = case(name, EDGES[0], torch.float32, torch.channels_last, batch=0)
        x, w, b = (t.requires_grad_() for t in arguments)
        y = getattr(fastgen.ops, name)(x, w, b, backend="cpp", **options)
        grads = torch.autograd.grad(y.sum(), (x, w, b))
        assert y.shape[0] == 0
        assert all(g.eq(0).all() for g in grads)


def test_infinity_and_nan_stay_where_their_windows_are():
    for dtype in (*DTYPES, torch.float64):
        for kernel, stride, padding in ((3, 1, 1), (4, 2, 1), (3, 2, 0), (1, 2, 0), (5, 1, 0)):
            x, w = torch.randn(1, 3, 12, 20), torch.randn(7, 3, kernel, kernel)
            x[0, 1, 5, 6], x[0, 2, 9, 19] = torch.inf, torch.nan
            geometry = Geometry((stride,) * 2, (padding,) * 2, (1, 1), 1, False, (0, 0))
            y = F.conv2d(x.double(), w.double(), None, stride, padding)
            g = torch.randn_like(y, dtype=torch.float32)
            g[0, 3, 2, 1], g[0, 6, 0, -1] = torch.nan, -torch.inf
            back = torch.nn.grad.conv2d_input(x.shape, w.double(), g.double(), stride, padding)
            for layout in LAYOUTS.values():
                x, g = x.contiguous(memory_format=layout), g.contiguous(memory_format=layout)
                operands = [t.to(dtype) for t in (x, w, g)]
                for result, truth in (
                    (cpu_image_edge.forward(*operands[:2], None, 1.0, geometry), y),
                    (
                        cpu_image_edge.input_gradient(operands[2], operands[1], (12, 20), geometry),
                        back,
                    ),
                ):
                    assert torch.equal(result.isfinite(), truth.isfinite())


def test_operators_pass_opcheck():
    for dtype in (*DTYPES, torch.float64):
        for layout in LAYOUTS.values():
            x, w, g = tensors(((2, 3, 9, 8), (5, 3, 4, 4), (2, 5, 4, 4)), dtype, layout)
            last, step = layout is torch.channels_last, (2, 2, 1, 1)
            o = torch.ops.fastgen
            for operator, arguments in (
                (o.image_edge_conv2d, (x, w, None, g, 0.2, *step, last, False)),
                (o.image_edge_conv_transpose2d, (g, w, None, 1.0, True, *step, 9, 8, last, False)),
                (o.image_edge_conv2d_weight_gradient, (x, g, 4, 4, *step, last)),
            ):
                torch.library.opcheck(operator.default, arguments)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"input": torch.zeros(2, 5, 9, 9)}, "1 to 4 input channels"),
        ({"input": torch.zeros(3, 9, 9)}, "four dimensions"),
        ({"input": torch.zeros(2, 3, 9, 9).half()}, "on a CPU"),
        ({"grad": torch.zeros(2, 5, 4, 3)}, "must have shape"),
        ({"grad": torch.zeros(2, 5, 4, 8)[..., ::2]}, "contiguous or channels_last"),
        ({"grad": torch.zeros(2, 5, 4, 4).double()}, "dtype of input"),
        ({"kernel": (17, 4)}, "at most 16 by 16"),
        ({"kernel": (12, 4)}, "larger than that of the padded input"),
        ({"stride": (0, 1)}, "stride must be at least 1"),
        ({"padding": (-1, 0)}, "padding must not be negative"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_the_weight_gradient_says_what_is_wrong(change, message):
    call = {"input": torch.zeros(2, 3, 9, 9), "grad": torch.zeros(2, 5, 4, 4), "kernel": (4, 4)}
    call |= {"stride": (2, 2), "padding": (1, 1)} | change
    if call["input"].dtype == torch.float16:
        call["grad"] = call["grad"].half()
    with pytest.raises(RuntimeError, match=message):
        torch.ops.fastgen.image_edge_conv2d_weight_gradient(
            call["input"], call["grad"], *call["kernel"], *call["stride"], *call["padding"], False
        )


PROGRAM = """
import sys, torch
from fastgen.ops import compiled
compiled.missing("cpu")

def everything():
    torch.manual_seed(0)
    o, results = torch.ops.fastgen, []
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        for n, c, k, size, kernel, step in (
            (1, 3, 32, 40, 4, (2, 2, 1, 1)), (33, 1, 70, 20, 3, (1, 1, 1, 1)),
            (2, 3, 64, 33, 5, (2, 2, 2, 2)), (1, 4, 5, 90, 7, (1, 1, 3, 3)),
        ):
            for layout in (torch.contiguous_format, torch.channels_last):
                last = layout is torch.channels_last
                x = torch.randn(n, c, size, size).to(dtype).contiguous(memory_format=layout)
                w = (torch.randn(k, c, kernel, kernel) / kernel).to(dtype)
                y = o.image_edge_conv2d(x, w, None, None, 0.2, *step, last, False)
                g = torch.randn(y.shape).to(dtype).contiguous(memory_format=layout) / 8
                results += [
                    y, o.image_edge_conv2d(x, w, None, g, 0.2, *step, last, False),
                    o.image_edge_conv_transpose2d(
                        g, w, None, 1.0, True, *step, size, size, last, False
                    ),
                    o.image_edge_conv2d_weight_gradient(x, g, kernel, kernel, *step, last),
                ]
    return results
"""


def test_versions_agree_within_rounding(tmp_path):
    """Every one that this CPU has. They add the same terms in the same order, but for bfloat16,
    whose pairs are one step where the CPU has that.
    """
    found = results_by_version(PROGRAM, tmp_path)
    for results in found.values():
        for ours, other in zip(results, found["portable"], strict=True):
            wide = torch.promote_types(ours.dtype, torch.float32)  # in which sums are kept
            allowed = torch.finfo(ours.dtype).eps + 16 * torch.finfo(wide).eps
            error = (ours.double() - other.double()).abs().max()
            assert error <= allowed * other.double().abs().max()


def test_the_number_of_threads_changes_no_bit():
    run_program(PROGRAM + SAME_FOR_ALL_THREADS)


def test_the_rule_takes_the_image_edge_where_it_was_measured_to_be_faster():
    if compiled.cpu_version() == "portable":
        pytest.skip("nothing was measured in portable code")
    ours, onednn = "image edge (C++)", "plain PyTorch"
    down = Geometry((2, 2), (1, 1), (1, 1), 1, False, (0, 0))
    up = Geometry((2, 2), (1, 1), (1, 1), 1, True, (0, 0))
    x, w, g = torch.randn(2, 3, 16, 16), torch.randn(32, 3, 4, 4), torch.randn(2, 32, 8, 8)
    last = x.contiguous(memory_format=torch.channels_last)
    for dtype in DTYPES:
        a, b, c = (t.to(dtype) for t in (x, w, g))
        assert chosen(CONV, "forward", a, b, None, 0.2, down) == ours
        near = a.contiguous(memory_format=torch.channels_last), b, None
        mask = c.contiguous(memory_format=torch.channels_last)
        assert chosen(CONV, "masked_forward", *near, mask, 0.2, down) == ours
        assert chosen(CONV, "input_gradient", c, b, (16, 16), down) == ours
        assert chosen(UP, "forward", c, b, None, "tanh", up) == ours
        assert chosen(UP, "input_gradient", a, b, (8, 8), up) == ours
    assert chosen(CONV, "masked_forward", x, w, None, g, 0.2, down) == onednn
    many, output = torch.empty(1, 1, 1, 1), torch.empty(1, 1, 1, 1).expand(300, 512, 8, 8)
    many = many.expand(300, 3, 16, 16)
    assert cpu_image_edge.masked_forward_wins(many, w, None, output, 0.2, down)
    assert chosen(CONV, "weight_gradient", x, g, w, down) == ours
    assert chosen(UP, "weight_gradient", g, x, w, up) == ours
    assert chosen(CONV, "weight_gradient", last, g, w, down) == ours
    gray, of_gray = torch.randn(2, 1, 16, 16), torch.randn(32, 1, 3, 3)
    same = down._replace(stride=(1, 1))
    assert (
        chosen(CONV, "weight_gradient", gray, torch.randn(2, 32, 16, 16), of_gray, same) == onednn
    )
    wide = torch.randn(32, 6, 4, 4)
    assert chosen(CONV, "forward", torch.randn(2, 6, 16, 16), wide, None, 0.2, down) == onednn
    assert chosen(CONV, "forward", x.double(), w.double(), None, 0.2, down) == onednn
    dilated = down._replace(dilation=(2, 2))
    assert chosen(CONV, "forward", x, w, None, 0.2, dilated) == onednn


def layer(
    *,
    channels=3,
    filters=32,
    kernel=(3, 3),
    stride=(1, 1),
    batch=2,
    dtype=torch.float32,
    last=False,
    map_last=None,
    transposed=False,
):
    """The calls of a layer without padding between pictures and maps of 4x6, by pass."""
    layouts = [torch.channels_last if c else torch.contiguous_format for c in (last, map_last)]
    layouts[1] = layouts[0] if map_last is None else layouts[1]
    size = [(m - 1) * s + k for m, s, k in zip((4, 6), stride, kernel, strict=True)]
    picture, weight, map_ = (
        torch.zeros(shape, dtype=dtype).contiguous(memory_format=layout)
        for shape, layout in (
            ((batch, channels, *size), layouts[0]),
            ((filters, channels, *kernel), layouts[0]),
            ((batch, filters, 4, 6), layouts[1]),
        )
    )
    input, output = (map_, picture) if transposed else (picture, map_)
    geometry = Geometry(stride, (0, 0), (1, 1), 1, transposed, (0, 0))
    return {
        "forward": (input, weight, None, 0.2, geometry),
        "masked_forward": (input, weight, None, output, 0.2, geometry),
        "input_gradient": (output, weight, tuple(input.shape[2:]), geometry),
        "weight_gradient": (input, output, weight, geometry),
    }


HALF = {"dtype": torch.bfloat16}
TAP, TWO = {"kernel": (1, 1)}, {"kernel": (1, 2)}
TURNED = {"channels": 24, "filters": 3}
MANY = {"channels": 64, "filters": 3, "last": True}

# What a pass takes and, one step further on, leaves: docs/cpu.md has the measurements.
EDGES_OF_THE_RULE = [
    *(
        (pass_, {**more, "kernel": (7, 7)}, {**more, "kernel": kernel})
        for pass_ in ("forward", "input_gradient", "weight_gradient")
        for more in ({}, TURNED)
        for kernel in ((8, 3), (3, 8))
    ),
    *(
        (pass_, more, {**more, "dtype": torch.float64})
        for pass_ in ("forward", "input_gradient", "weight_gradient")
        for more in ({}, TURNED)
    ),
    ("forward", {"stride": (2, 2)}, {"stride": (1, 3)}),
    ("input_gradient", {"stride": (2, 2)}, {"stride": (3, 1)}),
    ("forward", TAP, {**TAP, "batch": 1}),
    *(("forward", {"kernel": two, "batch": 1}, {**TAP, "batch": 1}) for two in ((1, 2), (2, 1))),
    ("input_gradient", {**TAP, **HALF, "batch": 1}, {**TAP, **HALF, "last": True}),
    ("masked_forward", {"last": True, "stride": (2, 1)}, {"last": True, "stride": (1, 2)}),
    ("masked_forward", HALF, {}),
    ("masked_forward", HALF, {**HALF, "kernel": (8, 3)}),
    ("weight_gradient", {"channels": 1, "kernel": (2, 4)}, {"channels": 1, "kernel": (4, 3)}),
    ("weight_gradient", {"channels": 2, **TWO, "last": True},
     {"channels": 4, **TAP, "last": True}),
    ("weight_gradient", {"channels": 2, **TAP}, {"channels": 1, **TAP}),
    *(
        ("weight_gradient", {"channels": 2, **TAP, **swapped, "last": False, "map_last": True},
         {"channels": 2, **TAP, **swapped, "last": True, "map_last": False})
        for swapped in ({}, {"transposed": True})
    ),
    ("weight_gradient", {"filters": 128}, {"filters": 129}),
    ("weight_gradient", {"filters": 129, **HALF}, {"filters": 129}),
    ("forward", {**TURNED, **TAP}, {**TURNED, **TAP, "batch": 1}),
    ("forward", {**TURNED, **TWO, "batch": 1, **HALF}, {**TURNED, **TAP, **HALF}),
    ("input_gradient", {**TURNED, **TAP}, {**TURNED, **TAP, "batch": 1}),
    ("input_gradient", {**TURNED, **TWO, "batch": 1}, {**TURNED, **TAP, "batch": 1}),
    ("input_gradient", {**MANY, **TAP}, {**MANY, **TAP, "channels": 63}),
    ("input_gradient", {**TURNED, **TWO, **HALF}, {**TURNED, **TAP, **HALF}),
    ("input_gradient", {**MANY, **HALF, "kernel": (2, 5)}, {**MANY, **HALF}),
    ("weight_gradient", {**TURNED, **TAP}, {**TURNED, **TAP, "batch": 1}),
    ("weight_gradient", {**TURNED, **TWO, "batch": 1}, {**TURNED, **TAP, "batch": 1}),
]  # fmt: skip


def is_ours(pass_, **options):
    operation = UP if options.get("transposed") else CONV
    return chosen(operation, pass_, *layer(**options)[pass_]).startswith("image edge")


def test_the_rule_ends_where_the_measurements_do(monkeypatch):
    monkeypatch.setattr(compiled, "cpu_version", lambda: "avx512bf16")
    for pass_, inside, outside in EDGES_OF_THE_RULE:
        assert is_ours(pass_, **inside), (pass_, inside)
        assert not is_ours(pass_, **outside), (pass_, outside)
    # A result from which the C library takes fresh memory.
    input, weight, _, _, slope, geometry = layer()["masked_forward"]
    for count, ours in ((1 << 23, False), ((1 << 23) + 1, True)):
        output = torch.zeros(1).expand(1, 1, 1, count)
        arguments = (input, weight, None, output, slope, geometry)
        assert cpu_image_edge.masked_forward_wins(*arguments) == ours
    # Without the instructions oneDNN is slow in bfloat16.
    gray = {"channels": 1, "kernel": (1, 1)}
    assert not is_ours("weight_gradient", **gray, **HALF)
    monkeypatch.setattr(compiled, "cpu_version", lambda: "avx512")
    assert is_ours("weight_gradient", **gray, **HALF)
    assert not is_ours("weight_gradient", **gray)
    monkeypatch.setattr(compiled, "cpu_version", lambda: "portable")
    assert not any(is_ours(pass_, **inside) for pass_, inside, _ in EDGES_OF_THE_RULE)


def writing_a_picture(dtype, layout, *, kernel=3, channels=24, batch=2):
    """Input, weight, bias and gradient of a generator's last layer with stride 1."""
    pad = kernel // 2
    shapes = (batch, channels, 9, 7), (3, channels, kernel, kernel), (3,), (batch, 3, 9, 7)
    geometry = Geometry((1, 1), (pad, pad), (1, 1), 1, False, (0, 0))
    return *tensors(shapes, dtype, layout), geometry


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_a_convolution_that_writes_a_picture_is_one_turned_round(layout, dtype):
    if compiled.cpu_version() == "portable":
        pytest.skip("nothing was measured in portable code")
    turned = "image edge, turned round (C++)"
    x, w, b, g, same = writing_a_picture(dtype, layout)
    assert chosen(CONV, "forward", x, w, b, "tanh", same) == turned
    assert chosen(CONV, "forward", x, w, b, 0.2, same) == turned
    assert chosen(CONV, "input_gradient", g, w, (9, 7), same) == turned
    assert chosen(CONV, "weight_gradient", x, g, w, same) == turned
    down = same._replace(stride=(2, 2))
    assert chosen(CONV, "forward", x, w, b, 0.2, down) == "plain PyTorch"
    # An input gradient of many channels is oneDNN's in bfloat16, where it is fast.
    x, w, b, g, same = writing_a_picture(dtype, layout, channels=64)
    left = dtype == torch.bfloat16 and layout == torch.channels_last
    expected = "plain PyTorch" if left else turned
    assert chosen(CONV, "input_gradient", g, w, (9, 7), same) == expected


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize(("kernel", "channels"), [(1, 24), (3, 24), (3, 80), (7, 17)])
def test_a_convolution_that_writes_a_picture_is_as_accurate(kernel, channels, layout, dtype):
    x, w, b, _, same = writing_a_picture(dtype, layout, kernel=kernel, channels=channels)
    assert_as_accurate_as_torch(
        partial(fastgen.ops.conv2d_bias_leaky_relu, padding=same.padding, negative_slope=1),
        partial(reference.conv2d_bias_leaky_relu, padding=same.padding, negative_slope=1),
        [x, w, b],
    )
