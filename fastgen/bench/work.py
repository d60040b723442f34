"""How much a computation must do: operations and numbers moved, for the roofline."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from fastgen.ops.backend import backend

from .runners import tensors_in

PRODUCTS = (
    "aten::convolution", "aten::convolution_backward", "aten::mm", "aten::addmm", "aten::bmm",
)  # fmt: skip


class Work(NamedTuple):
    """What a computation cannot do without.

    Attributes:
        operations: multiplications and additions of convolutions and matrix products; 0: it only
            moves numbers.
        numbers: how many numbers are read and written; bytes are that times the size of one.
    """

    operations: int
    numbers: int

    def bytes(self, dtype: torch.dtype) -> int:
        """Bytes read and written in a precision."""
        return self.numbers * dtype.itemsize

    def bound(self, dtype: torch.dtype, bandwidth: float, rate: float) -> tuple[str, float]:
        """(which ceiling bounds it, the least seconds that it allows)."""
        floors = {"bytes": self.bytes(dtype) / bandwidth, "operations": self.operations / rate}
        name = max(floors, key=floors.__getitem__)
        return name, floors[name]


def work_per_batch(computation: Callable[[int], Callable[[], object]], batch: int) -> Work:
    """The work of a computation on batches of any size, counted at 2 and 4 and continued.

    Args:
        computation: from a batch size to the computation, which must be fastgen's own: it computes
            no convolution in vain.

    Numbers are those of the convolutions and matrix products: each reads its tensors once and
    writes its result once; all else could be fused into them. What does not grow with the batch
    (weights) and what does (maps) are told apart by the two counts.
    """
    small, large = _count(computation(2)), _count(computation(4))
    return Work(
        *(two + (four - two) * (batch - 2) // 2 for two, four in zip(small, large, strict=True))
    )


def _count(computation: Callable[[], object]) -> Work:
    # oneDNN's fused convolutions are unknown to the counter; without it they are PyTorch's own.
    with (
        torch.backends.mkldnn.flags(enabled=False),
        backend("torch"),
        FlopCounterMode(display=False) as operations,
        _Traffic() as traffic,
    ):
        computation()
    return Work(operations.get_total_flops(), traffic.numbers)


class _Traffic(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the numbers that convolutions and matrix products read and write."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.numbers = 0

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if func.name().split(".")[0] in PRODUCTS:
            self.numbers += sum(map(Tensor.numel, tensors_in([list(args), result])))
        return result
