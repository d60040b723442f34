"""The Triton bias + leaky ReLU and its mask, interpreted, against float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fastgen.kernels import bias_leaky_relu as kernels

operators = torch.ops.fastgen_triton
SHAPES = [(1, 1, 1), (5, 7), (3, 17, 5, 5), (2, 3, 17, 19), (2, 16, 127), (70, 16, 3, 1)]
SLOPES = (0.0, 0.2, 1.0)


@pytest.fixture(autouse=True)
def _poisoned_results() -> object:
    # Told to be deterministic, PyTorch fills fresh memory with NaN.
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def drawn(shape: tuple[int, ...], dtype: torch.dtype, channels_last: bool) -> list[Tensor]:
    tensors = [torch.randn(shape).to(dtype) for _ in range(2)]
    if channels_last:
        tensors = [t.contiguous(memory_format=torch.channels_last) for t in tensors]
    return [*tensors, torch.randn(shape[1]).to(dtype)]


def shifted(tensor: Tensor, shift: Tensor | None) -> Tensor:
    wide = tensor.double()
    return wide if shift is None else wide + shift.double().view(-1, *[1] * (tensor.dim() - 2))


def assert_close(result: Tensor, truth: Tensor, terms: Tensor) -> None:
    """Within four float32 roundings of the terms, and one step of a 16-bit result.

    A step is two roundings: the interpreter cuts float32 off where a GPU rounds it.
    """
    step = torch.finfo(result.dtype).eps if result.dtype != torch.float32 else 0.0
    allowed = 4 * torch.finfo(torch.float32).eps * terms + step * truth.abs() + 1e-7 * step
    assert result.shape == truth.shape
    assert ((result.double() - truth).abs() <= allowed).all()


CASES = [(s, c) for s in SHAPES for c in (False, True) if not c or len(s) == 4]


@pytest.mark.parametrize(("shape", "channels_last"), CASES, ids=str)
@pytest.mark.parametrize("wide", [False, True], ids=["int32", "int64"])
@pytest.mark.parametrize("dtype", kernels.DTYPES, ids=str)
def test_every_pass(
    shape: tuple[int, ...],
    channels_last: bool,
    wide: bool,
    dtype: torch.dtype,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if wide:
        monkeypatch.setattr(kernels, "LARGEST_INT32", -1)
    x, g, vector = drawn(shape, dtype, channels_last)
    for slope in SLOPES:
        for shift in (vector, None):
            terms = x.double().abs() + (0 if shift is None else vector.double().abs().max())
            exact = shifted(x, shift)
            y = operators.bias_leaky_relu(x, shift, slope)
            assert y.stride() == x.stride()
            assert_close(y, torch.where(exact > 0, exact, exact * slope), terms)
            inside = x.clone()
            operators.bias_leaky_relu_(inside, shift, slope)
            assert torch.equal(inside, y)

            signs = x.clone()
            signs.flatten()[0] = 0  # counts as not positive
            exact = shifted(g, shift) * torch.where(signs > 0, 1.0, slope)
            terms = g.double().abs() + (0 if shift is None else vector.double().abs().max())
            masked = operators.leaky_relu_mask(g, shift, signs, slope)
            assert masked.stride() == g.stride()
            assert_close(masked, exact, terms)
            inside = g.clone()
            operators.leaky_relu_mask_(inside, shift, signs, slope)
            assert torch.equal(inside, masked)

            through, total = operators.leaky_relu_mask_sum(g, shift, signs, slope)
            assert torch.equal(through, masked)
            rest = [d for d in range(g.dim()) if d != 1]
            assert total.dtype == dtype
            assert_close(total, exact.sum(rest), terms.sum(rest))


def test_sums_over_several_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "processors", lambda device: 1)
    for shape, channels_last in (((3, 2, 70, 71), False), ((9, 24, 40, 37), True)):
        x, g, _ = drawn(shape, torch.float32, channels_last)
        _, total = operators.leaky_relu_mask_sum(g, None, x, 0.2)
        exact = g.double() * torch.where(x > 0, 1.0, 0.2)
        assert_close(total, exact.sum([0, 2, 3]), g.double().abs().sum([0, 2, 3]))
        assert torch.equal(total, operators.leaky_relu_mask_sum(g, None, x, 0.2)[1])


def test_not_a_number_and_empty() -> None:
    x = torch.tensor([[float("nan"), -1.0]])
    assert operators.bias_leaky_relu(x, None, 0.2).isnan().tolist() == [[True, False]]
    masked = operators.leaky_relu_mask(torch.ones(1, 2), None, x, 0.25)
    assert masked.tolist() == [[0.25, 0.25]]
    empty = torch.empty(0, 3, 4, 4)
    assert operators.bias_leaky_relu(empty, torch.ones(3), 0.2).shape == empty.shape
    assert operators.leaky_relu_mask_sum(empty, None, empty, 0.2)[1].tolist() == [0.0, 0.0, 0.0]


def test_refuses_what_it_cannot_address() -> None:
    x = torch.randn(2, 3, 4, 4)
    with pytest.raises(ValueError, match="dense"):
        operators.bias_leaky_relu(x.transpose(1, 3), torch.ones(4), 0.2)
    with pytest.raises(ValueError, match="bias"):
        operators.bias_leaky_relu(x, torch.ones(2), 0.2)
    with pytest.raises(ValueError, match="memory order"):
        operators.leaky_relu_mask(x, None, x.contiguous(memory_format=torch.channels_last), 0.2)
    with pytest.raises(TypeError, match="float64"):
        operators.bias_leaky_relu(x.double(), None, 0.2)


@pytest.mark.parametrize("channels_last", [False, True])
def test_opcheck_and_tracing(channels_last: bool) -> None:
    x, g, vector = drawn((2, 3, 5, 5), torch.float32, channels_last)
    torch.use_deterministic_algorithms(False)
    tests = ("test_schema", "test_faketensor")
    torch.library.opcheck(operators.bias_leaky_relu.default, (x, vector, 0.2), test_utils=tests)
    torch.library.opcheck(operators.bias_leaky_relu_.default, (x, vector, 0.2), test_utils=tests)
    for name in ("leaky_relu_mask", "leaky_relu_mask_", "leaky_relu_mask_sum"):
        operator = getattr(operators, name).default
        torch.library.opcheck(operator, (g, vector, x, 0.2), test_utils=tests)
    compiled = torch.compile(
        lambda *a: operators.leaky_relu_mask_sum(*a, 0.2), backend="aot_eager", fullgraph=True
    )
    expected = operators.leaky_relu_mask_sum(g, vector, x, 0.2)
    assert all(map(torch.equal, compiled(g, vector, x), expected))
