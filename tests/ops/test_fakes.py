"""The compiled operators without data and without a GPU: schemas, fakes, tracing, export.

A CPU build of PyTorch has no autograd for CUDA tensors, not even for fake ones. So what needs
gradients is traced on fake CPU tensors, through the same adapters and the same operators.
"""

from __future__ import annotations

import operators
import pytest
import torch
from torch import nn
from torch._dynamo.backends.common import aot_autograd
from torch._subclasses.fake_tensor import FakeTensorMode

import fastgen
from fastgen.ops import backend, compiled, compiled_kernels, fakes, fused_kernels, routing

pytestmark = pytest.mark.skipif(
    not compiled.build_information().get("cuda"), reason="built without CUDA kernels"
)

X = torch.randn(3, 4, 5, 6)
LAST = X.contiguous(memory_format=torch.channels_last)
CHUNK = torch.randn(3, 8, 5, 6).chunk(2, 1)[0]
B = torch.randn(4)
MU = torch.randn(5, 7)
HALF = torch.randn(5, 14).chunk(2, 1)[0]
SEED = torch.tensor(3)
EDGE = torch.randn(7, 4, 3, 2)
SEVEN = torch.randn(3, 7, 5, 6)
LOW = torch.randn(3, 7, 3, 5).contiguous(memory_format=torch.channels_last)

CALLS = [
    ("bias_leaky_relu", (X, B, 0.2)),
    ("bias_leaky_relu", (LAST, None, 0.2)),
    ("leaky_relu_mask", (X, None, X, 0.2)),
    ("leaky_relu_mask", (LAST, B, LAST, 0.2)),
    ("leaky_relu_mask_sum", (X, None, X, 0.2)),
    ("leaky_relu_mask_sum", (LAST, None, LAST, 0.2)),
    ("leaky_relu_mask_sum", (MU, None, MU, 0.2)),
    ("reparameterize", (MU, MU, SEED)),
    ("reparameterize", (HALF, HALF, SEED)),
    ("reparameterize", (LAST, LAST, SEED)),
    ("reparameterize_kl", (MU, MU, SEED)),
    ("reparameterize_kl", (CHUNK, CHUNK, SEED)),
    ("reparameterize_backward", (MU, None, MU, MU, SEED)),
    ("reparameterize_backward", (None, torch.ones(3), X, X, SEED)),
    ("scaled_noise", (LAST, LAST, SEED)),
    ("image_edge_conv2d", (X, EDGE, B[:1].repeat(7), None, 0.2, 2, 1, 1, 0, False, True)),
    ("image_edge_conv2d", (LAST, EDGE, None, None, 1.0, 1, 2, 0, 2, True, False)),
    ("image_edge_conv2d_weight_gradient", (X, LOW, 3, 2, 2, 1, 1, 0, False, True)),
    ("image_edge_conv2d_weight_gradient", (LAST, LOW, 3, 2, 2, 1, 1, 0, True, True)),
    ("image_edge_conv_transpose2d", (SEVEN, EDGE, B, 0.2, False, 2, 2, 1, 1, 9, 11, False, True)),
    ("image_edge_conv_transpose2d", (SEVEN, EDGE, None, 1, True, 1, 3, 1, 0, 5, 18, True, True)),
]


CPU_ALONE = {  # a GPU has cuDNN's and Triton's
    "winograd_conv2d",
    "winograd_conv2d_weight_gradient",
    "winograd_conv_transpose2d",
}


def listed(results):
    return list(results) if isinstance(results, tuple) else [results]


@pytest.mark.parametrize(("name", "arguments"), CALLS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_fake_has_the_shape_dtype_and_layout_of_the_real_result(name, arguments, dtype):
    def cast(value):
        floats = isinstance(value, torch.Tensor) and value.is_floating_point()
        return value.to(dtype) if floats else value

    exact = listed(getattr(operators, name)(*map(cast, arguments)))
    given = [cast(value) for value in arguments]
    with FakeTensorMode():

        def on_cuda(value):
            if not isinstance(value, torch.Tensor):
                return value
            layout = (value.shape, value.stride())
            return torch.empty_strided(*layout, dtype=value.dtype, device="cuda")

        results = listed(getattr(torch.ops.fastgen, name)(*map(on_cuda, given)))
    assert len(results) == len(exact)
    for result, real in zip(results, exact, strict=True):
        assert result.device.type == "cuda"
        assert result.shape == real.shape
        if result.dim() > 1:
            assert result.dtype == dtype
            assert result.is_contiguous() or result.stride() == real.stride()
    if name == "reparameterize_kl":
        assert results[1].dtype == torch.float32


def test_every_operator_has_a_fake_and_a_cuda_kernel_and_no_autograd():
    cutlass = compiled.has_cutlass()
    fake = {f.__name__ for f in (*fakes.OPERATORS, *(fakes.CUTLASS_OPERATORS if cutlass else ()))}
    schemas = {
        schema.name.removeprefix("fastgen::"): schema
        for schema in torch._C._jit_get_all_schemas()
        if schema.name.startswith("fastgen::")
    }
    takes_tensors = {
        name
        for name, schema in schemas.items()
        if any("Tensor" in str(argument.type) for argument in schema.arguments)
    }
    assert fake == takes_tensors
    for name in fake:
        has = torch._C._dispatch_has_kernel_for_dispatch_key
        assert has(f"fastgen::{name}", "CUDA") or name in CPU_ALONE
        assert not has(f"fastgen::{name}", "Autograd")


@pytest.mark.skipif(not compiled.has_cutlass(), reason="built without CUTLASS")
def test_the_hopper_kernel_has_as_many_tiles_as_candidates():
    assert torch.ops.fastgen.hopper_conv2d_tiles() == compiled_kernels.TILES
    names = [c.name for c in routing.CANDIDATES["conv2d_bias_leaky_relu", "forward"]]
    assert sum("Hopper" in name for name in names) == compiled_kernels.TILES
    fits = torch.ops.fastgen.hopper_conv2d_fits
    assert fits(8, 64, 32, 32, 128, 4, 4, 2, 2, 1, 1, 1, 1)
    assert not fits(8, 3, 32, 32, 128, 4, 4, 2, 2, 1, 1, 1, 1)


@pytest.mark.skipif(not compiled.has_cutlass(), reason="built without CUTLASS")
def test_the_hopper_kernels_fake_has_the_shape_of_the_convolution():
    with FakeTensorMode():
        x = torch.empty(2, 16, 9, 12, dtype=torch.bfloat16, device="cuda")
        w = torch.empty(24, 16, 3, 4, dtype=torch.bfloat16, device="cuda")
        geometry = ((2, 1), (1, 2), (1, 2))
        result = torch.ops.fastgen.hopper_conv2d(x, w, None, 0.2, *sum(geometry, ()), 0)
        assert result.shape == torch.conv2d(x, w, None, *geometry).shape
        assert result.is_contiguous(memory_format=torch.channels_last)


class Network(nn.Module):
    """Every operation once."""

    def __init__(self, device):
        super().__init__()
        for name, shape in {"w": (8, 8, 4, 4), "b": (8,), "v": (8, 4, 4, 4), "c": (4,)}.items():
            parameter = nn.Parameter(torch.empty(shape, device=device), device != "cuda")
            self.register_parameter(name, parameter)

    def forward(self, x, seed):
        h = fastgen.ops.conv2d_bias_leaky_relu(x, self.w, self.b, 2, 1)
        h = fastgen.ops.conv_transpose2d_bias_leaky_relu(h, self.v, self.c, 2, 1)
        mu, logvar = h.chunk(2, 1)
        z, kl = fastgen.ops.reparameterize_kl(mu, logvar, seed=seed)
        return fastgen.ops.bias_leaky_relu(z).sum() + kl.sum()


FORWARD = {
    "fastgen.bias_leaky_relu.default",
    "fastgen.reparameterize_kl.default",
    "aten.convolution.default",
}


def inputs(device):
    seed = torch.empty((), dtype=torch.int64, device=device)
    return torch.empty(2, 8, 16, 16, device=device), seed


def targets(graph):
    return {str(node.target) for node in graph.nodes if node.op == "call_function"}


def test_export_of_fake_cuda_tensors_holds_the_operators(monkeypatch):
    monkeypatch.setitem(backend._automatic, "cuda", frozenset({"cuda", "torch"}))
    with FakeTensorMode(), torch.no_grad():
        network, given = Network("cuda"), inputs("cuda")
        assert network(*given).device.type == "cuda"
        exported = torch.export.export(network, given)
    assert targets(exported.graph) >= FORWARD


@pytest.fixture
def by_fakes(monkeypatch):
    """Backend "cpp" by the very operators that CUDA tensors take: enough for tracing."""
    monkeypatch.setattr(routing, "CANDIDATES", {})
    entry = backend.BACKENDS["cpp"]
    present = backend.Backend("cpp", entry.summary, entry.device_types, lambda: None)
    monkeypatch.setitem(backend.BACKENDS, "cpp", present)
    for operation, router in routing.ROUTERS.items():
        monkeypatch.setitem(backend.KERNELS, (operation, "cpp"), router(operation, ["cpp"]))
    fused_kernels.offer_fused(
        fused_kernels.FusedKernels(compiled_kernels.operators),
        "traced",
        ["cpp"],
        also_plain=("input_gradient", "weight_gradient"),
    )
    monkeypatch.setattr(backend, "_default", "cpp")


def test_compile_traces_forward_and_backward_without_a_graph_break(by_fakes):
    torch.compiler.reset()
    graphs = []

    def keep(module, example_inputs):
        graphs.append(targets(module.graph))
        return module

    with FakeTensorMode():
        network, given = Network("cpu"), inputs("cpu")
        traced = torch.compile(
            network, fullgraph=True, backend=aot_autograd(fw_compiler=keep, bw_compiler=keep)
        )
        traced(*given).backward()
        assert network.w.grad.shape == network.w.shape
    forward, backward = graphs
    assert forward >= FORWARD
    assert "fastgen.leaky_relu_mask_sum.default" in backward


def test_fake_gradients_of_the_second_order(by_fakes):
    with FakeTensorMode():
        network, (x, seed) = Network("cpu"), inputs("cpu")
        x.requires_grad_()
        (gradient,) = torch.autograd.grad(network(x, seed), x, create_graph=True)
        gradient.square().sum().backward()
        assert network.w.grad.shape == network.w.shape
