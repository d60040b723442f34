"""The CUDA bodies of reparameterize, every thread of every block on the host, sanitized."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from host import build, result, run
from torch import Tensor

from fastgen.ops.philox import random_words

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
PASSES = ["rows", "cut_rows", "wide_tiles", "tiles"]
SAMPLE, SAMPLE_KL, SCALED_NOISE, BACKWARD = range(4)
SEED = -0x123456789ABCDEF

# samples, channels, positions
SHAPES = [
    (1, 1, 1),
    (3, 1, 1),
    (5, 3, 1),
    (7, 17, 1),
    (300, 2, 1),
    (127, 64, 1),
    (2, 5000, 1),
    (3, 16, 4),
    (2, 8, 64),
    (3, 5, 49),
    (2, 127, 9),
    (1, 3, 4099),
]


@dataclass
class Layout:
    """How a tensor of a logical shape stands in its storage."""

    tensor: Tensor  # its shape is (samples, channels, positions)
    storage: Tensor  # flat


def laid_out(values: Tensor, layout: str) -> Layout:
    """The values in memory of the layout; what stands between them is NaN."""
    n, c, p = values.shape
    if layout == "contiguous":
        storage, strides = torch.empty(n * c * p), (c * p, p, 1)
    elif layout == "channels_last":
        storage, strides = torch.empty(n * c * p), (c * p, 1, c)
    elif layout == "chunk":  # half the channels of a tensor of twice as many
        storage, strides = torch.empty((2 * n - 1) * c * p), (2 * c * p, p, 1)
    elif layout == "chunk_channels_last":
        storage, strides = torch.empty((2 * n * p - 1) * c), (2 * c * p, 1, 2 * c)
    else:  # the gradient of a sum
        assert layout == "expanded"
        return Layout(values.flatten()[:1].expand(values.shape), values.flatten()[:1].clone())
    storage = torch.full_like(storage, torch.nan).to(values.dtype)
    tensor = storage.as_strided(values.shape, strides)
    tensor.copy_(values)
    return Layout(tensor, storage)


def bits(tensor: Tensor) -> np.ndarray:
    return tensor.view(torch.int32 if tensor.dtype == torch.float32 else torch.int16).numpy()


def noise(shape: tuple[int, int, int]) -> Tensor:
    """eps in float64 from the same words and their float32 uniforms."""
    count = int(np.prod(shape))
    words = random_words(count, torch.tensor(SEED)).to(torch.float32)
    uniform = ((words + 0.5) * 2.0**-32).double()
    radius, angle = (-2 * uniform[:, 0::2].log()).sqrt(), 2 * torch.pi * uniform[:, 1::2]
    pairs = torch.stack((radius * angle.cos(), radius * angle.sin()), dim=-1)
    return pairs.flatten()[:count].view(shape)


@pytest.fixture(scope="module")
def program() -> Path:
    return build("reparameterize", ["reparameterize_host.cpp"])


def play(
    program: Path,
    folder: Path,
    kind: int,
    mean: Layout,
    logvar: Layout,
    grad_z: Layout | None = None,
    grad_kl: Tensor | None = None,
    out: str = "contiguous",
    dtype: str = "float32",
    offset: int = 0,
    multiprocessors: int = 2,
) -> tuple[dict[str, Tensor], str, int, int]:
    """Results by name, and pass, lanes and splits of the plan."""
    shape = mean.tensor.shape
    template = laid_out(torch.zeros(shape, dtype=DTYPES[dtype]), out)
    results = [template, template if kind == BACKWARD else None]
    operands = [mean, logvar, grad_z, *results]
    inputs = {
        name: bits(operand.storage)
        for name, operand in zip(("mean", "logvar", "grad_z"), operands[:3], strict=True)
        if operand is not None
    }
    arguments = [dtype, kind, SEED, offset, multiprocessors]
    if grad_kl is None:
        arguments += [0, 0]
    else:
        inputs["grad_kl"] = grad_kl.as_strided(
            (grad_kl.untyped_storage().nbytes() // 4,), (1,)
        ).numpy()
        arguments += [inputs["grad_kl"].size, grad_kl.stride(0)]
    arguments += shape
    for operand in operands:
        numbers = (0, 0, 0, 0) if operand is None else (operand.storage.numel(),)
        arguments += numbers if operand is None else (*numbers, *operand.tensor.stride())
    run(program, arguments, inputs, folder)

    integer = np.int32 if dtype == "float32" else np.int16
    values = {}
    for name, operand in zip(("result", "grad_logvar"), results, strict=True):
        if operand is not None:
            storage = torch.from_numpy(result(folder, name, integer)).view(DTYPES[dtype])
            values[name] = storage.as_strided(shape, operand.tensor.stride())
    if kind == SAMPLE_KL:
        values["kl"] = torch.from_numpy(result(folder, "kl"))
    way, lanes, splits = result(folder, "plan", np.int64).tolist()
    return values, PASSES[way], lanes, splits


def rows_of(shape: tuple[int, int, int], dtype: str) -> str:
    """The pass over samples that are stretches of memory."""
    vector = 4 if dtype == "float32" else 8
    return "rows" if shape[1] * shape[2] % vector == 0 else "cut_rows"


def assert_close(ours: Tensor, exact: Tensor, scale: Tensor, dtype: str) -> None:
    """One rounding to the dtype, and a few float32 roundings of terms as large as `scale`.

    In 16 bits the noise is off by what a GPU's special functions are.
    """
    terms = 8e-7 if dtype == "float32" else 4e-6
    bound = torch.finfo(DTYPES[dtype]).eps / 2 * exact.abs() + terms * scale + 2.0**-25
    error = (ours.double() - exact).abs()
    assert (error <= bound).all(), (error / bound).max()


def check(
    program: Path,
    folder: Path,
    shape: tuple[int, int, int],
    layouts: tuple[str, str, str, str] = ("contiguous",) * 4,
    dtype: str = "float32",
    expanded_kl: bool = False,
    **options: int,
) -> set[tuple[str, int, int]]:
    """All four kinds against float64, with each gradient there and absent; the plans it saw.

    Args:
        layouts: of mean, logvar, grad_z and the results.
    """
    mean, logvar, grad_z = (
        laid_out((torch.randn(shape) * scale).to(DTYPES[dtype]), layout)
        for scale, layout in zip((1, 2, 1), layouts, strict=False)
    )
    grad_kl = torch.randn(1).expand(shape[0]) if expanded_kl else torch.randn(shape[0])
    m, v, g = (layout.tensor.double() for layout in (mean, logvar, grad_z))
    deviation, eps = (v / 2).exp(), noise(shape)
    scaled = deviation * (eps.abs() + 1)
    options = {"out": layouts[3], "dtype": dtype, **options}
    plans = set()

    for kind in (SAMPLE, SAMPLE_KL):
        values, *plan = play(program, folder, kind, mean, logvar, **options)
        plans.add(tuple(plan))
        assert_close(values["result"], m + deviation * eps, m.abs() + scaled, dtype)
        if kind == SAMPLE_KL:
            terms = m.square() + torch.expm1(v) - v
            error = (values["kl"].double() - terms.sum((1, 2)) / 2).abs()
            size = (m.square() + v.exp() + 1 + v.abs()).sum((1, 2))
            assert (error <= 2.0**-22 * size).all()

    values, *_ = play(program, folder, SCALED_NOISE, mean, logvar, **options)
    assert_close(values["result"], m * deviation * eps, m.abs() * scaled, dtype)

    per_sample = grad_kl.double()[:, None, None]
    for with_z, with_kl in ((True, True), (True, False), (False, True)):
        values, *_ = play(
            program,
            folder,
            BACKWARD,
            mean,
            logvar,
            grad_z if with_z else None,
            grad_kl if with_kl else None,
            **options,
        )
        z, kl = float(with_z) * g, float(with_kl) * per_sample
        assert_close(values["result"], z + kl * m, z.abs() + (kl * m).abs(), dtype)
        exact = (z * deviation * eps + kl * torch.expm1(v)) / 2
        size = z.abs() * scaled + kl.abs() * (v.exp() + 1)
        assert_close(values["grad_logvar"], exact, size, dtype)
    return plans


@pytest.mark.parametrize("shape", SHAPES)
def test_contiguous(program, tmp_path, shape):
    assert {plan[0] for plan in check(program, tmp_path, shape)} == {rows_of(shape, "float32")}


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("shape", SHAPES[2:])
def test_sixteen_bits(program, tmp_path, shape, dtype):
    plans = check(program, tmp_path, shape, dtype=dtype)
    assert {plan[0] for plan in plans} == {rows_of(shape, dtype)}


@pytest.mark.parametrize("shape", [(7, 17, 1), (3, 5, 49), (2, 8, 64)])
def test_misaligned(program, tmp_path, shape):
    for dtype in ("float32", "bfloat16"):
        plans = check(program, tmp_path, shape, dtype=dtype, offset=1)
        assert {plan[0] for plan in plans} == {"tiles"}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((2, 8, 64), "wide_tiles"),
        ((3, 16, 4), "wide_tiles"),
        ((2, 36, 256), "wide_tiles"),
        ((3, 5, 49), "tiles"),
        ((2, 127, 9), "tiles"),
        ((1, 3, 4099), "tiles"),
    ],
)
@pytest.mark.parametrize("layout", ["channels_last", "chunk_channels_last"])
def test_channels_last_has_the_noise_of_the_logical_index(
    program, tmp_path, shape, expected, dtype, layout
):
    layouts = (layout, layout, "channels_last", "channels_last")
    assert {plan[0] for plan in check(program, tmp_path, shape, layouts, dtype)} == {expected}


@pytest.mark.parametrize(
    ("shape", "expected"), [((5, 64, 1), "rows"), ((5, 7, 1), "tiles"), ((4, 3, 16), "rows")]
)
def test_chunks_of_one_tensor(program, tmp_path, shape, expected):
    """(mu, logvar) = h.chunk(2, dim=1): from sample to sample twice as far as a sample is long."""
    layouts = ("chunk", "chunk", "contiguous", "contiguous")
    assert {plan[0] for plan in check(program, tmp_path, shape, layouts)} == {expected}


def test_mixed_layouts_and_expanded_gradients(program, tmp_path):
    for shape in ((3, 8, 16), (2, 5, 9)):
        check(program, tmp_path, shape, ("channels_last", "contiguous", "chunk", "channels_last"))
        check(program, tmp_path, shape, ("contiguous",) * 2 + ("expanded", "contiguous"))
        check(program, tmp_path, shape, expanded_kl=True)


def test_plans_fill_the_chip_for_long_and_for_many_samples(program, tmp_path):
    long = check(program, tmp_path, (2, 40_001, 1), multiprocessors=132)
    assert {lanes for _, lanes, _ in long} == {128}
    assert all(splits > 30 for *_, splits in long)
    chunk = ("chunk", "chunk", "contiguous", "contiguous")
    for row, layouts in ((133, ("contiguous",) * 4), (136, chunk)):
        many = check(program, tmp_path, (1000, row, 1), layouts, multiprocessors=2)
        assert {plan[1:] for plan in many} == {(8, 1)}


@pytest.mark.parametrize("shape", [(1, 4, 1), (5, 4, 1), (3, 2, 8), (31, 24, 1), (1000, 136, 1)])
def test_samples_that_follow_each_other_are_cut_as_one(program, tmp_path, shape):
    """But where each is summed up, and there by 8 threads where samples are many."""
    plans = check(program, tmp_path, shape, multiprocessors=2)
    assert {name for name, *_ in plans} == {"rows"}
    if shape[0] == 1000:
        assert {lanes for _, lanes, _ in plans} == {8, 128}


def test_an_absent_gradient_adds_nothing_even_where_the_other_overflows(program, tmp_path):
    mean = laid_out(torch.zeros(2, 4, 1), "contiguous")
    logvar = laid_out(torch.full((2, 4, 1), 100.0), "contiguous")
    ones = laid_out(torch.ones(2, 4, 1), "contiguous")
    through_z, *_ = play(program, tmp_path, BACKWARD, mean, logvar, grad_z=ones)
    assert (through_z["result"] == 1).all()
    exact = np.exp(50) / 2 * noise((2, 4, 1))
    torch.testing.assert_close(through_z["grad_logvar"].double(), exact, rtol=1e-6, atol=0)
    through_kl, *_ = play(program, tmp_path, BACKWARD, mean, logvar, grad_kl=torch.ones(2))
    assert (through_kl["result"] == 0).all()
    assert (through_kl["grad_logvar"] == torch.inf).all()


@pytest.mark.parametrize(("samples", "row"), [(1, 2**32 + 24), (3, 2**31 + 8), (3, 2**31 + 5)])
def test_more_than_two_to_the_thirty_two_elements(program, tmp_path, samples, row):
    run(program, ["large", samples, row], {}, tmp_path)
