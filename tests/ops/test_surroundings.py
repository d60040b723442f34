"""Gradients are the same whatever is on around the backward that computes them."""

from __future__ import annotations

from contextlib import contextmanager
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd import forward_ad
from torch.utils.checkpoint import checkpoint

from fastgen import ops
from fastgen.nn import (
    BiasLeakyReLU,
    ConvLeakyReLU2d,
    ConvTransposeLeakyReLU2d,
    LinearLeakyReLU,
)
from fastgen.ops import compiled, reparameterize_kl

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


# Kernels that reach their result by a view: of a matrix product, of phases put side by side, of
# patches, of more rows than there are.
VIEWS = [
    pytest.param("conv2d", (8, 64, 4, 4), (16, 64, 4, 4), {}, id="kernel as large as the picture"),
    pytest.param("conv2d", (64, 64, 1, 1), (64, 64, 1, 1), {}, id="one pixel"),
    pytest.param("conv2d", (8, 128, 8, 8), (64, 128, 5, 5), {"stride": 2}, id="small map"),
    pytest.param("conv2d", (8, 3, 32, 32), (32, 3, 4, 4), {"stride": 2, "padding": 1}, id="edge"),
    pytest.param("conv2d", (4, 1, 5, 5), (3, 1, 4, 4), {"stride": (1, 2)}, id="one column"),
    pytest.param("conv_transpose2d", (8, 64, 1, 1), (64, 16, 4, 4), {}, id="from a pixel"),
    pytest.param(
        "conv_transpose2d", (8, 32, 16, 16), (32, 3, 4, 4), {"stride": 2, "padding": 1}, id="phases"
    ),
    pytest.param(
        "conv_transpose2d",
        (2, 8, 5, 5),
        (8, 4, 3, 3),
        {"stride": 2, "dilation": 3, "output_padding": 2},
        id="rows that no input has",
    ),
]


@pytest.mark.parametrize("backend", ["auto", "torch"])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(("name", "shape", "weight_shape", "options"), VIEWS)
def test_results_and_gradients_may_be_written_to_in_place(
    name, shape, weight_shape, options, layout, backend
):
    ours, theirs = getattr(ops, f"{name}_bias_leaky_relu"), getattr(F, name)
    x, weight = given(shape, layout), given(weight_shape, layout)

    def written(run, x: torch.Tensor, weight: torch.Tensor) -> list[torch.Tensor]:
        with torch.no_grad():
            frozen = run(x, weight)
        frozen += weight.sum()
        y = run(x, weight)
        y *= 2
        first = torch.autograd.grad((y * y).sum(), [x, weight], create_graph=True)
        for gradient in first:
            gradient /= gradient.detach().abs().max()
        loss = sum(gradient.square().sum() for gradient in first) + frozen.square().mean()
        return [frozen, y, *first, *torch.autograd.grad(loss, [x, weight])]

    def run(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return ours(x, weight, **options, negative_slope=1, backend=backend)

    found = written(run, x, weight)
    exact = (t.detach().double().contiguous().requires_grad_() for t in (x, weight))
    expected = written(lambda x, weight: theirs(x, weight, **options), *exact)
    for result, truth in zip(found, expected, strict=True):
        scale = truth.detach().abs().max().item()
        torch.testing.assert_close(result.double(), truth, rtol=1e-3, atol=1e-4 * scale)


@contextmanager
def deterministic():
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


AROUND = {
    "anomaly mode": torch.autograd.detect_anomaly,
    "saved elsewhere": partial(
        torch.autograd.graph.saved_tensors_hooks,
        lambda tensor: tensor.detach().numpy().copy(),
        torch.from_numpy,
    ),
    "saved on the CPU": torch.autograd.graph.save_on_cpu,
    "what is saved may change": torch.autograd.graph.allow_mutation_on_saved_tensors,
    "deterministic": deterministic,
    "a level of forward mode": torch.autograd.forward_ad.dual_level,
}


@pytest.mark.filterwarnings("ignore:Anomaly Detection")
@pytest.mark.parametrize("around", AROUND)
@pytest.mark.parametrize("batch", [2, 0])
@pytest.mark.parametrize(("layer", "shape"), LAYERS)
def test_two_orders_are_the_same_whatever_is_on_around_them(layer, shape, batch, around):
    module = layer().double()
    x = torch.randn(batch, *shape[1:], dtype=torch.float64, requires_grad=True)
    wanted = [x, *module.parameters()]

    def gradients() -> list[torch.Tensor | None]:
        first = torch.autograd.grad(module(x).pow(3).sum(), wanted, create_graph=True)
        penalty = sum(g.square().sum() for g in first)
        second = torch.autograd.grad(penalty, wanted, retain_graph=True)
        again = torch.autograd.grad(penalty, wanted)
        return [*first, *second, *again]

    expected = gradients()
    with AROUND[around]():
        found = gradients()
    for ours, truth in zip(found, expected, strict=True):
        assert torch.equal(ours, truth)


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize(("layer", "shape"), LAYERS)
def test_a_checkpoint_computes_the_same_gradients(layer, shape, reentrant):
    module, x = layer(), given(shape, torch.contiguous_format)
    wanted = [x, *module.parameters()]

    def gradients(run) -> list[torch.Tensor]:
        for each in wanted:
            each.grad = None
        y = run(x)
        if reentrant:  # it takes `backward` alone
            y.square().sum().backward()
            return [each.grad for each in wanted]
        first = torch.autograd.grad(y.square().sum(), wanted, create_graph=True)
        penalty = sum(g.square().sum() for g in first)
        return [*first, *torch.autograd.grad(penalty, wanted)]

    recomputed = gradients(partial(checkpoint, module, use_reentrant=reentrant))
    for ours, truth in zip(recomputed, gradients(module), strict=True):
        assert torch.equal(ours, truth)


def test_hooks_see_gradients_and_may_change_them():
    layers = [ConvLeakyReLU2d(3, 16, 3, padding=1), ConvLeakyReLU2d(16, 16, 4, 2, 1)]
    layers = [layer.double() for layer in layers]
    twins = [layer.to_torch() for layer in layers]
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)

    def gradients(chain) -> list[torch.Tensor]:
        seen, leaf = [], x.clone().requires_grad_()
        inner = chain[0](leaf)
        inner.retain_grad()
        inner.register_hook(lambda g: 2 * g)
        weights = [p for part in chain for p in part.parameters()]
        for weight in weights:  # which both chains share
            weight.grad = None
        handles = [p.register_hook(lambda g: seen.append(g) or 3 * g) for p in weights]
        (slope,) = torch.autograd.grad(chain[1](inner).pow(2).sum(), leaf, create_graph=True)
        (slope.square().sum() + inner.sum()).backward()
        for handle in handles:
            handle.remove()
        return [leaf.grad, inner.grad, *(p.grad for p in weights), *seen]

    for ours, truth in zip(gradients(layers), gradients(twins), strict=True):
        torch.testing.assert_close(ours, truth)


# --- transforms of torch.func inside of a compiled function ---


def _each_squared(result) -> torch.Tensor:
    return sum(each.square().sum() for each in (result if isinstance(result, tuple) else [result]))


TRANSFORMED = [
    pytest.param("bias_leaky_relu", [(2, 16, 4, 4), (16,)], {}, id="activation"),
    pytest.param("conv2d_bias_leaky_relu", [(2, 3, 8, 8), (16, 3, 3, 3), (16,)], {}, id="picture"),
    pytest.param(
        "conv2d_bias_leaky_relu", [(4, 32, 8, 8), (32, 32, 4, 4), (32,)], {"stride": 2}, id="wide"
    ),
    pytest.param(
        "conv_transpose2d_bias_leaky_relu",
        [(2, 16, 4, 4), (16, 3, 4, 4), (3,)],
        {"stride": 2, "tanh": True},
        id="tanh",
    ),
    pytest.param("reparameterize", [(3, 5), (3, 5)], {"seed": 1}, id="noise"),
    pytest.param("reparameterize_kl", [(3, 5), (3, 5)], {"seed": 1}, id="divergence"),
]


@pytest.mark.parametrize("transform", ["grad", "grad of grad", "jvp"])
@pytest.mark.parametrize(("name", "shapes", "options"), TRANSFORMED)
def test_a_compiled_transform_differentiates_the_operation(name, shapes, options, transform):
    torch.compiler.reset()
    tensors = tuple(torch.randn(shape) / max(1, len(shape) - 1) for shape in shapes)
    places = tuple(range(len(tensors)))

    def transformed(operation, options):
        def loss(*tensors):
            # What is computed from a tensor has another place in the compiler's eyes than itself.
            computed = [tensors[0] * 2, *tensors[1:]]
            return _each_squared(operation(*computed, **options))

        if transform == "jvp":
            return lambda *tensors: torch.func.jvp(loss, tensors, tensors)
        first = torch.func.grad(loss, places)
        if transform == "grad":
            return first
        return torch.func.grad(lambda *tensors: _each_squared(first(*tensors)), places)

    ours = torch.compile(
        transformed(getattr(ops, name), options), fullgraph=True, backend="aot_eager"
    )
    seeded = {
        key: torch.tensor(value) if key == "seed" else value for key, value in options.items()
    }
    theirs = transformed(getattr(ops.reference, name), seeded)
    for found, truth in zip(ours(*tensors), theirs(*tensors), strict=True):
        assert truth.abs().max() > 0
        scale = truth.abs().max().item()
        torch.testing.assert_close(found, truth, rtol=1e-4, atol=1e-4 * scale)


@pytest.mark.parametrize(("name", "shapes", "options"), TRANSFORMED)
def test_dual_numbers_inside_of_a_compiled_function_keep_their_tangents(name, shapes, options):
    torch.compiler.reset()
    tensors = [torch.randn(shape) / max(1, len(shape) - 1) for shape in shapes]

    def along(first, *others):
        with forward_ad.dual_level():
            dual = forward_ad.make_dual(first, first.cos())
            results = getattr(ops, name)(dual, *others, **options)
            results = results if isinstance(results, tuple) else (results,)
            return [tuple(forward_ad.unpack_dual(result)) for result in results]

    expected = along(*tensors)
    assert all(tangent.abs().max() > 0 for _, tangent in expected)
    found = torch.compile(along, backend="aot_eager")(*tensors)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        pytest.param(lambda: ConvLeakyReLU2d(3, 16, 4, 2, 1), (2, 3, 8, 8), id="convolution"),
        pytest.param(lambda: ConvTransposeLeakyReLU2d(16, 3, 4), (2, 16, 4, 4), id="transposed"),
        pytest.param(lambda: LinearLeakyReLU(8, 4), (3, 8), id="linear"),
    ],
)
def test_a_compiled_transform_differentiates_layers_whose_weights_are_trained(layer, shape):
    torch.compiler.reset()
    module, x = layer(), torch.randn(shape)

    def second(module):
        slope = torch.func.grad(lambda x: module(x).pow(3).sum())
        return torch.func.grad(lambda x: slope(x).pow(2).sum())

    found = torch.compile(second(module), fullgraph=True, backend="aot_eager")(x)
    torch.testing.assert_close(found, second(module.to_torch())(x), rtol=1e-4, atol=1e-4)


@pytest.mark.skipif(compiled.missing("cpu") is not None, reason="built without C++ kernels")
def test_a_compiled_transform_refuses_kernels_that_it_cannot_differentiate():
    torch.compiler.reset()
    transformed = torch.func.grad(
        lambda x: ops.bias_leaky_relu(x, None, backend="cpp").square().sum()
    )
    with pytest.raises(Exception, match="no kernel of backend 'cpp'"):
        torch.compile(transformed, fullgraph=True, backend="aot_eager")(torch.randn(2, 3, 4))
