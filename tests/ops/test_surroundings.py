"""Gradients are the same whatever is on around the backward that computes them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fastgen.nn import (
    BiasLeakyReLU,
    ConvLeakyReLU2d,
    ConvTransposeLeakyReLU2d,
    LinearLeakyReLU,
)
from fastgen.ops import reparameterize_kl

LAYERS = [
    pytest.param(lambda: ConvLeakyReLU2d(3, 16, 3, padding=1), (2, 3, 8, 8), id="picture"),
    pytest.param(lambda: ConvLeakyReLU2d(64, 4, 4), (8, 64, 4, 4), id="product"),
    pytest.param(
        lambda: ConvLeakyReLU2d(64, 64, 5, stride=2, padding=2), (4, 64, 8, 8), id="small map"
    ),
    pytest.param(
        lambda: ConvLeakyReLU2d(32, 32, 3, padding=1, negative_slope=1), (2, 32, 8, 8), id="linear"
    ),
    pytest.param(lambda: ConvTransposeLeakyReLU2d(64, 16, 4), (8, 64, 1, 1), id="from a pixel"),
    pytest.param(
        lambda: ConvTransposeLeakyReLU2d(8, 3, 4, stride=2, padding=1, tanh=True),
        (2, 8, 4, 4),
        id="tanh",
    ),
    pytest.param(lambda: BiasLeakyReLU(5), (2, 5, 4, 4), id="activation"),
]


def given(shape: tuple[int, ...], layout: torch.memory_format) -> torch.Tensor:
    return torch.randn(shape).to(memory_format=layout).requires_grad_()


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(("layer", "shape"), LAYERS)
def test_autocast_around_a_backward_leaves_its_precision_alone(layer, shape, layout):
    module, x = layer(), given(shape, layout)
    wanted = [x, *module.parameters()]

    def gradients(*, cast: bool) -> list[torch.Tensor]:
        y = module(x)
        weights = torch.linspace(-1, 1, y.numel()).view(y.shape)
        with torch.autocast("cpu", torch.bfloat16, enabled=cast):
            first = torch.autograd.grad(y, wanted, weights, create_graph=True)
            assert torch.is_autocast_enabled("cpu") == cast
            second = torch.autograd.grad(first[0].square().sum(), wanted, allow_unused=True)
        return [*first, *(g for g in second if g is not None)]

    for ours, expected in zip(gradients(cast=True), gradients(cast=False), strict=True):
        assert torch.equal(ours, expected)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(("layer", "shape"), LAYERS)
def test_a_recording_of_torch_jit_trace_is_the_layer_for_every_batch(layer, shape, layout):
    module = layer()
    recorded = torch.jit.trace(module, given(shape, layout))
    x = given((shape[0] + 1, *shape[1:]), layout)
    weights = torch.linspace(-1, 1, module(x).numel())
    (ours, theirs) = [
        [y, *torch.autograd.grad((y.flatten() * weights).sum(), [x, *module.parameters()])]
        for y in (recorded(x), module(x))
    ]
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_a_recording_of_torch_jit_trace_draws_the_same_noise():
    given, other = (torch.randn(2, n, 4).unbind() for n in (3, 5))
    for work in (lambda *pair: reparameterize_kl(*pair, seed=7), reparameterize_kl):
        recorded, results = torch.jit.trace(work, given, check_trace=False), []
        for each in (recorded, work):
            torch.manual_seed(0)
            results.append(each(*other))
        torch.testing.assert_close(*results, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("create_graph", [False, True])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(("layer", "shape"), LAYERS)
def test_a_batch_of_gradients_is_each_by_itself(layer, shape, layout, create_graph):
    module, x = layer(), given(shape, layout)
    wanted, y = [x, *module.parameters()], module(x)
    grads = torch.randn(3, *y.shape)
    batch = torch.autograd.grad(
        y, wanted, grads, is_grads_batched=True, retain_graph=True, create_graph=create_graph
    )
    assert all(g.requires_grad == create_graph for g in batch[:1])
    for row, grad in enumerate(grads):
        one = torch.autograd.grad(y, wanted, grad, retain_graph=True)
        for ours, expected in zip(batch, one, strict=True):
            torch.testing.assert_close(ours[row], expected, rtol=1e-4, atol=1e-5)


def test_vectorized_jacobians_and_hessians_are_those_of_one_row_at_a_time():
    module = nn.Sequential(
        ConvLeakyReLU2d(2, 16, 3), ConvLeakyReLU2d(16, 4, 4), nn.Flatten(), LinearLeakyReLU(4, 2)
    ).double()
    x = torch.randn(2, 2, 6, 6, dtype=torch.float64)

    def loss(x: torch.Tensor) -> torch.Tensor:
        z, kl = reparameterize_kl(module(x), module(x) / 2, seed=1)
        return z.square().sum() + kl.sum()

    for function in (torch.autograd.functional.jacobian, torch.autograd.functional.hessian):
        rows, batch = function(loss, x), function(loss, x, vectorize=True)
        torch.testing.assert_close(batch, rows)
        assert rows.abs().max() > 0
