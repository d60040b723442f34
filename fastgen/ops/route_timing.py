"""How long each of several ways takes on the tensors of a call: medians, interleaved.

A GPU's ways are timed as CUDA graphs, so that what Python and the launches cost does not hide what
the device does: a whole step is captured anyway, and outside of a graph the launches of all ways
cost about the same.
"""

from __future__ import annotations

import statistics
import warnings
from collections.abc import Callable
from typing import Any

import torch

Way = Callable[..., Any]
Clock = Callable[[Way, tuple[Any, ...]], Callable[[], float]]
"""Warms a way up and returns a function that runs it a few times: seconds of one run."""

ROUNDS = 5
LEAST = 200e-6  # seconds of one sample on a GPU: an event resolves about a microsecond
MOST_RUNS = 20


def clock_of(device: torch.device) -> Clock | None:
    """How to time ways on a device; None: not at all, the written rule decides."""
    return CLOCKS.get(device.type)


def cannot_measure_now(device: torch.device) -> bool:
    """Whether a measurement would disturb what is going on: a stream that is being captured."""
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


def measure(
    ways: dict[str, Way], arguments: tuple[Any, ...], device: torch.device
) -> dict[str, float]:
    """Median seconds of each way, interleaved over a few rounds.

    A way that fails is infinitely slow and is warned about; when all fail, the first failure is
    raised, and so is a lack of memory.
    """
    clock = clock_of(device)
    assert clock is not None
    samplers: dict[str, Callable[[], float]] = {}
    failures: dict[str, Exception] = {}
    with torch.no_grad():
        for name, way in ways.items():
            try:
                samplers[name] = clock(way, arguments)
            except torch.OutOfMemoryError:
                raise
            except (RuntimeError, ValueError) as error:
                failures[name] = error
        if not samplers:
            raise next(iter(failures.values()))
        for name, failure in failures.items():
            first_line = (str(failure) or type(failure).__name__).splitlines()[0]
            warnings.warn(f"{name} cannot run and is passed over: {first_line}", stacklevel=2)
        samples: dict[str, list[float]] = {name: [] for name in samplers}
        for _ in range(ROUNDS):
            for name, sampler in samplers.items():
                samples[name].append(sampler())
    return {name: statistics.median(samples[name]) if name in samples else FAILED for name in ways}


FAILED = 1e9
"""Seconds that stand for a way that cannot run (JSON knows no infinity)."""


def _cuda_clock(way: Way, arguments: tuple[Any, ...]) -> Callable[[], float]:
    # Outside the graph first: kernels are compiled, cuDNN makes its plans.
    device = next(a.device for a in arguments if isinstance(a, torch.Tensor))
    stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        way(*arguments)
        seconds = _event_seconds(lambda: way(*arguments), stream)
    runs = max(1, min(MOST_RUNS, round(LEAST / max(seconds, 1e-6))))

    graph = torch.cuda.CUDAGraph()
    # The end of a broken capture raises before torch has put the stream back; the outer context
    # does it.
    with torch.cuda.stream(torch.cuda.current_stream(device)):
        try:
            with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
                for _ in range(runs):
                    way(*arguments)
        except BaseException:
            _BROKEN.append(graph)
            raise
    torch.cuda.current_stream(device).wait_stream(stream)
    graph.replay()

    return lambda: _event_seconds(graph.replay, torch.cuda.current_stream(device)) / runs


_BROKEN: list[object] = []
# The allocator may keep asking a graph whose capture broke off, so these are never destroyed.


def _event_seconds(work: Callable[[], Any], stream: torch.cuda.Stream) -> float:
    start = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    end = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    start.record(stream)
    work()
    end.record(stream)
    end.synchronize()
    return float(start.elapsed_time(end)) / 1e3


CLOCKS: dict[str, Clock] = {"cuda": _cuda_clock}
"""By kind of device. A CPU's few candidates are chosen by rule: its clock is too noisy."""
