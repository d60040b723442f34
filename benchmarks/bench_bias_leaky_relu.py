"""Bias + leaky ReLU: forward, backward (mask and bias gradient), and both through autograd."""

from __future__ import annotations

from typing import Any

import pytest
from kernel_bench import CANDIDATES, scaled, time_pass
from pytest_benchmark.fixture import BenchmarkFixture

from fastgen.bench.passes import BOTH, bias_leaky_relu_pass
from fastgen.bench.rungs import DTYPES, LAYOUTS

SHAPES = ((32, 64, 64, 64), (32, 256, 8, 8))


@pytest.mark.parametrize("candidate", CANDIDATES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("pass_", ["forward", "backward", BOTH])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def bench_bias_leaky_relu(
    benchmark: BenchmarkFixture, ceilings: dict[str, Any], shape: tuple[int, ...], pass_: str,
    dtype: str, layout: str, candidate: str,
) -> None:  # fmt: skip
    shape = scaled(shape)
    measured = bias_leaky_relu_pass(shape, pass_)
    what = f"bias_leaky_relu {shape}"
    time_pass(benchmark, ceilings, measured, what, candidate=candidate, dtype=dtype, layout=layout)
