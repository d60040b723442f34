"""What the kernel benchmarks share: candidates, the clock, and what is noted beside a time.

Candidates are eager PyTorch, what `backend="auto"` picks, and every backend that can run here; one
that cannot is skipped with its reason. They run on a GPU where there is one, else on one thread.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from fastgen.bench.layers import LAYERS, Layer
from fastgen.bench.passes import Pass, layer_pass
from fastgen.bench.rungs import DTYPES, LAYOUTS
from fastgen.bench.runners import calls_for
from fastgen.bench.subjects import CPU_BATCH, over_sets, shape_of
from fastgen.bench.work import Work
from fastgen.ops.backend import BACKENDS, BackendUnavailable
from fastgen.training.devices import resolve_device

DEVICE = resolve_device("auto")
CANDIDATES = ("eager", "auto", *BACKENDS)
ROUNDS = 5


def clock() -> float:
    """Seconds of process time, or of a GPU that has finished what it was given."""
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time()


def layers_named(*names: str) -> dict[str, Layer]:
    """Layers of the fixed list by name, with the batch that suits the device."""
    found = {layer.name: layer for layer in LAYERS if layer.name in names}
    if DEVICE.type == "cuda":
        return found
    return {name: layer._replace(batch=CPU_BATCH) for name, layer in found.items()}


def scaled(shape: tuple[int, ...]) -> tuple[int, ...]:
    """A shape for one thread, eight times the rows on a GPU."""
    return (shape[0] * 8, *shape[1:]) if DEVICE.type == "cuda" else shape


def skip_unless_here(backend: str) -> None:
    """Skip a backend that cannot run on this device, with the reason."""
    if backend not in BACKENDS:
        return
    entry = BACKENDS[backend]
    if (reason := entry.missing()) is not None:
        pytest.skip(f"{backend}: {reason}")
    if not entry.runs_on(DEVICE.type, by_name=False):
        pytest.skip(f"{backend}: does not run on {DEVICE.type}, but for tests")


def time_pass(
    benchmark: BenchmarkFixture,
    ceilings: dict[str, Any],
    measured: Pass,
    what: str,
    *,
    candidate: str,
    dtype: str,
    layout: str = "channels_last",
) -> None:
    """Time one candidate of a pass in the group of its shape, pass, dtype and layout."""
    benchmark.group = f"{what}, {measured.name}, {dtype}, {layout}"
    skip_unless_here(candidate)
    torch.manual_seed(0)
    try:
        function = measured.eager if candidate == "eager" else measured.fastgen(candidate, DEVICE)
        call = over_sets(
            function, lambda: measured.make(DTYPES[dtype], DEVICE, LAYOUTS[layout]), DEVICE
        )
        call()
    except BackendUnavailable as error:
        pytest.skip(str(error))
    time_call(benchmark, ceilings, call, measured.work, dtype)


def time_layer(
    benchmark: BenchmarkFixture,
    ceilings: dict[str, Any],
    operation: str,
    layer: Layer,
    pass_: str,
    **more: str,
) -> None:
    """Time one candidate of a pass of a convolution layer."""
    what = f"{operation} {shape_of(layer)}, batch {layer.batch}"
    time_pass(benchmark, ceilings, layer_pass(layer, pass_), what, **more)


def time_call(
    benchmark: BenchmarkFixture,
    ceilings: dict[str, Any],
    call: Callable[[], object],
    work: Work,
    dtype: str,
    rounds: int = ROUNDS,
) -> None:
    """Time a call that has run once, and note its work and its share of the measured limit."""
    start = clock()
    call()
    calls = calls_for(clock() - start)
    benchmark.pedantic(call, rounds=rounds, iterations=calls)

    if benchmark.stats is None:  # --benchmark-disable
        return
    seconds = benchmark.stats.stats.median
    moved = work.bytes(DTYPES[dtype])
    bound, least = work.bound(
        DTYPES[dtype], ceilings["copy_bytes_per_second"], ceilings["operations_per_second"][dtype]
    )
    benchmark.extra_info.update(
        {
            "device": str(DEVICE), "threads": torch.get_num_threads(),
            "bytes": moved, "operations": work.operations,
            "GB/s": round(moved / seconds / 1e9, 2),
            "GFLOP/s": round(work.operations / seconds / 1e9, 2),
            "bound by": bound, "% of ceiling": round(100 * least / seconds, 1),
        }
    )  # fmt: skip
