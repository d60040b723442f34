"""The Triton reparameterization, interpreted, against float64 and the integers of every backend."""

from __future__ import annotations

import pytest
import torch
import triton
import triton.language as tl
from torch import Tensor

from fastgen.kernels import formulas
from fastgen.kernels import reparameterize as kernels
from fastgen.ops import philox
from fastgen.ops.torch_kernels import TorchReparameterize as Truth

operators = torch.ops.fastgen_triton
SEEDS = (0, -123456789012345, 2**63 - 1)
SHAPES = [(7,), (3, 17), (300, 4), (2, 2500), (3, 5, 3, 3), (2, 40, 4, 4), (2, 6, 9, 11)]
LAYOUTS = ("contiguous", "halves", "channels_last", "transposed")
CASES = [
    (s, layout)
    for s in SHAPES
    for layout in LAYOUTS
    if len(s) >= {"contiguous": 1, "halves": 2, "channels_last": 4, "transposed": 4}[layout]
]


@pytest.fixture(autouse=True)
def _poisoned_results() -> object:
    torch.use_deterministic_algorithms(True)  # fills fresh memory with NaN
    yield
    torch.use_deterministic_algorithms(False)


def drawn(shape: tuple[int, ...], dtype: torch.dtype, layout: str) -> Tensor:
    values = torch.randn(shape).to(dtype)
    if layout == "halves":
        return torch.cat([torch.full_like(values, torch.nan), values], 1)[:, shape[1] :]
    if layout == "transposed":
        return values.transpose(2, 3).contiguous().transpose(2, 3)
    if layout == "channels_last":
        return values.contiguous(memory_format=torch.channels_last)
    return values


def assert_close(result: Tensor, truth: Tensor, terms: Tensor | None = None) -> None:
    """Within 16 float32 roundings of the largest term (Box-Muller and exp cost some), and, for 16
    bits, one step of the result, which the interpreter cuts off instead of rounding.
    """
    largest = (truth if terms is None else terms).abs().max()
    step = torch.finfo(result.dtype).eps if result.dtype != torch.float32 else 0.0
    allowed = 16 * torch.finfo(torch.float32).eps * largest + step * truth.abs() + 1e-7 * step
    assert result.shape == truth.shape
    assert ((result.double() - truth).abs() <= allowed).all()


@triton.jit
def words_kernel(seed, result, first, COUNT: tl.constexpr):
    k = tl.arange(0, COUNT)
    w0, w1, w2, w3 = formulas.random_words(tl.load(seed), first + k.to(tl.int64))
    tl.store(result + 4 * k, w0.to(tl.int64))
    tl.store(result + 4 * k + 1, w1.to(tl.int64))
    tl.store(result + 4 * k + 2, w2.to(tl.int64))
    tl.store(result + 4 * k + 3, w3.to(tl.int64))


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("first", [0, 2**32 - 64, 2**33 + 5])
def test_integers_are_those_of_every_backend(seed: int, first: int) -> None:
    key = torch.tensor(seed)
    words = torch.full((128, 4), -1)
    words_kernel[(1,)](key, words, first, COUNT=128)
    counter = first + torch.arange(128)
    zero = torch.zeros_like(counter)
    expected = philox.philox4x32(
        (counter & philox.WORD, counter >> 32, zero, zero),
        (key & philox.WORD, (key >> 32) & philox.WORD),
    )
    assert torch.equal(words, torch.stack(expected, -1))


@pytest.mark.parametrize("seed", SEEDS)
def test_normals_are_those_of_every_backend(seed: int) -> None:
    zeros = torch.zeros(20000)
    noise = operators.reparameterize(zeros, zeros, torch.tensor(seed))
    expected = philox.normal(zeros.shape, torch.tensor(seed))
    assert (noise - expected).abs().max() < 2e-6


@pytest.mark.parametrize(("shape", "layout"), CASES, ids=str)
@pytest.mark.parametrize("dtype", kernels.DTYPES, ids=str)
def test_every_pass(shape: tuple[int, ...], layout: str, dtype: torch.dtype) -> None:
    seed = torch.tensor(SEEDS[1])
    mu, logvar, grad_z = (drawn(shape, dtype, layout) for _ in range(3))
    grad_kl = torch.randn(shape[0])
    wide = mu.double(), logvar.double()

    z, kl = operators.reparameterize_kl(mu, logvar, seed)
    exact_z, exact_kl = Truth.forward_kl(*wide, seed)
    assert z.stride() == torch.empty_like(mu).stride()
    assert kl.dtype == torch.float32
    assert_close(z, exact_z)
    assert_close(kl, exact_kl)
    assert torch.equal(operators.reparameterize(mu, logvar, seed), z)
    assert_close(operators.scaled_noise(mu, logvar, seed), Truth.scaled_noise(*wide, seed))

    for gz, gkl in ((grad_z, grad_kl), (grad_z, None), (None, grad_kl)):
        exact = Truth.backward(
            None if gz is None else gz.double(), None if gkl is None else gkl.double(), *wide, seed
        )
        found = operators.reparameterize_backward(gz, gkl, mu, logvar, seed)
        for ours, truth in zip(found, exact, strict=True):
            assert ours.stride() == z.stride()
            assert_close(ours, truth, torch.cat([truth.flatten(), grad_kl.double()]))


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_offsets_of_64_bits(layout: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seed = torch.tensor(5)
    mu, logvar = (drawn((3, 5, 3, 7), torch.float32, layout) for _ in range(2))
    narrow = operators.reparameterize_kl(mu, logvar, seed)
    monkeypatch.setattr(kernels, "LARGEST_INT32", -1)
    assert all(map(torch.equal, operators.reparameterize_kl(mu, logvar, seed), narrow))


def test_divergence_keeps_its_digits_near_zero() -> None:
    mu = torch.zeros(1, 64)
    logvar = torch.linspace(-1e-3, 1e-3, 64).view(1, -1)
    _, kl = operators.reparameterize_kl(mu, logvar, torch.tensor(1))
    wide = logvar.double()
    exact = (torch.expm1(wide) - wide).sum(1) / 2
    assert ((kl - exact).abs() < 1e-5 * exact).all()


def test_empty() -> None:
    empty = torch.empty(0, 3)
    z, kl = operators.reparameterize_kl(empty, empty, torch.tensor(1))
    assert z.shape == (0, 3)
    assert kl.shape == (0,)
    nothing = torch.empty(2, 0)
    assert operators.reparameterize_kl(nothing, nothing, torch.tensor(1))[1].tolist() == [0.0, 0.0]


def test_refuses_what_does_not_fit() -> None:
    x = torch.randn(2, 3)
    with pytest.raises(ValueError, match="seed"):
        operators.reparameterize(x, x, torch.tensor(1.0))
    with pytest.raises(ValueError, match="logvar"):
        operators.reparameterize(x, x[:1], torch.tensor(1))
    with pytest.raises(TypeError, match="float64"):
        operators.reparameterize(x.double(), x.double(), torch.tensor(1))


def test_opcheck_and_tracing() -> None:
    torch.use_deterministic_algorithms(False)
    seed, x, g = torch.tensor(3), torch.randn(2, 5, 3, 3), torch.randn(2)
    tests = ("test_schema", "test_faketensor")
    for layout in (torch.contiguous_format, torch.channels_last):
        mu = x.contiguous(memory_format=layout)
        for name in ("reparameterize", "reparameterize_kl", "scaled_noise"):
            operator = getattr(operators, name).default
            torch.library.opcheck(operator, (mu, mu, seed), test_utils=tests)
        backward = operators.reparameterize_backward.default
        torch.library.opcheck(backward, (mu, g, mu, mu, seed), test_utils=tests)
    compiled = torch.compile(operators.reparameterize_kl, backend="aot_eager", fullgraph=True)
    expected = operators.reparameterize_kl(x, x, seed)
    assert all(map(torch.equal, compiled(x, x, seed), expected))
