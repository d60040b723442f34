"""Random shapes, geometries, dtypes and memory: every backend of this CPU against float64.

The accuracy rule (accuracy.py) through the second order. Operands come dense in either layout,
shifted within their memory, with gaps, transposed, expanded, and as overlapping windows.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from math import prod

import pytest
import torch
from accuracy import assert_as_accurate_as_torch, derivatives, exact_reparameterize_kl
from convolution_cases import LAYOUTS, SLOPES, geometries, tensors
from cpu_backends import BACKENDS
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import fastgen
from fastgen.ops import reference

DTYPES = st.sampled_from([torch.float32, torch.bfloat16, torch.float64])
CONV, UP = "conv2d_bias_leaky_relu", "conv_transpose2d_bias_leaky_relu"


def _offset(tensor: Tensor) -> Tensor:
    return torch.cat((tensor.new_zeros(3), tensor.flatten()))[3:].view(tensor.shape)


def _gapped(tensor: Tensor) -> Tensor:
    return torch.stack((tensor, torch.full_like(tensor, torch.nan)), -1)[..., 0]


def _transposed(tensor: Tensor) -> Tensor:
    return tensor.transpose(0, -1).contiguous().transpose(0, -1)


def _expanded(tensor: Tensor) -> Tensor:
    return tensor[:1].expand_as(tensor)


def _windows(tensor: Tensor) -> Tensor:
    """Each element of memory is several elements of the tensor."""
    strides = [2, 1, 3, 1][-tensor.dim() :]
    reach = 1 + sum((n - 1) * s for n, s in zip(tensor.shape, strides, strict=True))
    flat = tensor.flatten()
    repeats = -(-reach // max(1, flat.numel()))
    return torch.cat([flat] * max(1, repeats)).as_strided(tensor.shape, strides)


MEMORY: dict[str, Callable[[Tensor], Tensor]] = {
    "dense": lambda tensor: tensor,
    "offset": _offset,
    "gapped": _gapped,
    "transposed": _transposed,
    "expanded": _expanded,
    "windows": _windows,
}


def memories(count: int) -> st.SearchStrategy[list[str]]:
    return st.lists(st.sampled_from(list(MEMORY)), min_size=count, max_size=count)


def placed(function: Callable[..., Tensor], kinds: list[str]) -> Callable[..., Tensor]:
    """The function of operands that lie in memory as asked; they are dense where they are empty."""

    def run(*operands: Tensor) -> Tensor:
        return function(
            *(
                MEMORY[kind](operand) if operand.numel() else operand
                for operand, kind in zip(operands, kinds, strict=True)
            )
        )

    return run


def check(name: str, operands: list[Tensor], kinds: list[str], backend: str, **options) -> None:
    ours = placed(partial(getattr(fastgen.ops, name), **options, backend=backend), kinds)
    theirs = placed(partial(getattr(reference, name), **options), kinds)
    if operands[0].dtype != torch.float64:
        assert_as_accurate_as_torch(ours, theirs, operands)
        return
    for result, truth in zip(derivatives(ours, operands), derivatives(theirs, operands)):  # noqa: B905
        torch.testing.assert_close(result, truth, rtol=1e-9, atol=1e-9 * (1 + _largest(truth)))


def _largest(tensor: Tensor) -> float:
    return float(tensor.abs().max()) if tensor.numel() else 0.0


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", [CONV, UP])
@settings(max_examples=120, deadline=None, derandomize=True)
@given(data=st.data(), dtype=DTYPES, kinds=memories(3), seed=st.integers(0, 1000))
def test_convolutions(name, backend, data, dtype, kinds, seed):
    geometry = data.draw(geometries(transposed=name == UP))
    layouts = data.draw(st.lists(st.sampled_from(list(LAYOUTS.values())), min_size=2, max_size=2))
    x, w, b = tensors(geometry["shapes"], dtype, torch.contiguous_format, seed)
    x, w = (t.contiguous(memory_format=m) for t, m in zip((x, w), layouts, strict=True))
    check(name, [x, w, b], kinds, backend, **geometry["options"])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", [CONV, UP])
@settings(max_examples=80, deadline=None, derandomize=True)
@given(data=st.data(), dtype=DTYPES, kinds=memories(3), seed=st.integers(0, 1000))
def test_layers_with_a_picture_on_one_side(name, backend, data, dtype, kinds, seed):
    """Wider than the geometries above: the kernels for image edges work in vectors of channels."""
    picture = data.draw(st.integers(1, 4))
    other = data.draw(st.sampled_from([1, 5, 16, 33, 64]))
    kernel = data.draw(st.tuples(st.integers(1, 7), st.integers(1, 7)))
    stride = data.draw(st.integers(1, 3))
    padding = tuple(data.draw(st.integers(0, k - 1)) for k in kernel)
    low = data.draw(st.tuples(st.integers(1, 9), st.integers(1, 19)))
    high = [
        (n - 1) * stride + k - 2 * p + data.draw(st.integers(0, stride - 1))
        for n, k, p in zip(low, kernel, padding, strict=True)
    ]
    if min(high) < 1 or (name == UP and any((n - 1) * stride - 2 * p + k < 1
                                            for n, k, p in zip(low, kernel, padding))):  # noqa: B905  # fmt: skip
        return
    batch = data.draw(st.integers(0, 3))
    size, inner = (high, picture) if name == CONV else (low, other)
    shapes = ((batch, inner, *size), (other, picture, *kernel), (picture + other - inner,))
    layout = data.draw(st.sampled_from(list(LAYOUTS.values())))
    options = {"stride": stride, "padding": padding}
    options["negative_slope"] = data.draw(st.sampled_from(SLOPES))
    check(name, tensors(shapes, dtype, layout, seed), kinds, backend, **options)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", [CONV, UP])
@settings(max_examples=60, deadline=None, derandomize=True)
@given(data=st.data(), dtype=DTYPES, kinds=memories(3), seed=st.integers(0, 1000))
def test_wide_layers(name, backend, data, dtype, kinds, seed):
    """Of the kernels and numbers of channels that Winograd's method is there for."""
    kernel, stride = data.draw(st.sampled_from([(3, 1), (4, 2)]))
    inner, outer = data.draw(st.tuples(*[st.sampled_from([16, 32, 48])] * 2))
    padding = data.draw(st.tuples(*[st.integers(0, kernel - 1)] * 2))
    low = data.draw(st.tuples(*[st.integers(1, 7)] * 2))
    high = [
        (n - 1) * stride + kernel - 2 * p + data.draw(st.integers(0, stride - 1))
        for n, p in zip(low, padding, strict=True)
    ]
    if min(high) < 1 or (name == UP and min(high) < stride):
        return
    batch = data.draw(st.integers(0, 3))
    options = {"stride": stride, "padding": padding}
    options["negative_slope"] = data.draw(st.sampled_from(SLOPES))
    weight = (outer, inner) if name == CONV else (inner, outer)
    if name == UP:
        options["output_padding"] = tuple(
            n - ((m - 1) * stride - 2 * p + kernel)
            for n, m, p in zip(high, low, padding, strict=True)
        )
        if any((m - 1) * stride - 2 * p + kernel < 1 for m, p in zip(low, padding)):  # noqa: B905
            return
    shapes = (
        (batch, inner, *(high if name == CONV else low)), (*weight, kernel, kernel), (outer,)
    )  # fmt: skip
    layout = data.draw(st.sampled_from([torch.contiguous_format, torch.channels_last]))
    x, w, b = tensors(shapes, dtype, torch.channels_last, seed)
    operands = [x, w.contiguous(memory_format=layout) / 8, b]
    check(name, operands, kinds, backend, **options)


@pytest.mark.parametrize("backend", BACKENDS)
@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    shape=st.lists(st.sampled_from([0, 1, 2, 3, 5, 16, 17, 33]), min_size=2, max_size=4),
    dtype=DTYPES,
    kinds=memories(2),
    slope=st.sampled_from(SLOPES),
    seed=st.integers(0, 1000),
)
def test_bias_leaky_relu(backend, shape, dtype, kinds, slope, seed):
    operands = tensors((tuple(shape), (shape[1],)), dtype, torch.channels_last, seed)
    check("bias_leaky_relu", operands, kinds, backend, negative_slope=slope)


@pytest.mark.parametrize("backend", BACKENDS)
@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    # Beyond this the integers of PyTorch's Philox take minutes.
    shape=st.lists(st.sampled_from([0, 1, 2, 3, 5, 16, 17, 130]), min_size=1, max_size=4).filter(
        lambda shape: prod(shape) <= 50_000
    ),
    dtype=DTYPES,
    kinds=memories(2),
    word=st.integers(-(2**63), 2**63 - 1),
    seed=st.integers(0, 1000),
)
def test_reparameterize_kl(backend, shape, dtype, kinds, word, seed):
    operands = tensors((tuple(shape),) * 2, dtype, torch.contiguous_format, seed)

    def scalar_of(operation: Callable[..., tuple[Tensor, Tensor]]) -> Callable[..., Tensor]:
        def run(mu: Tensor, logvar: Tensor) -> Tensor:
            z, kl = operation(mu, logvar, seed=torch.tensor(word))
            # Both results, as one tensor; a mean, so that neither drowns the other.
            return z + (kl / max(1, prod(shape[1:]))).view(-1, *[1] * (z.dim() - 1)).to(z.dtype)

        return placed(run, kinds)

    ours = scalar_of(partial(fastgen.ops.reparameterize_kl, backend=backend))
    theirs = scalar_of(exact_reparameterize_kl)
    if dtype != torch.float64:
        assert_as_accurate_as_torch(ours, theirs, operands)
        return
    for result, truth in zip(derivatives(ours, operands), derivatives(theirs, operands)):  # noqa: B905
        # The noise is made in float32 from the same integers.
        torch.testing.assert_close(result, truth, rtol=1e-5, atol=1e-5 * (1 + _largest(truth)))
