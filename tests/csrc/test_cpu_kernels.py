"""The loops of csrc/cpu in every version that this machine runs, on guarded memory, sanitized."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from host import build, cpu_flags, cpu_versions, result, run
from torch import Tensor

from fastgen.ops.philox import random_words

# The least and the most; tests/ops/test_cpu_versions.py holds those between to them.
VERSIONS = sorted({cpu_versions()[0], cpu_versions()[-1]})
DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float64": torch.float64,
}
INTEGERS = {2: (torch.int16, np.int16), 4: (torch.int32, np.int32), 8: (torch.int64, np.int64)}


@pytest.fixture(scope="module", params=VERSIONS)
def version(request) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def activation(version) -> Path:
    # GCC 12 warns about its own AVX-512 intrinsics.
    more = ["-O2", "-Wno-maybe-uninitialized", *cpu_flags(version)]
    return build(f"cpu_bias_leaky_relu_{version}", ["cpu_bias_leaky_relu_host.cpp"], more=more)


@pytest.fixture(scope="module")
def noise(version) -> Path:
    name = f"cpu_reparameterize_{version}"
    return build(name, ["cpu_reparameterize_host.cpp"], more=["-O2", *cpu_flags(version)])


@pytest.fixture(scope="module")
def reorder(version) -> Path:
    warnings = ["-Wno-maybe-uninitialized", "-Wno-uninitialized"]
    more = ["-O2", *warnings, *cpu_flags(version)]
    return build(f"cpu_reorder_{version}", ["cpu_reorder_host.cpp"], more=more)


def bits(tensor: Tensor) -> np.ndarray:
    return tensor.view(INTEGERS[tensor.element_size()][0]).numpy()


def tensor(folder: Path, name: str, dtype: torch.dtype) -> Tensor:
    return torch.from_numpy(result(folder, name, INTEGERS[dtype.itemsize][1])).view(dtype)


# outer, channels, inner, whether it goes by planes: whole and broken vectors, one piece and many,
# short rows that are joined, rows of several tiles, planes of several chunks, a rest behind rows.
SHAPES = [
    (1, 1, 1, True),
    (70001, 1, 1, True),
    (17, 3, 1, False),
    (3, 1031, 1, False),
    (2, 5000, 1, False),
    (40000, 5, 1, False),
    (2, 3, 7, False),
    (9, 127, 49, False),
    (150, 24, 1, False),  # rows of 192 columns, eight times the channels
    (3, 2, 64, True),
    (7, 3, 81, True),  # short planes: sums stay in lanes
    (5, 2, 256, True),
    (3, 2, 257, True),
    (1, 2, 40001, True),
    (0, 3, 5, False),
]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_bias_leaky_relu_its_mask_and_sum(activation, tmp_path, shape, dtype):
    *shape, by_planes = shape
    kind, slope = DTYPES[dtype], 0.2
    x, y = torch.randn(shape).to(kind), torch.randn(shape).to(kind)
    few_of_x = x.flatten()[::7]
    few_of_x *= torch.finfo(kind).tiny / 64 * (torch.arange(len(few_of_x)) % 3)
    s = torch.randn(shape[1]).to(kind)
    wide = torch.float64 if dtype == "float64" else torch.float32
    for operation, shifted, in_place, offset in (
        ("forward", True, False, 0),
        ("forward", True, True, 3),
        ("mask", True, True, 1),
        ("mask_sum", True, True, 5),
        ("mask_sum", False, False, 4),
    ):
        inputs = {"input": bits(x), "output": bits(y), "shift": bits(s)}
        arguments = [operation, dtype, int(shifted), int(in_place), *shape, slope, offset]
        run(activation, arguments, inputs, tmp_path)
        assert result(tmp_path, "plan", np.int64)[0] == by_planes or x.numel() == 0
        exact = x.double() + (s.double()[:, None] if shifted else 0)
        sign = exact if operation == "forward" else y
        exact = torch.where(sign > 0, exact, exact * torch.tensor(slope, dtype=wide).double())
        ours = tensor(tmp_path, "result", kind).view(shape).double()
        rounding, few = torch.finfo(kind).eps / 2, 4 * torch.finfo(wide).eps
        assert ((ours - exact).abs() <= rounding * exact.abs() + few * (1 + exact.abs())).all()
        if not shifted:  # zeros of both signs and subnormal numbers too
            assert torch.equal(ours[sign > 0], x.double()[sign > 0])
            assert torch.equal(ours.signbit(), x.signbit())
        if operation == "mask_sum":
            total = tensor(tmp_path, "sum", kind).double()
            # The sum is that of numbers not rounded to the dtype yet.
            slack = 4 * few * exact.abs().sum((0, 2)) + 2.0**-25 * (dtype == "float16")
            error = (total - exact.sum((0, 2))).abs()
            assert (error <= rounding * exact.sum((0, 2)).abs() + slack).all()


@pytest.mark.parametrize(
    "shape", [(33_554_435, 131, 1), (3, 3, 536_870_915), (1, 1, 4_500_000_001)]
)
def test_bias_leaky_relu_of_more_than_two_to_the_thirty_two_elements(activation, tmp_path, shape):
    run(activation, ["large", *shape], {}, tmp_path)


# matrices, rows, columns: whole and broken blocks of every size, one piece and many
MATRICES = [
    (3, 1, 1),
    (2, 16, 64),
    (5, 7, 3),
    (1, 40, 33),
    (2, 19, 131),
    (2, 1025, 200),
    (1, 3001, 5),
    (2, 3, 30001),
    (0, 3, 5),
]


@pytest.mark.parametrize("size", INTEGERS)
@pytest.mark.parametrize("shape", MATRICES, ids=str)
def test_memory_is_put_in_another_order_bit_by_bit(reorder, tmp_path, shape, size):
    limits = torch.iinfo(INTEGERS[size][0])
    x = torch.randint(limits.min, limits.max, shape, dtype=INTEGERS[size][0])
    for offset in range(4):
        run(reorder, [size, *shape, offset], {"from": x.numpy()}, tmp_path)
        ours = torch.from_numpy(result(tmp_path, "to", INTEGERS[size][1]))
        assert torch.equal(ours, x.mT.flatten())


@pytest.mark.parametrize(
    "shape", [(1, 3, 1_500_000_001), (1, 1_500_000_001, 3), (140_000, 129, 257)]
)
def test_memory_of_more_than_two_to_the_thirty_two_elements(reorder, tmp_path, shape):
    run(reorder, [2, *shape, -1], {}, tmp_path)


def test_noise_of_more_than_two_to_the_thirty_four_elements(noise, tmp_path):
    run(noise, ["large", 1_100_003, 16_001], {}, tmp_path)


def normals(count: int, seed: int) -> Tensor:
    """Box-Muller in float64 from the float32 uniforms of the integers in fastgen/ops/philox.py."""
    words = random_words(count, torch.tensor(seed)).flatten().view(-1, 2)
    uniform = ((words.to(torch.float32) + 0.5) * 2.0**-32).double()
    radius, angle = (-2 * uniform[:, 0].log()).sqrt(), 2 * torch.pi * uniform[:, 1]
    return torch.stack((radius * angle.cos(), radius * angle.sin()), 1).flatten()[:count]


# samples, channels, positions: samples shorter and longer than a piece, not of whole groups of four
NOISE_SHAPES = [(1, 1, 1), (300, 1, 3), (7, 3, 49), (2, 5, 1003)]
SEED = -0x123456789ABCDEF


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "gapped"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", NOISE_SHAPES, ids=str)
def test_reparameterization_divergence_tangent_and_backward(noise, tmp_path, shape, dtype, layout):
    n, c, p = shape
    kind, count = DTYPES[dtype], n * c * p
    wide = torch.float64 if dtype == "float64" else torch.float32
    strides, size = {
        "contiguous": ((c * p, p, 1), count),
        "channels_last": ((c * p, 1, c), count),
        "gapped": ((2 * c * p, p, 1), (2 * n - 1) * c * p),
    }[layout]

    def laid_out(values: Tensor) -> np.ndarray:
        memory = torch.full((size,), torch.nan).to(kind)
        memory.as_strided(shape, strides).copy_(values)
        return bits(memory)

    mean, logvar, grad = (torch.randn(shape).to(kind) for _ in range(3))
    grad_kl = torch.randn(n, dtype=wide)
    inputs = {name: laid_out(t) for name, t in (("mean", mean), ("logvar", logvar))}
    inputs |= {"grad_z": laid_out(grad), "grad_kl": bits(grad_kl)}
    m, v, g = mean.double(), logvar.double(), grad.double()
    deviation = torch.exp(v / 2) * normals(count, SEED).view(shape)
    k = grad_kl.double()[:, None, None]
    exact = {
        0: [m + deviation],
        1: [m + deviation],
        2: [m * deviation],
        3: [g + k * m, (g * deviation + k * torch.expm1(v)) / 2],
    }
    rounding = torch.finfo(kind).eps / 2
    for operation, truths in exact.items():
        arguments = [dtype, operation, SEED, operation, *shape, *strides, size]
        run(noise, arguments, inputs, tmp_path)
        for name, truth in zip(("result", "grad_logvar"), truths, strict=False):
            ours = tensor(tmp_path, name, kind).as_strided(shape, strides).double()
            # Of the noise in float32, whatever the dtype; then one rounding.
            slack = 2e-6 * (1 + deviation.abs() * (1 + m.abs() + g.abs()) + k.abs() * v.exp())
            assert ((ours - truth).abs() <= rounding * truth.abs() + slack).all()
        if operation == 1:
            kl = (m.square() + torch.expm1(v) - v).sum((1, 2)) / 2
            few = 1e-6 if wide == torch.float32 else 1e-13
            torch.testing.assert_close(tensor(tmp_path, "kl", wide).double(), kl, rtol=few, atol=0)
