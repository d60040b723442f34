"""The reparameterization with its divergence: latents as rows and as pictures.

Eager PyTorch draws its noise by `randn_like` and keeps it; fastgen draws Philox noise twice. The
backward alone is given the noise in eager.
"""

from __future__ import annotations

from typing import Any

import pytest
from kernel_bench import CANDIDATES, scaled, time_pass
from pytest_benchmark.fixture import BenchmarkFixture

from fastgen.bench.passes import BOTH, reparameterize_pass
from fastgen.bench.rungs import DTYPES

SHAPES = ((4096, 512), (16, 4, 64, 64))


@pytest.mark.parametrize("candidate", CANDIDATES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("pass_", ["forward", "backward", BOTH])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def bench_reparameterize(
    benchmark: BenchmarkFixture, ceilings: dict[str, Any], shape: tuple[int, ...], pass_: str,
    dtype: str, candidate: str,
) -> None:  # fmt: skip
    shape = scaled(shape)
    measured = reparameterize_pass(shape, pass_)
    what = f"reparameterize_kl {shape}"
    time_pass(
        benchmark, ceilings, measured, what, candidate=candidate, dtype=dtype, layout="contiguous"
    )
