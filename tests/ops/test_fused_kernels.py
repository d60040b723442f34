"""The adapters between autograd and the compiled operators, over a stand-in for those operators.

It holds them to what they promise: operands in one memory order, right results through the second
order for every layout that arrives.
"""

from __future__ import annotations

from functools import partial

import operators
import pytest
import torch
from convolution_cases import GEOMETRIES, LAYOUTS, SLOPES, tensors
from torch.autograd import gradcheck, gradgradcheck

import fastgen
from fastgen.ops import backend, fused_kernels, reference, routing

DTYPES = (*fused_kernels.DTYPES, torch.float64)


@pytest.fixture(autouse=True)
def stand_in(monkeypatch):
    """Backend "cpp" by the stand-in operators, in float64 too."""
    monkeypatch.setattr(routing, "CANDIDATES", {})
    offer(DTYPES, monkeypatch)


def offer(dtypes, monkeypatch):
    routing.CANDIDATES.clear()
    entry = backend.BACKENDS["cpp"]
    monkeypatch.setitem(
        backend.BACKENDS,
        "cpp",
        backend.Backend("cpp", entry.summary, entry.device_types, lambda: None),
    )
    for operation, router in routing.ROUTERS.items():
        monkeypatch.setitem(backend.KERNELS, (operation, "cpp"), router(operation, ["cpp"]))
    fused_kernels.offer_fused(
        fused_kernels.FusedKernels(lambda: operators),
        "stand-in",
        ["cpp"],
        also_plain=("input_gradient", "weight_gradient"),
        dtypes=dtypes,
    )


def check(function, leaves):
    leaves = [leaf.requires_grad_() for leaf in leaves]
    assert gradcheck(function, leaves, fast_mode=True)
    assert gradgradcheck(function, leaves, fast_mode=True)


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("slope", SLOPES)
@pytest.mark.parametrize("transposed", [False, True], ids=["conv", "transposed"])
@pytest.mark.parametrize("geometry", [GEOMETRIES[0], GEOMETRIES[2], GEOMETRIES[4]])
def test_convolutions_through_the_second_order(geometry, transposed, slope, layout):
    inner, outer, height, width, kernel, stride, padding, dilation, groups = geometry
    weight = (inner, outer // groups) if transposed else (outer, inner // groups)
    shapes = ((2, inner, height, width), (*weight, kernel, kernel), (outer,))
    x, w, b = tensors(shapes, torch.float64, layout)
    options = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    name = "conv_transpose2d_bias_leaky_relu" if transposed else "conv2d_bias_leaky_relu"
    operation = partial(getattr(fastgen.ops, name), negative_slope=slope, **options)
    exact = partial(getattr(reference, name), negative_slope=slope, **options)
    output = operation(x, w, b, backend="cpp")
    torch.testing.assert_close(output, exact(x, w, b))
    assert output.is_contiguous(memory_format=layout)
    check(partial(operation, backend="cpp"), [x, w, b])
    check(lambda x, w: operation(x, w, None, backend="cpp"), [x, w])


def test_tanh_and_empty_batches():
    x, w, b = tensors(((2, 4, 5, 5), (4, 3, 4, 4), (3,)), torch.float64, torch.channels_last)
    transposed = partial(
        fastgen.ops.conv_transpose2d_bias_leaky_relu, stride=2, padding=1, backend="cpp"
    )
    check(partial(transposed, tanh=True), [x, w, b])
    assert transposed(x[:0], w, b).shape == (0, 3, 10, 10)


LAYOUTS_OF_ANY = {
    "contiguous": lambda t: t,
    "channels_last": lambda t: t.contiguous(memory_format=torch.channels_last),
    "permuted": lambda t: t.transpose(0, 3).contiguous().transpose(0, 3),
    "strided": lambda t: torch.stack((t, t), -1)[..., 0],
    "chunk": lambda t: torch.cat((t, t), 1).chunk(2, 1)[0],
    "expanded": lambda t: t[:1].expand_as(t),
}


@pytest.mark.parametrize("layout", LAYOUTS_OF_ANY.values(), ids=LAYOUTS_OF_ANY)
@pytest.mark.parametrize("slope", SLOPES)
def test_bias_leaky_relu_takes_every_layout(slope, layout):
    x = layout(torch.randn(3, 4, 5, 6, dtype=torch.float64))
    b = torch.randn(8, dtype=torch.float64)[::2]
    operation = partial(fastgen.ops.bias_leaky_relu, negative_slope=slope, backend="cpp")
    output = operation(x, b)
    torch.testing.assert_close(output, reference.bias_leaky_relu(x, b, slope))
    assert output.stride() == torch.empty_like(x).stride()
    leaves = [torch.randn(3, 4, 5, 6, dtype=torch.float64), b.clone()]
    check(lambda x, b: operation(layout(x), b), leaves)
    grad = torch.randn(6, 5, 4, 3, dtype=torch.float64).permute(3, 2, 1, 0)  # another layout
    x, b = x.detach().clone().requires_grad_(), b.clone().requires_grad_()
    ours = torch.autograd.grad(operation(x, b), (x, b), grad)
    theirs = torch.autograd.grad(reference.bias_leaky_relu(x, b, slope), (x, b), grad)
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("shape", [(7,), (3, 4), (2, 3, 4), (2, 3, 2, 2, 2)])
def test_bias_leaky_relu_takes_any_number_of_dimensions(shape):
    x = torch.randn(shape, dtype=torch.float64)
    if len(shape) > 1:
        check(
            partial(fastgen.ops.bias_leaky_relu, backend="cpp"),
            [x, torch.randn(shape[1], dtype=torch.float64)],
        )
    check(lambda x: fastgen.ops.bias_leaky_relu(x, backend="cpp"), [x.detach()])


@pytest.mark.parametrize("first", LAYOUTS_OF_ANY.values(), ids=LAYOUTS_OF_ANY)
@pytest.mark.parametrize("second", LAYOUTS_OF_ANY.values(), ids=LAYOUTS_OF_ANY)
def test_reparameterize_kl_takes_every_pair_of_layouts(first, second):
    mu = first(torch.randn(3, 2, 4, 5, dtype=torch.float64))
    logvar = second(torch.randn(3, 2, 4, 5, dtype=torch.float64))
    seed = torch.tensor(7)
    ours = fastgen.ops.reparameterize_kl(mu, logvar, seed=seed, backend="cpp")
    torch.testing.assert_close(ours, reference.reparameterize_kl(mu, logvar, seed=seed))

    leaves = [mu.detach().clone().requires_grad_(), logvar.detach().clone().requires_grad_()]
    moved = [first(leaves[0]), second(leaves[1])]
    grad = first(torch.randn(3, 2, 4, 5, dtype=torch.float64))
    results = []
    for function in (
        partial(fastgen.ops.reparameterize_kl, backend="cpp"),
        reference.reparameterize_kl,
    ):
        z, kl = function(*moved, seed=seed)
        results.append(
            torch.autograd.grad(
                (z, kl), leaves, (grad, torch.arange(3.0, dtype=torch.float64)), retain_graph=True
            )
        )
    torch.testing.assert_close(*results)


def test_reparameterization_through_the_second_order():
    mu, logvar = torch.randn(2, 3, 5, dtype=torch.float64).unbind()
    check(partial(fastgen.ops.reparameterize, seed=3, backend="cpp"), [mu, logvar])
    check(partial(fastgen.ops.reparameterize_kl, seed=3, backend="cpp"), [mu, logvar])


def test_what_the_operators_cannot_take_is_refused_by_name(monkeypatch):
    offer(fused_kernels.DTYPES, monkeypatch)
    with pytest.raises(fastgen.BackendUnavailable, match=r"float64.*use backend='torch'"):
        fastgen.ops.bias_leaky_relu(torch.randn(2, 3, dtype=torch.float64), backend="cpp")
