"""A gradient penalty and its backward, timed by pytest-benchmark.

    pytest benchmarks/bench_penalty.py

Process time of one thread, grouped by critic, dtype and layout. For a ratio run
`benchmarks/penalty_ratio.py`: interleaved medians.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from critics import CRITICS, compiled_penalty_step, pair, penalty_step
from pytest_benchmark.fixture import BenchmarkFixture

from fastgen.bench.rungs import DTYPES, LAYOUTS


def eager_step(name: str, dtype: torch.dtype, layout: torch.memory_format) -> Callable[[], None]:
    critic, _, images = pair(name, dtype, layout)
    return lambda: penalty_step(critic, images)


def fastgen_step(name: str, dtype: torch.dtype, layout: torch.memory_format) -> Callable[[], None]:
    _, critic, images = pair(name, dtype, layout)
    return lambda: penalty_step(critic, images)


def compiled_step(name: str, dtype: torch.dtype, layout: torch.memory_format) -> Callable[[], None]:
    critic, _, images = pair(name, dtype, layout)
    return compiled_penalty_step(critic, images)


STEPS = {"eager": eager_step, "fastgen": fastgen_step, "whole-penalty compile": compiled_step}


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("critic", CRITICS)
def bench_penalty(
    benchmark: BenchmarkFixture, critic: str, dtype: str, layout: str, step: str
) -> None:
    benchmark.group = f"{critic} {dtype} {layout}"
    benchmark.pedantic(
        STEPS[step](critic, DTYPES[dtype], LAYOUTS[layout]), rounds=3, warmup_rounds=1
    )
