"""Whole training steps: DCGAN-64, the WGAN-GP critic, a VAE; losses, gradients and fused Adam."""

from __future__ import annotations

from functools import cache, partial
from typing import Any

import pytest
import torch
from kernel_bench import CANDIDATES, DEVICE, skip_unless_here, time_call
from pytest_benchmark.fixture import BenchmarkFixture

from fastgen.bench.rungs import DTYPES
from fastgen.bench.steps import CPU_STEPS, STEPS, fastgen_loop, loop, work
from fastgen.ops.backend import BackendUnavailable, backend

STEPS_HERE = STEPS if DEVICE.type == "cuda" else CPU_STEPS
work_of = cache(work)


@pytest.mark.parametrize("candidate", CANDIDATES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", STEPS_HERE)
def bench_step(
    benchmark: BenchmarkFixture, ceilings: dict[str, Any], kind: str, dtype: str, candidate: str
) -> None:
    step = STEPS_HERE[kind]
    benchmark.group = f"{step.name}, width {step.width}, batch {step.batch}, {dtype}"
    skip_unless_here(candidate)
    torch.manual_seed(0)
    if candidate == "eager":
        made = loop(kind, step, dtype, None, DEVICE)
        made.step(made.images)
        time_call(benchmark, ceilings, partial(made.step, made.images), work_of(step), dtype, 3)
        return
    made = fastgen_loop(step, dtype, DEVICE)
    try:
        with backend(candidate):
            made.step(made.images)
            time_call(benchmark, ceilings, partial(made.step, made.images), work_of(step), dtype, 3)
    except BackendUnavailable as error:
        pytest.skip(str(error))
