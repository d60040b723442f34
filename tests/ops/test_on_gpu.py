"""Every operation and backend on the device, against float64; see on_device.py for the switches."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import on_device
import pytest
import torch
from on_device import (
    DEVICE,
    DTYPES,
    LAYOUTS,
    ON_GPU,
    TF32,
    TOLERANCES,
    assert_as_accurate_as_torch,
    assert_close,
    available,
    drawn,
)
from torch.autograd import gradcheck, gradgradcheck

from fastgen import ops
from fastgen.ops import reference, route_timing, routing
from fastgen.ops.backend import KERNELS, BackendUnavailable
from fastgen.ops.geometry import Geometry

on_device.skip_without_device()
pytestmark = pytest.mark.gpu
needs_cuda = pytest.mark.skipif(not ON_GPU, reason="streams and graphs are CUDA's")

BACKENDS = ("auto", "cuda", "triton", "torch")
SLOPES = (0.0, 0.2, 1.0)
CONV, UP = "conv2d_bias_leaky_relu", "conv_transpose2d_bias_leaky_relu"


@pytest.fixture(autouse=True)
def _routes(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> Iterator[None]:
    """The written rule decides, so that a test meets the same kernel every time."""
    monkeypatch.setenv("FASTGEN_ROUTES", "off")
    monkeypatch.setenv("FASTGEN_CACHE", str(tmp_path))
    routing.forget()
    yield
    routing.forget()


@pytest.fixture
def exact_float32() -> Iterator[None]:
    """No TF32 in convolutions."""
    before = torch.backends.cudnn.conv.fp32_precision
    torch.backends.cudnn.conv.fp32_precision = "ieee"
    yield
    torch.backends.cudnn.conv.fp32_precision = before


@pytest.fixture
def deterministic(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Deterministic algorithms; then PyTorch fills fresh memory with NaN, too."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


# (operation, shapes of input, weight and bias, options): image edges, odd extents, groups
Case = tuple[str, tuple[tuple[int, ...], ...], dict[str, Any]]
EDGE: Case = (CONV, ((3, 3, 17, 14), (33, 3, 4, 4), (33,)), {"stride": 2, "padding": 1})
ODD: Case = (CONV, ((2, 16, 9, 7), (24, 16, 3, 3), (24,)), {"padding": 1})
GROUPED: Case = (
    CONV,
    ((2, 6, 11, 8), (4, 3, 3, 3), (4,)),
    {"stride": (2, 1), "padding": (2, 1), "dilation": 2, "groups": 2},
)
POINT: Case = (CONV, ((5, 1, 1, 1), (3, 1, 1, 1), (3,)), {})
UP_EDGE: Case = (UP, ((3, 33, 9, 7), (33, 3, 4, 4), (3,)), {"stride": 2, "padding": 1})
UP_ODD: Case = (
    UP,
    ((2, 16, 5, 7), (16, 24, 3, 3), (24,)),
    {"stride": 2, "padding": 1, "output_padding": 1},
)
PICTURE_OUT: Case = (CONV, ((3, 40, 9, 14), (3, 40, 3, 3), (3,)), {"padding": 1})
WHOLE: Case = (CONV, ((4, 17, 4, 4), (20, 17, 4, 4), (20,)), {})
UP_FIRST: Case = (UP, ((4, 20, 1, 1), (20, 17, 4, 4), (17,)), {})
CASES = {
    "edge": EDGE,
    "odd": ODD,
    "grouped": GROUPED,
    "point": POINT,
    "picture-out": PICTURE_OUT,
    "whole": WHOLE,
    "up-edge": UP_EDGE,
    "up-odd": UP_ODD,
    "up-first": UP_FIRST,
}


# --------------------------------------------------------------------- through the second order


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_bias_leaky_relu_is_as_accurate_as_pytorch(backend, dtype, layout):
    available(backend)
    kind = DTYPES[dtype]
    for shape in ((3, 5, 17, 127), (1, 1, 1, 1), (2, 130, 3, 1), (70, 16, 4, 4)):
        for slope in SLOPES:
            x, b = drawn(shape, (shape[1],), dtype=kind, layout=layout)
            assert_as_accurate_as_torch(
                partial(ops.bias_leaky_relu, negative_slope=slope, backend=backend),
                partial(reference.bias_leaky_relu, negative_slope=slope),
                [x, b],
                torch.finfo(kind).eps,
            )
            result = ops.bias_leaky_relu(x, b, slope, backend=backend)
            assert result.is_contiguous(memory_format=LAYOUTS[layout])


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_convolutions_are_as_accurate_as_pytorch(backend, name, dtype, layout):
    available(backend)
    operation, shapes, options = CASES[name]
    kind = DTYPES[dtype]
    for slope in SLOPES if name in ("edge", "up-edge") else (0.2,):
        tensors = drawn(*shapes, dtype=kind, layout=layout)
        if kind == torch.float16:  # which ends at 65504
            tensors = [t / 4 for t in tensors]
        # cuDNN's own setting allows TF32 in float32, so an input may be rounded to 11 bits.
        rounding = 2.0**-11 if kind == torch.float32 else torch.finfo(kind).eps
        assert_as_accurate_as_torch(
            partial(getattr(ops, operation), negative_slope=slope, backend=backend, **options),
            partial(getattr(reference, operation), negative_slope=slope, **options),
            tensors,
            rounding,
            tf32=kind == torch.float32,
        )


@pytest.mark.parametrize("name", ["edge", "odd", "up-edge", "up-odd"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_convolutions_keep_float32_where_tf32_is_not_allowed(backend, name, exact_float32):
    available(backend)
    operation, shapes, options = CASES[name]
    assert_as_accurate_as_torch(
        partial(getattr(ops, operation), backend=backend, **options),
        partial(getattr(reference, operation), **options),
        drawn(*shapes, dtype=torch.float32, layout="channels_last"),
        torch.finfo(torch.float32).eps,
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_generators_end_with_tanh_is_as_accurate_as_pytorch(backend, dtype):
    available(backend)
    kind = DTYPES[dtype]
    operation, shapes, options = UP_EDGE
    assert_as_accurate_as_torch(
        partial(getattr(ops, operation), tanh=True, backend=backend, **options),
        partial(getattr(reference, operation), tanh=True, **options),
        [t / 4 for t in drawn(*shapes, dtype=kind, layout="channels_last")],
        2.0**-11 if kind == torch.float32 else torch.finfo(kind).eps,
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_reparameterize_kl_is_right_through_the_second_order(backend, dtype):
    available(backend)
    kind, seed = DTYPES[dtype], torch.tensor(-(2**41) + 5, device=DEVICE)
    for shape in ((5, 3), (3, 1030), (700, 8), (2, 4, 9, 7), (1, 70001)):
        mu, logvar = drawn(shape, shape, dtype=kind)

        def results(operation: Callable[..., Any], *tensors: torch.Tensor) -> list[torch.Tensor]:
            leaves = [t.detach().clone().requires_grad_() for t in tensors]
            z, kl = operation(*leaves, seed=seed)
            per_number = kl.double() / z[0].numel()  # a sine of thousands would magnify rounding
            scalar = (z.double() / 3).sin().sum() + per_number.sin().sum()
            first = torch.autograd.grad(scalar, leaves, create_graph=True)
            second = torch.autograd.grad(sum(g.double().square().sum() for g in first), leaves)
            return [t.detach() for t in (z, kl, *first, *second)]

        exact = results(reference.reparameterize_kl, mu.double(), logvar.double())
        ours = results(partial(ops.reparameterize_kl, backend=backend), mu, logvar)
        assert ours[1].dtype == torch.float32
        for result, truth in zip(ours, exact, strict=True):
            # Noise is computed in float32 here and in float64's reference: both from one word.
            assert_close(result, truth, 4 * TOLERANCES[kind])
        assert torch.equal(ops.reparameterize(mu, logvar, seed=seed, backend=backend), ours[0])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("operation", ["bias_leaky_relu", CONV, UP, "reparameterize_kl"])
def test_float64_passes_gradcheck_or_is_refused_by_name(operation, backend):
    available(backend)
    if operation == "reparameterize_kl":
        tensors = drawn((3, 5), (3, 5), dtype=torch.float64)
        function = partial(ops.reparameterize_kl, seed=3, backend=backend)
    elif operation == "bias_leaky_relu":
        tensors = drawn((2, 3, 4, 3), (3,), dtype=torch.float64, layout="channels_last")
        function = partial(ops.bias_leaky_relu, backend=backend)
    else:
        _, shapes, options = {CONV: GROUPED, UP: UP_ODD}[operation]
        tensors = drawn(*shapes, dtype=torch.float64, layout="channels_last")
        function = partial(getattr(ops, operation), backend=backend, **options)
    leaves = [t.requires_grad_() for t in tensors]
    if backend in ("cuda", "triton"):
        with pytest.raises(BackendUnavailable, match=rf"backend '{backend}'.*float64"):
            function(*leaves)
        return
    assert gradcheck(function, leaves, fast_mode=True, nondet_tol=1e-12)
    assert gradgradcheck(function, leaves, fast_mode=True, nondet_tol=1e-12)


# ------------------------------------------------------------------------- every single kernel


def passes_of(operation: str, tensors: list[torch.Tensor], options: dict[str, Any]) -> Any:
    """The arguments of each pass of a convolution."""
    x, w, b = tensors
    pair = lambda value: value if isinstance(value, tuple) else (value, value)  # noqa: E731
    geometry = Geometry(
        pair(options.get("stride", 1)), pair(options.get("padding", 0)),
        pair(options.get("dilation", 1)), options.get("groups", 1), operation == UP,
        pair(options.get("output_padding", 0)),
    )  # fmt: skip
    y = getattr(reference, operation)(x, w, b, **options)
    g = torch.randn_like(y)
    found = {
        "forward": (x, w, b, 0.2, geometry),
        "forward, no bias, linear": (x, w, None, 1.0, geometry),
        "masked_forward": (x, w, None, y, 0.2, geometry),
        "masked_forward, shifted": (x, w, b, y, 0.2, geometry),
        "input_gradient": (g, w, tuple(x.shape[2:]), geometry),
        "weight_gradient": (x, g, w, geometry),
        "mask": (g, b, y, 0.2),
        "mask_sum": (g, y, 0.2),
    }
    if operation == UP:
        found["forward, tanh"] = (x, w, b, "tanh", geometry)
    return found


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", CASES)
def test_every_candidate_of_the_router_computes_its_pass(name, dtype, layout, deterministic):
    """Tiles, image-edge and Hopper kernels that routing may pick, one by one, on fresh memory
    full of NaN."""
    operation, shapes, options = CASES[name]
    kind = DTYPES[dtype]
    tensors = [t / 2 for t in drawn(*shapes, dtype=kind, layout=layout)]
    router = KERNELS[operation, "auto"]
    plain = KERNELS[operation, "torch"]
    seen = set()
    for title, arguments in passes_of(operation, tensors, options).items():
        pass_ = title.partition(",")[0]
        wide = [a.double() if isinstance(a, torch.Tensor) else a for a in arguments]
        truth = getattr(plain, pass_)(*wide)
        before = [a.clone() if isinstance(a, torch.Tensor) else a for a in arguments]
        for candidate in router.candidates(pass_, *arguments):
            # Compiling every tile takes long: two shapes have them all, the others the rule's.
            if "tile" in candidate.name and name not in ("odd", "up-odd"):
                continue
            result = candidate.run(*arguments)
            one = isinstance(result, torch.Tensor)
            pairs = [(result, truth)] if one else list(zip(result, truth, strict=True))
            for ours, exact in pairs:
                try:
                    assert_close(ours, exact, TF32 if kind == torch.float32 else TOLERANCES[kind])
                except AssertionError as error:
                    raise AssertionError(f"{candidate.name}, {title}: {error}") from error
            for given, kept in zip(arguments, before, strict=True):
                if isinstance(given, torch.Tensor):
                    assert torch.equal(given, kept), f"{candidate.name} changed an argument"
            seen.add(candidate.name)
    assert "plain PyTorch" in seen


def test_routing_measures_on_the_device_and_remembers(monkeypatch, tmp_path):
    if not ON_GPU:
        pytest.skip("only a GPU is measured")
    monkeypatch.delenv("FASTGEN_ROUTES")
    operation, shapes, options = EDGE
    function = partial(getattr(ops, operation), **options)
    tensors = drawn(*shapes, dtype=torch.bfloat16, layout="channels_last")
    exact = getattr(reference, operation)(*(t.double() for t in tensors), **options)
    assert_close(function(*tensors), exact, TOLERANCES[torch.bfloat16])
    (table,) = (tmp_path / "routes").glob("*.json")
    written = table.stat().st_mtime_ns
    routing.forget()
    assert_close(function(*tensors), exact, TOLERANCES[torch.bfloat16])
    assert table.stat().st_mtime_ns == written


def test_a_way_that_cannot_be_captured_leaves_the_stream_as_it_was():
    if not ON_GPU:
        pytest.skip("only a GPU is measured")

    before = torch.cuda.current_stream()
    ways = {"waits": lambda x: x + float(x.sum()), "adds": lambda x: x + 1}
    with pytest.warns(UserWarning, match="waits cannot run and is passed over"):
        seconds = route_timing.measure(ways, (torch.ones(8, device=DEVICE),), DEVICE)
    assert seconds["waits"] == route_timing.FAILED > seconds["adds"]
    assert torch.cuda.current_stream() == before
