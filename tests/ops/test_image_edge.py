"""The image-edge operators as passes, over a stand-in for the compiled ones."""

from __future__ import annotations

from functools import partial

import operators
import pytest
import torch
from convolution_cases import LAYOUTS, SLOPES, tensors
from torch.autograd import gradcheck, gradgradcheck

import fastgen
from fastgen.ops import backend, image_edge, reference, routing, torch_convolution
from fastgen.ops.geometry import Geometry
from fastgen.ops.layouts import same_order
from fastgen.ops.torch_bias_leaky_relu import TorchMask

CONV, UP = "conv2d_bias_leaky_relu", "conv_transpose2d_bias_leaky_relu"

# (picture channels, other channels, height, width, kernel, stride, padding)
EDGES = (
    (3, 5, 9, 7, (4, 4), (2, 2), (1, 1)),
    (1, 6, 8, 8, (4, 4), (2, 2), (1, 1)),
    (4, 3, 5, 6, (3, 3), (1, 1), (1, 1)),
    (2, 7, 11, 4, (5, 2), (3, 1), (2, 0)),
    (3, 4, 4, 4, (1, 1), (1, 1), (0, 0)),
)
USED: set[str] = set()


@pytest.fixture(autouse=True)
def stand_in(monkeypatch):
    """Backend "cpp" by the stand-in where it takes the call, by plain PyTorch elsewhere."""
    monkeypatch.setattr(image_edge, "operators", lambda: operators)
    monkeypatch.setattr(routing, "CANDIDATES", {})
    entry = backend.BACKENDS["cpp"]
    there = backend.Backend("cpp", entry.summary, entry.device_types, lambda: None)
    monkeypatch.setitem(backend.BACKENDS, "cpp", there)
    for operation in (CONV, UP):
        monkeypatch.setitem(
            backend.KERNELS, (operation, "cpp"), routing.ROUTERS[operation](operation, ["cpp"])
        )
    USED.clear()

    def counted(pass_, run):
        def counting(*arguments):
            USED.add(pass_)
            return run(*arguments)

        return counting

    for pass_ in ("forward", "masked_forward", "input_gradient", "weight_gradient"):
        routing.offer(
            "stand-in",
            ["cpp"],
            [CONV, UP],
            [pass_],
            counted(pass_, getattr(image_edge, pass_)),
            fits=getattr(image_edge, f"takes_{pass_}"),
        )
    plain = {**torch_convolution.PASSES, "mask": TorchMask.mask, "mask_sum": TorchMask.mask_sum}
    for pass_ in routing.PASSES[CONV]:
        routing.offer("plain", ["cpp"], [CONV, UP], [pass_], plain[pass_])


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("slope", SLOPES)
@pytest.mark.parametrize("edge", EDGES)
@pytest.mark.parametrize("name", [CONV, UP])
def test_layers_with_a_picture_through_the_second_order(name, edge, slope, layout):
    picture, other, height, width, kernel, stride, padding = edge
    low = [(n + 2 * p - k) // s + 1 for n, k, s, p in zip((height, width), kernel, stride, padding)]  # noqa: B905
    size = (height, width) if name == CONV else low
    shapes = ((2, picture if name == CONV else other, *size), (other, picture, *kernel))
    bias = other if name == CONV else picture
    x, w, b = (t.requires_grad_() for t in tensors((*shapes, (bias,)), torch.float64, layout))
    options = {"stride": stride, "padding": padding, "negative_slope": slope}
    operation = partial(getattr(fastgen.ops, name), **options, backend="cpp")
    output = operation(x, w, b)
    exact = getattr(reference, name)(x, w, b, **options)
    torch.testing.assert_close(output, exact)
    assert same_order(output, exact)  # a single channel counts as contiguous, as in PyTorch
    grad = torch.randn_like(exact)  # in its layout, as gradcheck's are not
    gradients = [torch.autograd.grad(y, (x, w, b), grad) for y in (output, exact)]
    torch.testing.assert_close(*gradients)
    assert gradcheck(operation, (x, w, b), fast_mode=True)
    assert gradgradcheck(operation, (x, w, b), fast_mode=True)
    # gradgradcheck's tangents are contiguous; beside a 1x1 weight, which has either layout, their
    # convolution is then no twin of a channels_last output.
    if name == CONV and slope != 1 and kernel != (1, 1):
        assert "masked_forward" in USED
    assert {"forward", "input_gradient"} <= USED
    if layout is torch.channels_last and picture > 1:  # beside one channel, a map is contiguous
        assert "weight_gradient" in USED


def test_a_generators_end():
    x, w, b = tensors(((2, 5, 4, 6), (5, 3, 4, 4), (3,)), torch.float64, torch.channels_last)
    leaves = [t.requires_grad_() for t in (x, w, b)]
    operation = partial(fastgen.ops.conv_transpose2d_bias_leaky_relu, stride=2, padding=1)
    ended = partial(operation, tanh=True, backend="cpp")
    torch.testing.assert_close(ended(*leaves), operation(*leaves, negative_slope=1).tanh())
    assert gradcheck(ended, leaves, fast_mode=True)
    assert gradgradcheck(ended, leaves, fast_mode=True)
    assert "forward" in USED


@pytest.mark.parametrize(
    "change",
    [
        {"picture": 5},
        {"kernel": 8},
        {"stride": 5},
        {"padding": 4},
        {"groups": 3},
        {"dilation": 2},
        {"batch": 0},
    ],
    ids=str,
)
def test_other_layers_are_left_to_other_kernels(change):
    layer = {"picture": 3, "kernel": 4, "stride": 2, "padding": 1, "groups": 1, "dilation": 1}
    layer |= {"batch": 2} | change
    pairs = {name: (layer[name],) * 2 for name in ("stride", "padding", "dilation")}
    w = torch.randn(6, layer["picture"] // layer["groups"], *[layer["kernel"]] * 2)
    x = torch.randn(layer["batch"], layer["picture"], 16, 16)
    geometry = Geometry(**pairs, groups=layer["groups"], transposed=False, output_padding=(0, 0))
    grad = torch.randn(layer["batch"], 6, 7, 7)
    assert not image_edge.takes_forward(x, w, None, 0.2, geometry)
    assert not image_edge.takes_input_gradient(grad, w, (16, 16), geometry)
    map = grad.bfloat16().contiguous(memory_format=torch.channels_last)
    assert not image_edge.takes_weight_gradient(x.bfloat16(), map, w.bfloat16(), geometry)


def test_a_weight_gradient_wants_channels_last_and_tensor_cores(monkeypatch):
    x, w, grad = torch.randn(2, 3, 16, 16), torch.randn(6, 3, 4, 4), torch.randn(2, 6, 8, 8)
    down = Geometry((2, 2), (1, 1), (1, 1), 1, False, (0, 0))
    up = down._replace(transposed=True)
    last = grad.contiguous(memory_format=torch.channels_last)
    monkeypatch.setattr(image_edge, "allow_tf32", lambda: True)
    assert image_edge.takes_weight_gradient(x, last, w, down)
    assert image_edge.takes_weight_gradient(last, x, w, up)
    assert not image_edge.takes_weight_gradient(x, grad, w, down)
    # Rows of an output padding of a stride, at which no pixel of the map looks.
    assert not image_edge.takes_weight_gradient(last, torch.randn(2, 3, 18, 16), w, up)
    monkeypatch.setattr(image_edge, "allow_tf32", lambda: False)
    assert not image_edge.takes_weight_gradient(x, last, w, down)
    assert image_edge.takes_weight_gradient(x.bfloat16(), last.bfloat16(), w.bfloat16(), down)


def test_what_32_bits_or_shared_memory_cannot_hold_is_left():
    geometry = Geometry((1, 1), (1, 1), (1, 1), 1, False, (0, 0))
    one = torch.empty(1)
    w = one.expand(64, 3, 3, 3)
    assert image_edge.takes_convolution(one.expand(9, 3, 5000, 5000), w, geometry)
    assert not image_edge.takes_convolution(one.expand(9, 3, 6000, 6000), w, geometry)
    wide = torch.empty(2, 1024, 4, 4)
    w = torch.empty(1024, 3, 4, 4)
    assert not image_edge.takes_transposed(wide, w, (8, 8), geometry)
    assert image_edge.takes_transposed(wide[:, :128].contiguous(), w[:128], (8, 8), geometry)
