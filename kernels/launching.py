"""Launches that are worked out once for each kind of call and then done again.

Working out a launch takes the host longer than most kernels take the device: checks, a tile, a
grid, and Triton's own look at every argument, 10 to 20 us each on one core of an EPYC. What comes
out depends on the shapes, strides, dtypes, devices and alignments of the tensors and on the other
arguments alone. So the first call of a kind is watched: which tensors it makes, which kernels it
launches on which of them, which it returns. Later ones make the same tensors and launch the same
compiled kernels, by `CompiledKernel.__getitem__`, Triton's way of launching what is compiled.

A call that does anything else with PyTorch, copies or fills a tensor, is worked out every time.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

MOST_KINDS = 4096  # of calls that an operator remembers
ALIGNED = 16  # bytes; Triton compiles other code for other addresses

_aten = torch.ops.aten
_FRESH = frozenset(
    {
        _aten.empty.memory_format,
        _aten.empty_like.default,
        _aten.empty_strided.default,
        _aten.new_empty.default,
        _aten.new_empty_strided.default,
    }
)
_local = threading.local()


def launch(kernel: Any, grid: tuple[int, ...], *arguments: Any, **options: Any) -> None:
    """``kernel[grid](*arguments, **options)``; all tensors among `arguments`, by their places."""
    notes: _Notes | None = getattr(_local, "notes", None)
    if notes is None:
        kernel[grid](*arguments, **options)
        return
    notes.watching = False  # the interpreter itself computes with tensors
    try:
        compiled = kernel[grid](*arguments, **options)
    finally:
        notes.watching = True
    if hasattr(compiled, "launch_metadata"):
        named = dict(zip(kernel.arg_names, arguments, strict=False)) | options
        everything = [named[name] for name in kernel.arg_names]
        notes.launch(compiled[*grid, *(1,) * (3 - len(grid))], everything)
    else:  # interpreted: there is nothing that was compiled
        notes.launch(partial(kernel[grid], **options), list(arguments))


class Replayed:
    """An operator's function, whose launches are worked out once for each kind of call.

    Args:
        function: takes tensors, numbers and None; returns tensors that it made.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function
        self._plans: dict[Hashable, Callable[[list[Tensor]], Any]] = {}

    def __call__(self, *arguments: Any) -> Any:
        words: list[Hashable] = []
        tensors: list[Tensor] = []
        for argument in arguments:
            if isinstance(argument, Tensor):
                tensors.append(argument)
                words += (
                    argument.shape,
                    argument.stride(),
                    argument.dtype,
                    argument.device,
                    argument.data_ptr() % ALIGNED,
                )
            else:
                words.append(argument)
        kind = tuple(words)
        plan = self._plans.get(kind)
        if plan is not None:
            return plan(tensors)
        # A tensor that is given twice would hide which of its places a kernel read.
        if kind in self._plans or len({id(t) for t in tensors}) < len(tensors):
            return self._function(*arguments)
        return self._work_out(kind, tensors, arguments)

    def _work_out(self, kind: Hashable, tensors: list[Tensor], arguments: tuple[Any, ...]) -> Any:
        notes = _Notes(tensors)
        before, _local.notes = getattr(_local, "notes", None), notes
        try:
            with notes:
                result = self._function(*arguments)
        finally:
            _local.notes = before
        if len(self._plans) >= MOST_KINDS:
            self._plans.clear()
        self._plans[kind] = notes.plan(result)
        return result


class _Notes(TorchDispatchMode):
    """What a function does with the tensors that it is given."""

    def __init__(self, tensors: list[Tensor]) -> None:
        super().__init__()
        self.watching = True
        self._known = list(enumerate(tensors))
        self._count = len(tensors)
        self._fresh: list[tuple[Any, ...]] = []
        self._launches: list[tuple[Callable[..., Any], list[Any], list[tuple[int, int]]]] = []
        self._complete = True

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if self.watching and func in _FRESH:
            self._known.append((self._count, result))
            self._count += 1
            self._fresh.append((result.shape, result.stride(), result.dtype, result.device))
        elif self.watching and func is _aten.detach.default:  # PyTorch's own, of a fresh one
            self._known.append((self._place(args[0]), result))
        elif self.watching:
            self._complete = False
        return result

    def launch(self, run: Callable[..., Any], arguments: list[Any]) -> None:
        """Note a launch: the tensors among its arguments by their places among the known ones."""
        places = [(i, self._place(a)) for i, a in enumerate(arguments) if isinstance(a, Tensor)]
        kept = [None if isinstance(a, Tensor) else a for a in arguments]
        self._launches.append((run, kept, places))

    def plan(self, result: Any) -> Any:
        """What does the same for other tensors of the same kind; None where nothing does."""
        results = result if isinstance(result, tuple) else (result,)
        places = [None if r is None else self._place(r) for r in results]
        if not self._complete:
            return None
        fresh, launches, alone = self._fresh, self._launches, not isinstance(result, tuple)
        empty = torch.empty_strided

        def again(tensors: list[Tensor]) -> Any:
            for shape, stride, dtype, device in fresh:
                tensors.append(empty(shape, stride, dtype=dtype, device=device))
            for run, kept, holes in launches:
                arguments = kept.copy()
                for hole, place in holes:
                    arguments[hole] = tensors[place]
                run(*arguments)
            if alone:
                return None if places[0] is None else tensors[places[0]]
            return tuple([None if place is None else tensors[place] for place in places])

        return again

    def _place(self, tensor: Any) -> int:
        for place, known in self._known:
            if known is tensor:
                return place
        self._complete = False
        return -1
