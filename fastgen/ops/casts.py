"""Weights in autocast's dtype: each cast once in a loss, and the small ones at once.

PyTorch's autocast keeps the casts of weights until it ends, where Python cannot reach them. Without
that, a critic that scores two batches casts its weights twice, and a network of ten layers takes
twenty passes over memory of which most are too short to fill a GPU, with as many backwards. On a
CPU, where a pass costs what it moves, a DCGAN's and a critic's steps take the same time either way.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from .gradients import applier, is_followed, is_last_order, sheltered


class Casts:
    """The casts that one loss needs, made together from its second evaluation on.

    Which weights a loss casts is seen in the evaluation before. They are cast in two groups, each
    one node of the graph: the engine computes all gradients of a node or none (see
    `gradients.wanted`), so weights whose gradients nobody asks for must not share one with those
    that are being trained.

    Where a weight is used more than once its gradients are added in autocast's dtype, as by
    PyTorch's own autocast.

    Args:
        trained: the weights that the loss is differentiated in.
    """

    def __init__(self, trained: Iterable[Tensor]) -> None:
        self._trained = {id(weight): weight for weight in trained}
        self._groups: tuple[list[Tensor], list[Tensor]] = ([], [])
        self._made: dict[int, Tensor] = {}
        self._seen = _Seen()

    @contextmanager
    def shared(self) -> Iterator[None]:
        """One evaluation of the loss; the weights must not change inside."""
        before = getattr(_local, "casts", None)
        _local.casts, self._made, self._seen = self, {}, _Seen()
        try:
            yield
        finally:
            _local.casts, self._made = before, {}
            self._groups = self._seen.trained, self._seen.others

    def of(self, weight: Tensor, dtype: torch.dtype) -> Tensor:
        """The weight's cast, with its place in the graph whatever the mode at the first use."""
        made = self._made.get(id(weight))
        if made is not None and made.dtype == dtype and id(weight) in self._seen:
            return made
        trained = id(weight) in self._trained
        if made is None or made.dtype != dtype:
            group = self._groups[not trained]
            if not any(weight is member for member in group):
                group = [weight]
            with torch.enable_grad():
                casts = _apply(dtype, *group)
            self._made |= zip(map(id, group), casts, strict=True)
            made = self._made[id(weight)]
        self._seen.add(weight, trained)
        return made


class _Seen:
    """The weights asked for in one evaluation, each once, in order."""

    def __init__(self) -> None:
        self.trained: list[Tensor] = []
        self.others: list[Tensor] = []
        self._known: set[int] = set()

    def __contains__(self, weight: int) -> bool:
        return weight in self._known

    def add(self, weight: Tensor, trained: bool) -> None:
        if id(weight) not in self._known:
            self._known.add(id(weight))
            (self.trained if trained else self.others).append(weight)


_local = threading.local()


def cast(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """A weight in autocast's dtype; shared with the other uses in a loss under `Casts.shared`."""
    if tensor.dtype == dtype:
        return tensor
    if is_followed():
        return tensor.to(dtype)
    casts: Casts | None = getattr(_local, "casts", None)
    weight = tensor.is_leaf and tensor.requires_grad and tensor.dtype == torch.float32
    return casts.of(tensor, dtype) if casts is not None and weight else tensor.to(dtype)


# From here on a tensor is cast by itself: torch's call for many gives a block 2^16 numbers, so a
# few million of them keep a fraction of a GPU busy (2.8 million: 17 us on an H200).
_FILLS_A_GPU = 2**17


class _Cast(Function):
    """Tensors of one dtype in another one, the small ones by one call; its backward is itself, the
    other way.
    """

    @staticmethod
    def forward(ctx: Any, dtype: torch.dtype, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        ctx.dtype = tensors[0].dtype
        return _copies(dtype, *tensors)

    @staticmethod
    @sheltered
    def backward(ctx: Any, *grads: Tensor | None) -> Any:
        present = [grad for grad in grads if grad is not None]
        cast = _copies if is_last_order() else _apply
        casts = iter(cast(ctx.dtype, *present) if present else ())
        return None, *(None if grad is None else next(casts) for grad in grads)


def _copies(dtype: torch.dtype, *tensors: Tensor) -> tuple[Tensor, ...]:
    results = tuple(torch.empty_like(tensor, dtype=dtype) for tensor in tensors)
    pairs = list(zip(results, tensors, strict=True))
    small = [pair for pair in pairs if pair[1].numel() < _FILLS_A_GPU]
    for result, tensor in pairs:
        if tensor.numel() >= _FILLS_A_GPU:
            result.copy_(tensor)
    if small:
        torch._foreach_copy_([pair[0] for pair in small], [pair[1] for pair in small])
    return results


_apply = applier(_Cast)
