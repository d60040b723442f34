"""What surrounds a kernel on the device: noise, determinism, streams, graphs, sizes, operators."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import on_device
import pytest
import sanitize_cases
import torch
from on_device import DEVICE, DTYPES, ON_GPU, assert_close, available, drawn

from fastgen import ops
from fastgen.ops import compiled, reference, routing
from fastgen.ops.backend import KERNELS
from fastgen.ops.philox import philox4x32

on_device.skip_without_device()
pytestmark = pytest.mark.gpu
needs_cuda = pytest.mark.skipif(not ON_GPU, reason="only CUDA has it")
BACKENDS = ("auto", "cuda", "triton", "torch")


@pytest.fixture(autouse=True)
def _routes(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("FASTGEN_ROUTES", "off")
    routing.forget()
    yield
    routing.forget()


def operations(backend: str) -> dict[str, tuple[Callable[..., Any], list[tuple[int, ...]]]]:
    """Each operation with the shapes of its tensors."""
    conv = partial(ops.conv2d_bias_leaky_relu, stride=2, padding=1, backend=backend)
    up = partial(ops.conv_transpose2d_bias_leaky_relu, stride=2, padding=1, backend=backend)
    sample = partial(ops.reparameterize_kl, seed=torch.tensor(11, device=DEVICE), backend=backend)
    return {
        "bias_leaky_relu": (
            partial(ops.bias_leaky_relu, backend=backend),
            [(33, 7, 19, 5), (7,)],
        ),
        "conv2d": (conv, [(5, 16, 18, 14), (33, 16, 4, 4), (33,)]),
        "conv2d, image edge": (conv, [(9, 3, 34, 30), (24, 3, 4, 4), (24,)]),
        "conv_transpose2d": (up, [(5, 16, 9, 7), (16, 33, 4, 4), (33,)]),
        "conv_transpose2d, image edge": (up, [(9, 24, 17, 15), (24, 3, 4, 4), (3,)]),
        "reparameterize_kl": (lambda mu, logvar: sample(mu, logvar)[0], [(65, 130), (65, 130)]),
    }


OPERATIONS = list(operations("auto"))


def through_the_second_order(function: Callable[..., Any], tensors: list[torch.Tensor]) -> Any:
    leaves = [t.detach().requires_grad_() for t in tensors]
    output = function(*leaves)
    first = torch.autograd.grad(output.square().sum() / 2, leaves, create_graph=True)
    scalar = sum(g.square().mean() for g in first)
    second = torch.autograd.grad(scalar, leaves, allow_unused=True)
    return [t.detach() for t in (output, *first, *second) if t is not None]


# ------------------------------------------------------------------------------------- noise


def exact_noise(first: int, count: int, seed: int) -> torch.Tensor:
    """The noise of elements first ... first + count - 1 from the CPU's integers, in float64."""
    begin = first // 4
    counter = torch.arange(begin, (first + count + 3) // 4)
    key = torch.tensor(seed)
    words = philox4x32(
        (counter & 0xFFFFFFFF, counter >> 32, *[torch.zeros_like(counter)] * 2),
        (key & 0xFFFFFFFF, (key >> 32) & 0xFFFFFFFF),
    )
    uniform = (torch.stack(words, -1).float() + 0.5).double() * 2.0**-32
    radius, angle = (-2 * uniform[:, 0::2].log()).sqrt(), 2 * torch.pi * uniform[:, 1::2]
    pairs = torch.stack((radius * angle.cos(), radius * angle.sin()), -1)
    return pairs.flatten()[first - 4 * begin :][:count]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("seed", [0, 7, -(2**50) - 1, 2**63 - 1])
def test_noise_is_made_of_the_same_integers_as_on_the_cpu(backend, seed):
    available(backend)
    for shape in ((3, 1001), (2, 3, 7, 5), (100_003,)):
        zero = torch.zeros(shape, device=DEVICE)
        z = ops.reparameterize(zero, zero, seed=seed, backend=backend)
        exact = exact_noise(0, zero.numel(), seed)
        # A wrong bit of a word moves its number by far more than float32's rounding.
        assert (z.flatten().cpu().double() - exact).abs().max() <= 4e-6
        if len(shape) == 4:
            last = zero.contiguous(memory_format=torch.channels_last)
            assert torch.equal(ops.reparameterize(last, last, seed=seed, backend=backend), z)


# ----------------------------------------------------------- determinism, streams and graphs


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_two_runs_are_bit_equal(operation, backend):
    function, shapes = operations(available(backend))[operation]
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        for kind in (torch.float32, torch.bfloat16):
            tensors = drawn(*shapes, dtype=kind, layout="channels_last")
            once = through_the_second_order(function, tensors)
            for again in (through_the_second_order(function, tensors) for _ in range(3)):
                assert all(map(torch.equal, once, again))
    finally:
        torch.use_deterministic_algorithms(False)


CONVOLUTIONS = [operation for operation in OPERATIONS if operation.startswith("conv")]


@contextmanager
def convolving_in(precision: str) -> Iterator[None]:
    """Inside, what PyTorch's setting lets convolutions of float32 multiply in."""
    conv = torch.backends.cudnn.conv
    before, conv.fp32_precision = conv.fp32_precision, precision
    try:
        yield
    finally:
        conv.fp32_precision = before


@needs_cuda
@pytest.mark.parametrize("operation", CONVOLUTIONS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_the_precision_of_float32_may_change_between_calls(operation, backend):
    function, shapes = operations(available(backend))[operation]
    exact, _ = operations("torch")[operation]
    tensors = drawn(*shapes, dtype=torch.float32, layout="channels_last")
    truths = through_the_second_order(exact, [t.double() for t in tensors])
    for precision, tolerance in (("tf32", 3e-2), ("ieee", 1e-5)):
        with convolving_in(precision):
            results = through_the_second_order(function, tensors)
        for result, truth in zip(results, truths, strict=True):
            assert_close(result, truth, tolerance)


@needs_cuda
@pytest.mark.parametrize("operation", CONVOLUTIONS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_autocast_around_a_backward_changes_nothing(operation, backend):
    """Gradients have the precision of their forward, which ran outside."""
    function, shapes = operations(available(backend))[operation]
    exact, _ = operations("torch")[operation]
    tensors = drawn(*shapes, dtype=torch.float32, layout="channels_last")

    def gradients(function: Callable[..., Any], tensors: list[torch.Tensor]) -> Any:
        leaves = [t.detach().requires_grad_() for t in tensors]
        output = function(*leaves)
        with torch.autocast(DEVICE.type, torch.bfloat16):
            first = torch.autograd.grad(output.square().sum(), leaves, create_graph=True)
            second = torch.autograd.grad(first[0].square().sum(), leaves[:2])
        return [*first, *second]

    truths = gradients(exact, [t.double() for t in tensors])
    with convolving_in("ieee"):
        results = gradients(function, tensors)
    for result, truth in zip(results, truths, strict=True):
        assert_close(result, truth, 1e-5)


@needs_cuda
@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_kernels_run_on_the_current_stream(operation, backend):
    """The input arrives late on a stream: a kernel on another stream would compute with the old
    one."""
    function, shapes = operations(available(backend))[operation]
    tensors = drawn(*shapes, dtype=torch.float32, layout="channels_last")
    expected = through_the_second_order(function, tensors)
    stale = [torch.full_like(t, 1e3) for t in tensors]
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)
        for late, value in zip(stale, tensors, strict=True):
            late.copy_(value)
        results = through_the_second_order(function, stale)
    stream.synchronize()
    for result, truth in zip(results, expected, strict=True):
        assert_close(result, truth, 2e-3)


@needs_cuda
@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_kernels_run_on_the_gpu_of_their_tensors(operation, backend):
    """Whichever GPU is the current one."""
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    function, shapes = operations(available(backend))[operation]
    tensors = drawn(*shapes, dtype=torch.float32, layout="channels_last")
    expected = through_the_second_order(function, tensors)
    other = torch.device("cuda", (torch.cuda.current_device() + 1) % torch.cuda.device_count())
    if operation == "reparameterize_kl":
        function = partial(ops.reparameterize, seed=11, backend=backend)
    results = through_the_second_order(function, [t.to(other) for t in tensors])
    for result, truth in zip(results, expected, strict=True):
        assert result.device == other
        assert_close(result.to(truth.device), truth, 2e-3)


@needs_cuda
@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_cuda_graph_replays_the_second_order_on_new_inputs(operation, backend):
    function, shapes = operations(available(backend))[operation]
    tensors = drawn(*shapes, dtype=torch.float32, layout="channels_last")
    static = [t.clone() for t in tensors]
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(2):
            through_the_second_order(function, static)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = through_the_second_order(function, static)
    for _ in range(2):
        fresh = drawn(*shapes, dtype=torch.float32, layout="channels_last")
        for place, value in zip(static, fresh, strict=True):
            place.copy_(value)
        for result in results:
            result.fill_(torch.nan)
        graph.replay()
        for result, truth in zip(results, through_the_second_order(function, fresh), strict=True):
            assert_close(result, truth, 2e-3)


@needs_cuda
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_graph_replays_with_the_seed_of_the_moment(backend):
    available(backend)
    mu, logvar = drawn((65, 130), (65, 130), dtype=torch.float32)
    seed = torch.zeros((), dtype=torch.int64, device=DEVICE)
    sample = partial(ops.reparameterize_kl, mu, logvar, backend=backend)
    sample(seed=seed)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        z, _ = sample(seed=seed)
    for value in (3, 2**40):
        seed.fill_(value)
        graph.replay()
        assert torch.equal(z, sample(seed=value)[0])


# ------------------------------------------------------------------ more than 2^31 elements

BEYOND = 2**31 + 12_345


def needs_memory(gigabytes: float) -> None:
    free = torch.cuda.mem_get_info()[0] / 1e9
    if free < gigabytes:
        pytest.skip(f"needs {gigabytes:g} GB of GPU memory, {free:.0f} are free")


@needs_cuda
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("backend", ["cuda", "triton"])
def test_bias_leaky_relu_beyond_32_bit_indices(backend, channels_last):
    available(backend)
    needs_memory(26)
    channels, inner = 3, BEYOND // 6 + 1
    size = (2, channels, 1, inner)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    x = torch.empty(size, device=DEVICE, dtype=torch.bfloat16, memory_format=layout).normal_()
    b = torch.randn(channels, device=DEVICE, dtype=torch.bfloat16)
    y = ops.bias_leaky_relu(x, b, 0.2, backend=backend)
    g = x  # any gradient will do
    through, total = KERNELS["bias_leaky_relu", backend].mask_sum(g, y, 0.2)
    sums = torch.zeros(channels, device=DEVICE, dtype=torch.float64)
    step = 2**26
    for sample in range(2):
        for start in range(0, inner, step):
            part = (slice(sample, sample + 1), slice(None), slice(None), slice(start, start + step))
            exact = reference.bias_leaky_relu(x[part].float(), b.float(), 0.2)
            assert_close(y[part].float(), exact, 1e-2)
            # The mask is taken from the rounded output, as the kernel takes it.
            masked = torch.where(y[part] > 0, g[part].float(), g[part].float() * 0.2)
            assert_close(through[part].float(), masked, 1e-2)
            sums += masked.double().sum((0, 2, 3))
    assert_close(total.double(), sums, 1e-2)


@needs_cuda
@pytest.mark.parametrize("backend", ["cuda", "triton"])
def test_reparameterize_beyond_32_bit_indices(backend):
    available(backend)
    needs_memory(26)
    rows = BEYOND // 4096 + 1
    mu = torch.zeros(rows, 4096, device=DEVICE, dtype=torch.bfloat16)
    logvar = torch.zeros_like(mu)
    z, kl = ops.reparameterize_kl(mu, logvar, seed=5, backend=backend)
    assert not kl.any()
    flat, count = z.flatten(), 4096
    for first in (0, 2**31 - 2048, 2**31, flat.numel() - count):
        exact = exact_noise(first, count, 5)
        assert_close(flat[first : first + count].cpu(), exact, 1e-2)
    assert not z.isnan().any()


# --------------------------------------------------------------- the operators themselves


def arguments_of(name: str, kind: torch.dtype) -> list[tuple[Any, ...]]:
    """A few of the calls that run under the sanitizer, each with tensors of its own."""
    found = list(sanitize_cases.CASES[name](sanitize_cases.drawer(DEVICE, kind)))
    return found[:: max(1, len(found) // 6)]


@pytest.mark.parametrize("name", sanitize_cases.CASES)
@pytest.mark.parametrize("namespace", ["fastgen", "fastgen_triton"])
def test_operators_pass_opcheck(namespace, name):
    available("cuda" if namespace == "fastgen" else "triton")
    if namespace == "fastgen_triton":
        from fastgen.ops.triton_kernels import operators

        if not hasattr(operators(), name):
            pytest.skip(f"Triton has no {name}")
    elif name not in sanitize_cases.registered():
        pytest.skip(f"{name} is not compiled in")
    operator = getattr(getattr(torch.ops, namespace), name).default
    for kind in (torch.float32, torch.bfloat16):
        for arguments in arguments_of(name, kind)[:3]:
            torch.library.opcheck(
                operator, arguments, test_utils=("test_schema", "test_faketensor")
            )


def test_every_operator_has_a_case_for_the_sanitizer():
    available("cuda")
    assert set(sanitize_cases.registered()) <= sanitize_cases.CASES.keys()


@needs_cuda
def test_the_sanitizers_cases_reach_every_compiled_kernel():
    """By name without template arguments; what only huge tensors reach is another instance."""
    available("cuda")
    names = sanitize_cases.registered()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        sanitize_cases.run(names, DEVICE)
    launched = " ".join(event.key for event in profile.key_averages())
    major, minor = torch.cuda.get_device_capability()
    here = {
        str(kernel["name"]).partition("<")[0]
        for kernel in compiled.cuda_kernels()
        if str(kernel["architecture"]).rstrip("af") == f"{major}{minor}"
    }
    assert here
    missed = {name for name in here if name not in launched}
    assert not missed, f"no sanitizer case launches {sorted(missed)}"


@pytest.mark.parametrize("operation", ["conv2d", "conv_transpose2d, image edge"])
@pytest.mark.parametrize("backend", ["auto", "cuda", "triton"])
def test_compiles_without_a_graph_break_and_equals_eager(operation, backend):
    function, shapes = operations(available(backend))[operation]
    torch.compiler.reset()
    inductor = "inductor" if ON_GPU else "aot_eager"
    compiled_function = torch.compile(function, fullgraph=True, backend=inductor)
    tensors = drawn(*shapes, dtype=torch.float32, layout="channels_last")

    def run(f: Callable[..., Any]) -> list[torch.Tensor]:
        leaves = [t.detach().requires_grad_() for t in tensors]
        output = f(*leaves)
        return [output.detach(), *torch.autograd.grad(output.square().sum(), leaves)]

    for ours, eager in zip(run(compiled_function), run(function), strict=True):
        assert_close(ours, eager, 2e-3)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_empty_batches_and_odd_memory_are_taken(backend, operation, dtype):
    """Views with gaps, shifted by an odd number of elements, transposed; and nothing at all."""
    function, shapes = operations(available(backend))[operation]
    kind = DTYPES[dtype]
    tensors = [t / 4 for t in drawn(*shapes, dtype=kind)]
    expected = function(*tensors)
    first, *rest = tensors
    gapped = torch.randn(*first.shape[:-1], 2 * first.shape[-1] + 1, device=DEVICE).to(kind)
    shifted = torch.randn(first.numel() + 3, device=DEVICE).to(kind)[3:].view(first.shape)
    views = [
        gapped[..., 1 : 2 * first.shape[-1] : 2].copy_(first),
        shifted.copy_(first),
        first.transpose(0, -1).contiguous().transpose(0, -1),
    ]
    tolerance = 2e-2 if kind == torch.bfloat16 else 2e-3
    for view in views:
        assert_close(function(view, *rest), expected.double(), tolerance)
    if operation == "reparameterize_kl":
        rest = [t[:0] for t in rest]
    assert function(first[:0], *rest).shape == (0, *expected.shape[1:])
