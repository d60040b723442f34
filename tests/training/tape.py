"""A stand-in for CUDA graphs that runs anywhere: it writes down every operation and repeats them.

As a graph does, it remembers *memory*, not tensors: an operation's arguments are aliases of what
they were when it was recorded, results go where they went then, nothing between the operations runs
again, and recording leaves no trace in memory or random numbers. What a graph would read by luck is
made visible: memory of the recording is full of NaN until the first replay, and memory that nobody
else holds any more is reported.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from fastgen.training.graphs import CaptureError, Recording

T = TypeVar("T")
aten = torch.ops.aten


class Entry(NamedTuple):
    operation: Any
    args: Any
    kwargs: Any
    fresh: list[tuple[int, Tensor]]


def storage_of(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


class Writer(TorchDispatchMode):
    """Runs and writes down."""

    def __init__(self) -> None:
        super().__init__()
        self.entries: list[Entry] = []
        self.outside: dict[int, Tensor] = {}  # what was there before; the aliases keep it alive
        self.before: dict[int, Tensor] = {}
        self.inside: dict[int, Tensor] = {}

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        if operation is aten._local_scalar_dense.default:
            raise RuntimeError("operation not permitted when stream is capturing")
        kwargs = kwargs or {}
        args, kwargs = tree_map_only(Tensor, lambda t: t.detach(), (args, kwargs))
        for tensor in tree_leaves((args, kwargs)):
            if isinstance(tensor, Tensor):
                self._meet(tensor)
        results = operation(*args, **kwargs)
        fresh = []
        for place, result in enumerate(tree_leaves(results)):
            if isinstance(result, Tensor) and not self._known(result):
                self.inside[storage_of(result)] = result.detach()
                fresh.append((place, result.detach()))
        if fresh or operation._schema.is_mutable:
            self.entries.append(Entry(operation, args, kwargs, fresh))
        return results

    def _known(self, tensor: Tensor) -> bool:
        return storage_of(tensor) in self.outside or storage_of(tensor) in self.inside

    def _meet(self, tensor: Tensor) -> None:
        if not self._known(tensor):
            self.outside[storage_of(tensor)] = tensor.detach()
            self.before[storage_of(tensor)] = whole(tensor).clone()

    def leave_no_trace(self) -> None:
        for key, tensor in self.outside.items():
            whole(tensor).copy_(self.before[key])
        for tensor in self.inside.values():
            tensor.untyped_storage().fill_(255)  # NaN in every floating-point format
        self.before.clear()


def whole(tensor: Tensor) -> Tensor:
    """All bytes of the memory that a tensor is a view of."""
    return torch.empty(0, dtype=torch.uint8).set_(tensor.untyped_storage())  # type: ignore[call-overload]


def aliases(writer: Writer) -> Counter[int]:
    """How many tensors of the tape share each memory."""
    written = [(entry.args, entry.kwargs) for entry in writer.entries]
    tensors = [t for t in tree_leaves((written, list(writer.outside.values()))) if is_tensor(t)]
    return Counter(storage_of(tensor) for tensor in {id(t): t for t in tensors}.values())


def is_tensor(thing: object) -> bool:
    return isinstance(thing, Tensor)


class Tape:
    """Graphs whose replay repeats what was written down.

    Attributes:
        recorded, replayed: how many.
        bytes: what `room` answers.
    """

    def __init__(self, room: int = 2**30) -> None:
        self.device = torch.device("cpu")
        self.recorded = self.replayed = self.apart_from = 0
        self.bytes = room

    @contextmanager
    def apart(self) -> Iterator[None]:
        self.apart_from += 1
        yield

    def record(self, work: Callable[[], T]) -> Recording[T]:
        writer, state = Writer(), torch.get_rng_state()
        try:
            with writer:
                results = work()
        except Exception as error:
            raise CaptureError(str(error)) from error
        finally:
            torch.set_rng_state(state)
            writer.leave_no_trace()
        self.recorded += 1
        own = aliases(writer)

        def replay() -> None:
            self.replayed += 1
            for key, tensor in writer.outside.items():
                # The tape's own aliases, and the object by which Python knows the memory.
                others = torch._C._storage_Use_Count(key) - own[key] - 1
                assert others > 0, f"a replay reads freed memory, of shape {tuple(tensor.shape)}"
            with torch.no_grad(), torch.autocast("cpu", enabled=False):
                for operation, args, kwargs, fresh in writer.entries:
                    results = tree_leaves(operation(*args, **kwargs))
                    for place, there in fresh:
                        there.copy_(results[place])

        return Recording(results, replay)

    def finish(self) -> None:
        pass

    def room(self) -> int:
        return self.bytes
