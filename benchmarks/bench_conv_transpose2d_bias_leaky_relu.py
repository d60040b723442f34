"""Transposed convolution + bias + leaky ReLU, and the layer that ends in a picture and tanh."""

from __future__ import annotations

from typing import Any

import pytest
from kernel_bench import CANDIDATES, layers_named, time_layer
from pytest_benchmark.fixture import BenchmarkFixture

from fastgen.bench.passes import BOTH
from fastgen.bench.rungs import DTYPES

OPERATION = "conv_transpose2d_bias_leaky_relu"
SHAPES = layers_named("dcgan-64 G 3", "dcgan-64 G 4", "dcgan-64 G 5")


@pytest.mark.parametrize("candidate", CANDIDATES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("pass_", ["forward", "input gradient", BOTH])
@pytest.mark.parametrize("layer", SHAPES)
def bench_conv_transpose2d_bias_leaky_relu(
    benchmark: BenchmarkFixture, ceilings: dict[str, Any], layer: str, pass_: str, dtype: str,
    candidate: str,
) -> None:  # fmt: skip
    time_layer(
        benchmark, ceilings, OPERATION, SHAPES[layer], pass_, candidate=candidate, dtype=dtype
    )
