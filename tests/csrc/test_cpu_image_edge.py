"""The image-edge kernels of csrc/cpu in every version that this machine runs, on guarded memory,
sanitized.
"""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from host import bits, build, cpu_flags, cpu_versions, result_like, run
from torch import Tensor

# The least and the most; tests/ops/test_cpu_image_edge.py holds those between to them.
VERSIONS = sorted({cpu_versions()[0], cpu_versions()[-1]})
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float64": torch.float64}
LAYOUTS = (torch.contiguous_format, torch.channels_last)
KERNELS = (
    "product",
    "conv2d_bias_leaky_relu",
    "conv2d_bias_leaky_relu_weight",
    "conv_transpose2d_bias_leaky_relu",
)

# (batch, channels, height, width, filters, kernel, stride, padding)
GEOMETRIES = [
    (1, 1, 1, 1, 1, (1, 1), (1, 1), (0, 0)),
    (2, 3, 17, 13, 16, (3, 3), (1, 1), (1, 1)),
    (1, 3, 16, 16, 64, (4, 4), (2, 2), (1, 1)),
    (20, 3, 6, 9, 33, (3, 3), (1, 1), (1, 1)),
    (2, 1, 28, 28, 40, (5, 5), (2, 2), (2, 2)),
    (1, 2, 9, 10, 17, (7, 7), (1, 1), (3, 3)),
    (3, 4, 5, 7, 72, (2, 3), (2, 1), (0, 2)),
    (1, 4, 12, 3, 130, (1, 3), (1, 3), (0, 1)),
    (1, 3, 30, 39, 5, (6, 1), (4, 2), (3, 0)),
    (1, 3, 3, 120, 96, (3, 6), (1, 1), (4, 7)),
    (2, 4, 8, 8, 9, (2, 2), (5, 5), (1, 1)),
    (1, 4, 18, 18, 3, (16, 16), (3, 3), (2, 2)),
]


@pytest.fixture(scope="module", params=VERSIONS)
def program(request) -> Path:
    sources = ["cpu_image_edge_host.cpp", *(f"../../csrc/cpu/{name}.cpp" for name in KERNELS)]
    # GCC 12 warns about its own AVX-512 intrinsics.
    more = ["-Wno-maybe-uninitialized", *cpu_flags(request.param)]
    return build(f"cpu_image_edge_{request.param}", sources, more=more)


def gapped(tensor: Tensor) -> Tensor:
    """The same numbers among NaN: no layout at all."""
    n, c, h, w = tensor.shape
    wide = torch.full((n, c, h, 2 * w - 1), torch.nan).to(tensor.dtype)
    wide[..., ::2] = tensor
    return wide[..., ::2]


def check(program: Path, folder: Path, geometry: tuple, dtype: str, seed: int) -> None:
    """The four passes of one shape against float64; layouts and options by chance."""
    draw = random.Random(seed)
    n, c, height, width, k, kernel, stride, padding = geometry
    kind = DTYPES[dtype]
    x, w = torch.randn(n, c, height, width).to(kind), torch.randn(k, c, *kernel).to(kind)
    x = x.contiguous(memory_format=draw.choice(LAYOUTS))
    w = w.contiguous(memory_format=draw.choice(LAYOUTS))
    if draw.random() < 0.2:
        x, w = gapped(x), gapped(w)
    exact = F.conv2d(x.double(), w.double(), None, stride, padding)
    y, g = (torch.randn(exact.shape).to(kind) for _ in range(2))
    last, map_last = draw.random() < 0.5, draw.random() < 0.5
    y = y.contiguous(memory_format=LAYOUTS[last])
    g = g.contiguous(memory_format=LAYOUTS[map_last])

    def call(operation: str, shape: tuple, out_last: bool, inputs: dict, **options) -> Tensor:
        flags = [out_last, map_last, "bias" in inputs, "output" in inputs]
        flags += [options.get("tanh", False), draw.random() < 0.5]
        numbers = [n, c, height, width, k, *exact.shape[2:], *kernel, *stride, *padding]
        like = torch.empty(shape, dtype=kind, memory_format=LAYOUTS[out_last])
        strides = (*x.stride(), *(like if operation == "weight" else w).stride())
        arguments = [operation, dtype, options.get("slope", 1.0), *map(int, flags)]
        arguments += [draw.randrange(4), *numbers, *strides]
        run(program, arguments, {name: bits(t) for name, t in inputs.items()}, folder)
        return result_like(folder, like).double()

    def compare(ours: Tensor, truth: Tensor, terms: Tensor) -> None:
        # One rounding of the result, and roundings of a sum of so many absolute terms.
        few = 1e-14 if dtype == "float64" else 2e-6
        allowed = torch.finfo(kind).eps / 2 * truth.abs() + few * terms + 1e-30
        assert not ours.isnan().any()
        assert ((ours - truth).abs() <= allowed).all(), ((ours - truth).abs() / allowed).max()

    b, slope = torch.randn(k).to(kind), draw.choice([0.0, 0.2, 1.0])
    bias = {"bias": b} if draw.random() < 0.5 else {}
    pre = exact + b.double()[:, None, None] if bias else exact
    terms = F.conv2d(x.double().abs(), w.double().abs(), b.double().abs(), stride, padding)
    inputs = {"picture": x, "weight": w, **bias}
    ours = call("forward", tuple(exact.shape), last, inputs, slope=slope)
    compare(ours, torch.where(pre > 0, pre, pre * slope), terms)
    ours = call("forward", tuple(exact.shape), last, {**inputs, "output": y}, slope=slope)
    compare(ours, torch.where(y > 0, pre, pre * slope), terms)

    b, tanh = torch.randn(c).to(kind), draw.random() < 0.5
    bias = {"bias": b} if draw.random() < 0.5 else {}
    back = (g.double(), w.double(), stride, padding)
    pre, terms = (
        torch.nn.grad.conv2d_input(x.shape, w_, g_, *back[2:])
        for g_, w_ in ((back[0], back[1]), (back[0].abs(), back[1].abs()))
    )
    if bias:
        pre, terms = (t + v.double()[:, None, None] for t, v in ((pre, b), (terms, b.abs())))
    inputs = {"map": g, "weight": w, **bias}
    out_last = draw.random() < 0.5
    ours = call("transposed", tuple(x.shape), out_last, inputs, slope=slope, tanh=tanh)
    compare(ours, pre.tanh() if tanh else torch.where(pre > 0, pre, pre * slope), terms + tanh)

    truth, terms = (
        torch.nn.grad.conv2d_weight(x_, w.shape, g_, stride, padding)
        for x_, g_ in ((x.double(), g.double()), (x.double().abs(), g.double().abs()))
    )
    compare(call("weight", tuple(w.shape), last, {"picture": x, "map": g}), truth, terms)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
def test_every_pass_on_guarded_memory(program, tmp_path, geometry, dtype):
    for seed in range(3):
        check(program, tmp_path, geometry, dtype, seed)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kernel", range(1, 8))
def test_every_kernel_and_stride(program, tmp_path, kernel, dtype):
    for stride in (1, 2):
        channels, padding = 1 + (kernel + stride) % 4, kernel // (1 + stride)
        geometry = (2, channels, 9, 21, 19, (kernel, kernel), (stride,) * 2, (padding,) * 2)
        check(program, tmp_path, geometry, dtype, kernel)
