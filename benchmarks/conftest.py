"""The clock of all benchmarks: process time of one thread on a CPU, the device's time on a GPU."""

from __future__ import annotations

import os

# Threads that spin while they wait would count as computing.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import pytest
import torch
from kernel_bench import DEVICE, clock

from fastgen.bench import peers
from fastgen.bench.ladder import ceilings as measure_ceilings

torch.set_num_threads(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        item.add_marker(pytest.mark.benchmark(timer=clock))


@pytest.fixture(scope="session", autouse=True)
def _settings() -> object:
    with peers.settings():
        yield


@pytest.fixture(scope="session")
def ceilings(_settings: object) -> dict[str, object]:
    """Copy bandwidth and matrix rates, measured once."""
    return measure_ceilings(DEVICE)
