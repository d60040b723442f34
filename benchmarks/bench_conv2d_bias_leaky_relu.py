"""Convolution + bias + leaky ReLU: a picture's edge, wide layers, strided and not."""

from __future__ import annotations

from typing import Any

import pytest
from kernel_bench import CANDIDATES, layers_named, time_layer
from pytest_benchmark.fixture import BenchmarkFixture

from fastgen.bench.passes import BOTH
from fastgen.bench.rungs import DTYPES

OPERATION = "conv2d_bias_leaky_relu"
SHAPES = layers_named("vae-64 E 1", "dcgan-64 D 3", "wgan-gp-32 D 1", "wgan-gp-32 D 3")


@pytest.mark.parametrize("candidate", CANDIDATES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("pass_", ["forward", "input gradient", "weight gradient", BOTH])
@pytest.mark.parametrize("layer", SHAPES)
def bench_conv2d_bias_leaky_relu(
    benchmark: BenchmarkFixture, ceilings: dict[str, Any], layer: str, pass_: str, dtype: str,
    candidate: str,
) -> None:  # fmt: skip
    time_layer(
        benchmark, ceilings, OPERATION, SHAPES[layer], pass_, candidate=candidate, dtype=dtype
    )
