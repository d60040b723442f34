"""Recording work on a GPU once and repeating it without Python: what is asked of a CUDA graph.

`Graphs` is the seam: `CudaGraphs` is the one that computes, the tests put a recorder in its place
that runs anywhere.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
import torch

T = TypeVar("T")


class CaptureError(RuntimeError):
    """Work could not be captured in a CUDA graph.

    Nothing has changed by the attempt: no weight, optimizer state, buffer or random number.
    """


@dataclass(frozen=True)
class Recording(Generic[T]):
    """Recorded work.

    Attributes:
        results: what the work returned; its tensors hold nothing before the first replay, and each
            replay overwrites them.
        replay: does the work again, on the memory it was recorded with, without waiting.
    """

    results: T
    replay: Callable[[], None]


class Graphs(Protocol):
    """Makes recordings, all of which share one pool of memory.

    Two recordings may therefore overwrite what the other one left over, but nothing that the other
    one returned, as long as they are replayed in the order in which they were recorded.

    Attributes:
        device: where the work runs.
    """

    device: torch.device

    def apart(self) -> AbstractContextManager[None]:
        """A context for doing the work eagerly before it is recorded (warm-up)."""

    def record(self, work: Callable[[], T]) -> Recording[T]:
        """Record what the function does on the device; nothing of it is executed.

        Raises:
            CaptureError: it cannot be recorded.
        """

    def finish(self) -> None:
        """Wait for every replay, so that recordings may be dropped."""

    def room(self) -> int:
        """How many bytes of the device may be spent on what makes replays faster."""


class CudaGraphs:
    """CUDA graphs of one device.

    What a graph must not freeze lies in device memory. For random numbers torch sees to that: a
    graph reads its generators' seed and offset from two tensors, which each replay fills with the
    generator's present ones. So ``generator.manual_seed(s)`` before a replay gives the numbers that
    eager work would draw after it.

    Args:
        device: with its index.
        generators: of this device, beside its default one, that the work draws from.
    """

    def __init__(self, device: torch.device, generators: Sequence[torch.Generator] = ()) -> None:
        self.device = device
        default = torch.cuda.default_generators[device.index]
        self._generators = [default, *generators]
        # cuBLAS keeps a workspace for each stream, and torch frees them all whenever torch.compile
        # records a graph of its own. A graph may only use one that was made while it was recorded,
        # in the graphs' own memory: so nothing else runs on the recording stream, which is one of
        # those of high priority that torch hands out to nobody who does not ask for them.
        self._warm_up = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._stream = torch.cuda.Stream(device, priority=-1)  # type: ignore[no-untyped-call]
        self._pool = torch.cuda.graph_pool_handle()

    @contextmanager
    def apart(self) -> Iterator[None]:
        """Work inside runs on a stream apart, after all before it and before all after it."""
        current = torch.cuda.current_stream(self.device)
        self._warm_up.wait_stream(current)
        with torch.cuda.stream(self._warm_up):
            yield
        current.wait_stream(self._warm_up)

    def record(self, work: Callable[[], T]) -> Recording[T]:
        """Record work as a CUDA graph; the work must not wait for the device.

        Raises:
            CaptureError: what went wrong first, in one line.
        """
        graph = torch.cuda.CUDAGraph()
        for generator in self._generators:
            graph.register_generator_state(generator)
        states = [generator.get_state() for generator in self._generators]
        # A weight that autocast has cast outside would be read from memory that is free by then.
        torch.clear_autocast_cache()

        with torch.cuda.device(self.device):
            before = torch.cuda.current_stream()
            first: BaseException | None = None
            try:
                # "thread_local": what other threads of the program do with CUDA is their business.
                with torch.cuda.graph(
                    graph, self._pool, self._stream, capture_error_mode="thread_local"
                ):
                    try:
                        results = work()
                    except BaseException as error:
                        first = error
                        raise
            except BaseException as error:
                # The end of a broken capture raises again, before torch has put things back.
                torch.cuda.set_stream(before)
                self._renew_generators(states)
                _BROKEN.append(graph)
                cause = first or error
                try:
                    if not isinstance(cause, Exception):
                        raise cause from None
                    raise CaptureError(_one_line(cause)) from cause
                finally:
                    # An error that its own frame remembers would keep the tensors of the broken
                    # work, on the recording stream, until a garbage collection.
                    del first, cause
        return Recording(results, graph.replay)

    def finish(self) -> None:
        """Wait for the device."""
        torch.cuda.synchronize(self.device)

    def room(self) -> int:
        """A quarter of the memory that is free."""
        return int(torch.cuda.mem_get_info(self.device)[0]) // 4

    def _renew_generators(self, states: list[torch.Tensor]) -> None:
        # A generator whose capture broke off believes that it goes on and refuses to draw: it gets
        # another state object with the same contents.
        for generator, state in zip(self._generators, states, strict=True):
            fresh = torch.Generator(self.device)
            fresh.set_state(state)
            generator.graphsafe_set_state(fresh.graphsafe_get_state())


_BROKEN: list[object] = []
# The allocator may keep asking a graph whose capture broke off, so these are never destroyed.


def graphs_for(device: torch.device) -> Graphs | None:
    """What records work on this device; None where nothing does."""
    return CudaGraphs(device) if device.type == "cuda" else None


def record(graphs: Graphs, work: Callable[[], T]) -> Recording[T]:
    """Record work, and refuse what a replay would silently repeat: the host's random numbers.

    Raises:
        CaptureError: see `Graphs.record`; or the work drew random numbers on the host.
    """
    sources = [source for source in HOST_RANDOMNESS if source.device != graphs.device.type]
    states = [source.get() for source in sources]
    try:
        recording = graphs.record(work)
        for source, state in zip(sources, states, strict=True):
            if not _same(source.get(), state):
                raise CaptureError(
                    f"it draws random numbers from {source.name} on the host, which a graph would "
                    "repeat: draw them on the device"
                )
    finally:
        for source, state in zip(sources, states, strict=True):
            source.set(state)
    return recording


@dataclass(frozen=True)
class _Source:
    name: str
    get: Callable[[], Any]
    set: Callable[[Any], object]
    device: str = "host"
    """Whose random numbers these are, where they are some device's."""


HOST_RANDOMNESS = (
    _Source(
        "torch's CPU generator",
        torch.default_generator.get_state,
        torch.default_generator.set_state,
        "cpu",
    ),
    _Source("Python's random", random.getstate, random.setstate),
    _Source("numpy.random", np.random.get_state, np.random.set_state),
)


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, np.ndarray):
        return bool(np.array_equal(one, other))
    if isinstance(one, tuple):
        return all(map(_same, one, other))
    return bool(one == other)


def _one_line(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return text[0].rstrip(" .") if text else type(error).__name__
