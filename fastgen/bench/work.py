"""How much a computation must do: operations and numbers moved, for the roofline."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from fastgen.ops import cpu_winograd
from fastgen.ops.backend import backend

from .runners import tensors_in


class Work(NamedTuple):
    """What a computation cannot do without.

    Attributes:
        operations: multiplications and additions of convolutions and matrix products; 0: it only
            moves numbers.
        numbers: how many numbers are read and written; bytes are that times the size of one.
        least_operations: the same operations where Winograd's method takes fewer and
            fastgen has kernels for it (on a CPU); 0: not counted.
    """

    operations: int
    numbers: int
    least_operations: int = 0

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
    # Without oneDNN fastgen takes none of the ways that multiply by zeros because that is faster.
    onednn = torch.backends.mkldnn
    before = onednn.enabled
    onednn.enabled = False  # type: ignore[assignment]
    try:
        with backend("torch"), Products() as products:
            computation()
    finally:
        onednn.enabled = before
    return Work(products.operations, products.numbers, products.least_operations)


class Products(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts, while it is on, the operations and numbers of convolutions and matrix products.

    PyTorch's FlopCounterMode cannot: its hooks stop `torch.autograd.grad` with a gradient penalty.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.operations = self.numbers = self.least_operations = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func.name().split(".")[0]
        if name in PRODUCTS:
            operations, least = PRODUCTS[name](func, args, result)
            self.operations += operations
            self.least_operations += least
            self.numbers += sum(map(Tensor.numel, tensors_in([list(args), result])))
        return result


def _matrices(func: Any, args: Any, result: Any) -> tuple[int, int]:
    operations = int(flop_registry[func.overloadpacket](*args, out_val=result))
    return operations, operations


def _convolution(func: Any, args: Any, result: Any) -> tuple[int, int]:
    stride, dilation, transposed, groups = args[3], args[5], args[6], args[8]
    plain = groups == 1 and max(dilation) == 1
    return _of_convolution(args[1], args[0] if transposed else result, stride if plain else None)


def _convolution_backward(func: Any, args: Any, result: Any) -> tuple[int, int]:
    grad, source, weight = args[:3]
    stride, dilation, transposed, groups, asked = args[4], args[6], args[7], args[9], args[10]
    plain = groups == 1 and max(dilation) == 1
    once = _of_convolution(weight, source if transposed else grad, stride if plain else None)
    wanted = int(sum(asked[:2]))
    return wanted * once[0], wanted * once[1]


def _of_convolution(weight: Tensor, smaller: Tensor, stride: list[int] | None) -> tuple[int, int]:
    """Two for each number of the weight, which holds every pair of channels that meets, at each
    place of the smaller map; and by Winograd's method two for each point of each tile."""
    by_definition = 2 * weight.numel() * len(smaller) * smaller.shape[2:].numel()
    if stride is None or (tuple(weight.shape[2:]), tuple(stride)) not in cpu_winograd.KINDS:
        return by_definition, by_definition
    pairs = weight.shape[0] * weight.shape[1]
    if any(channels % cpu_winograd.CHANNELS for channels in weight.shape[:2]):
        return by_definition, by_definition
    kind = weight.shape[2], stride[0]
    products = math.prod(
        cpu_winograd.products(size, *kind, mixed=cpu_winograd.mixes(*kind))
        for size in smaller.shape[2:]
    )
    return by_definition, min(by_definition, 2 * pairs * len(smaller) * products)


# PyTorch's own formula for convolution_backward ignores groups.
PRODUCTS: dict[str, Callable[[Any, Any, Any], tuple[int, int]]] = {
    "aten::convolution": _convolution,
    "aten::convolution_backward": _convolution_backward,
    "aten::mm": _matrices,
    "aten::addmm": _matrices,
    "aten::bmm": _matrices,
}
"""The operators that are counted, and from (operator, arguments, result) to operations: by the
definition, and by the fewest there are.
"""
