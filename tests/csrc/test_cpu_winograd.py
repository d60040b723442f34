"""The Winograd kernels of csrc/cpu in the least and the most of the versions that this machine
runs, piece by piece, on scratch memory that holds large numbers before.

Not sanitized: that takes minutes to compile. `make sanitize` has these kernels in the extension.
"""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from host import bits, build, cpu_flags, cpu_versions, result_like, run
from torch import Tensor

# tests/ops/test_cpu_winograd.py holds those between to them.
VERSIONS = sorted({cpu_versions()[0], cpu_versions()[-1]})
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float64": torch.float64}
LAYOUTS = (torch.contiguous_format, torch.channels_last)
# Of the largest sum of absolute terms: what tiles of three make of a rounding, and in bfloat16 that
# transformed numbers are rounded to it.
TOLERANCE = {"float32": 2e-6, "bfloat16": 8e-3, "float64": 4e-15}
KERNELS = (
    "product",
    "conv2d_bias_leaky_relu_winograd",
    "conv2d_bias_leaky_relu_winograd_weight",
    "conv_transpose2d_bias_leaky_relu_winograd",
)

# (batch, channels, height, width, filters, kernel, stride, padding)
GEOMETRIES = [
    (1, 16, 4, 4, 16, 4, 2, (1, 1)),
    (2, 32, 8, 10, 48, 4, 2, (1, 1)),
    (3, 48, 11, 7, 32, 4, 2, (0, 3)),
    (40, 16, 6, 6, 32, 4, 2, (2, 1)),
    (1, 16, 30, 34, 80, 4, 2, (1, 0)),
    (70, 32, 4, 4, 64, 4, 2, (1, 1)),
    (1, 16, 3, 3, 16, 3, 1, (0, 0)),
    (2, 48, 8, 8, 32, 3, 1, (1, 1)),
    (3, 32, 5, 13, 80, 3, 1, (2, 0)),
    (50, 16, 4, 6, 32, 3, 1, (1, 1)),
    (1, 16, 4, 4, 16, 3, 2, (1, 1)),
    (3, 48, 11, 8, 32, 3, 2, (0, 2)),
    (40, 16, 6, 7, 32, 3, 2, (1, 1)),
    (1, 16, 30, 33, 80, 3, 2, (1, 0)),
    (1, 16, 4, 4, 16, 5, 2, (2, 2)),
    (3, 48, 11, 8, 32, 5, 2, (0, 4)),
    (40, 16, 6, 8, 32, 5, 2, (2, 1)),
    (1, 16, 30, 33, 80, 5, 2, (2, 0)),
]


@pytest.fixture(scope="module", params=VERSIONS)
def program(request) -> Path:
    sources = ["cpu_winograd_host.cpp", *(f"../../csrc/cpu/{name}.cpp" for name in KERNELS)]
    # GCC 12 warns about its own AVX-512 intrinsics.
    more = ["-Wno-maybe-uninitialized", *cpu_flags(request.param)]
    return build(f"cpu_winograd_{request.param}", sources, sanitize=False, more=more)


@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
def test_every_pass_piece_by_piece(program, tmp_path, geometry, dtype, mixed):
    n, c, height, width, k, kernel, stride, padding = geometry
    draw = random.Random(str((geometry, dtype, mixed)))
    kind = DTYPES[dtype]
    mixed = mixed and -(-kernel // stride) == 2
    last = {"memory_format": torch.channels_last}
    x = torch.randn(n, c, height, width).to(kind).contiguous(**last)
    w = torch.randn(k, c, kernel, kernel).to(kind)
    w = w.contiguous(memory_format=draw.choice(LAYOUTS))
    step = {"stride": stride, "padding": padding}
    exact = F.conv2d(x.double(), w.double(), **step)
    y, g = (torch.randn(exact.shape).to(kind).contiguous(**last) for _ in range(2))

    def check(operation: str, like: Tensor, inputs: dict, truth: Tensor, terms: Tensor, slope=1.0):
        flags = ["bias" in inputs, "output" in inputs, draw.random() < 0.3, mixed]
        numbers = [draw.randrange(4), draw.choice([1, 1, 2, 5])]
        numbers += [n, c, height, width, k, *exact.shape[2:], kernel, stride, *padding, *w.stride()]
        arguments = [operation, dtype, slope, *map(int, flags), *numbers]
        run(program, arguments, {name: bits(t) for name, t in inputs.items()}, tmp_path)
        ours = result_like(tmp_path, like).double()
        assert not ours.isnan().any()
        allowed = torch.finfo(kind).eps / 2 * truth.abs() + TOLERANCE[dtype] * terms.max()
        assert ((ours - truth).abs() <= allowed).all(), ((ours - truth).abs() / allowed).max()

    def biased(values: Tensor) -> Tensor:
        return values + b.double()[:, None, None]

    slope = draw.choice([0.0, 0.2, 1.0])
    b = torch.randn(k).to(kind)
    terms = F.conv2d(x.double().abs(), w.double().abs(), **step)
    inputs = {"input": x, "weight": w}
    check("forward", y, {**inputs, "bias": b}, F.leaky_relu(biased(exact), slope), terms, slope)
    masked = torch.where(y > 0, exact, exact * slope)
    check("forward", y, {**inputs, "output": y}, masked, terms, slope)

    b = torch.randn(c).to(kind)
    back, terms = (
        torch.nn.grad.conv2d_input(x.shape, w_, g_, **step)
        for w_, g_ in ((w.double(), g.double()), (w.double().abs(), g.double().abs()))
    )
    inputs = {"map": g, "weight": w}
    check("transposed", x, inputs, back, terms)
    check("transposed", x, {**inputs, "bias": b}, F.leaky_relu(biased(back), slope), terms, slope)

    gradient, terms = (
        torch.nn.grad.conv2d_weight(x_, w.shape, g_, **step)
        for x_, g_ in ((x.double(), g.double()), (x.double().abs(), g.double().abs()))
    )
    check("weight", w, {"input": x, "map": g}, gradient, terms)
