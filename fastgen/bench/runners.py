"""How one candidate is timed: process time, CUDA events, or replays of a CUDA graph."""

from __future__ import annotations

import math
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

Candidate = Callable[..., object]
Method = Literal["auto", "graph", "events"]

SAMPLE_S = 2e-3  # the least that one sample lasts: 1000 times what an event resolves
GRAPH_BELOW_S = 100e-6
LEAST_CAPTURED = 20


class Runner(Protocol):
    method: str

    def sample(self) -> float:
        """Seconds per call, over one sample."""


class Turns:
    """Calls a candidate with one argument set after the other, across samples."""

    def __init__(self, function: Candidate, arguments: Sequence[tuple[Any, ...]]) -> None:
        self.function = function
        self.arguments = arguments
        self.next = 0
        # As many results as argument sets stay alive: outputs rotate through memory like inputs.
        self.results: deque[object] = deque(maxlen=len(arguments))

    def call(self, times: int) -> None:
        for _ in range(times):
            self.results.append(self.function(*self.arguments[self.next]))
            self.next = (self.next + 1) % len(self.arguments)


def calls_for(seconds_per_call: float) -> int:
    return max(1, min(10_000, round(SAMPLE_S / max(seconds_per_call, 1e-9))))


class Process:
    method = "process"

    def __init__(
        self, function: Candidate, arguments: Sequence[tuple[Any, ...]], warmup_s: float
    ) -> None:
        self.turns = Turns(function, arguments)
        self.calls = 1
        self.wall_samples: list[float] = []
        self.sample()
        fastest, spent = float("inf"), 0.0
        while spent < warmup_s or fastest == float("inf"):
            seconds = self.sample()
            fastest = min(fastest, seconds)
            # A clock that stands still still comes to an end.
            spent += max(seconds, 1e-6)
        self.calls = calls_for(fastest)

    def sample(self) -> float:
        wall, start = time.perf_counter(), time.process_time()
        self.turns.call(self.calls)
        seconds = (time.process_time() - start) / self.calls / torch.get_num_threads()
        self.wall_samples.append((time.perf_counter() - wall) / self.calls)
        return seconds


def cuda_runners(
    candidates: Mapping[str, Candidate],
    arguments: Sequence[tuple[Any, ...]],
    method: Method,
    warmup_s: float,
) -> Mapping[str, Runner]:
    events = {name: Events(function, arguments, warmup_s) for name, function in candidates.items()}
    fastest = min(runner.seconds for runner in events.values())
    # Launching may take a hundred times as long as computing: only a replay tells what it is.
    if method == "events" or (method == "auto" and fastest > 100 * GRAPH_BELOW_S):
        return events

    graphs = {}
    for name, function in candidates.items():
        events[name].turns.results.clear()  # their memory is the graph's to use
        try:
            graphs[name] = Graph(function, arguments, events[name].seconds)
        except RuntimeError as error:
            if method == "graph":
                raise RuntimeError(f"{name} cannot be captured in a CUDA graph: {error}") from error
            first = (str(error).splitlines() or [""])[0]
            warnings.warn(f"{name} cannot be captured ({first}): timed by events", stacklevel=3)
            return events
    replayed = {name: graph.sample() for name, graph in graphs.items()}
    hidden = all(events[name].seconds < 1.1 * seconds for name, seconds in replayed.items())
    if method == "auto" and min(replayed.values()) > GRAPH_BELOW_S and hidden:
        return events
    return graphs


class Events:
    method = "events"

    def __init__(
        self, function: Candidate, arguments: Sequence[tuple[Any, ...]], warmup_s: float
    ) -> None:
        self.turns = Turns(function, arguments)
        self.calls = 1
        self.turns.call(len(arguments))
        torch.cuda.synchronize()
        self.seconds = float("inf")
        end = time.monotonic() + warmup_s
        while True:
            self.seconds = min(self.seconds, self.sample())
            self.calls = calls_for(self.seconds)
            if time.monotonic() >= end:
                break

    def sample(self) -> float:
        start, end = _events()
        # One call ahead, not counted: the device is busy while the first counted one is launched.
        self.turns.call(1)
        start.record()
        self.turns.call(self.calls)
        end.record()
        end.synchronize()
        return float(1e-3 * start.elapsed_time(end) / self.calls)


def _events() -> tuple[torch.cuda.Event, torch.cuda.Event]:
    first, last = (
        torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        for _ in range(2)
    )
    return first, last


class Graph:
    method = "graph"

    def __init__(
        self, function: Candidate, arguments: Sequence[tuple[Any, ...]], seconds: float
    ) -> None:
        self.turns = Turns(function, arguments)
        # Enough for the start of a replay not to count, though launching made `seconds` too long.
        calls = max(calls_for(seconds), LEAST_CAPTURED)
        self.calls = math.ceil(calls / len(arguments)) * len(arguments)
        self.replays = 1

        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            self.turns.call(len(arguments))
        torch.cuda.current_stream().wait_stream(stream)
        torch.cuda.synchronize()
        # What a call returns outside the graph too is not the graph's own: an argument or a state.
        warm_up = list(self.turns.results)
        self.foreign = storages([*arguments, warm_up])

        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph, stream=stream):
            self.turns.call(self.calls)
        del warm_up  # not earlier: its memory could be given out again, and look foreign
        self.replays = math.ceil(calls_for(self.sample()) / self.calls)

    def sample(self) -> float:
        start, end = _events()
        self.graph.replay()  # not counted: the device is busy while the counted one is launched
        start.record()
        for _ in range(self.replays):
            self.graph.replay()
        end.record()
        end.synchronize()
        return float(1e-3 * start.elapsed_time(end) / (self.calls * self.replays))

    def check(self, name: str) -> None:
        """Poison the outputs and replay: whatever is still NaN was not written."""
        outputs = [
            tensor
            for tensor in tensors_in(list(self.turns.results))
            if tensor.is_floating_point()
            and not storages(tensor) & self.foreign
            and not _overlaps_itself(tensor)
        ]
        with torch.no_grad():
            for tensor in outputs:
                tensor.fill_(float("nan"))
            self.graph.replay()
            unwritten = sum(bool(tensor.isnan().any()) for tensor in outputs)
        if unwritten:
            raise RuntimeError(
                f"{name}: a replay leaves {unwritten} of {len(outputs)} outputs unwritten or NaN"
            )


def tensors_in(values: object) -> Iterator[Tensor]:
    if isinstance(values, Tensor):
        yield values
    elif isinstance(values, Mapping):
        for value in values.values():
            yield from tensors_in(value)
    elif isinstance(values, list | tuple):
        for value in values:
            yield from tensors_in(value)


def _overlaps_itself(tensor: Tensor) -> bool:
    """Whether it was expanded: one number stands for several, and none of them can be written."""
    return any(n > 1 and step == 0 for n, step in zip(tensor.shape, tensor.stride(), strict=True))


def storages(values: object) -> set[int]:
    return {tensor.untyped_storage().data_ptr() for tensor in tensors_in(values)} - {0}
