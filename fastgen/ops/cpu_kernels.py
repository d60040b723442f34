"""The compiled CPU kernels as candidates of the router: backend "cpp".

While a program runs, a CPU is not measured: its clock is too noisy, and a program run twice shall
give the same bits. The written rule decides; docs/cpu.md has the numbers behind it. Asked for by
name, the backend computes every pass in every dtype.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import cpu_image_edge, cpu_winograd, image_edge
from .compiled import operators
from .compiled_kernels import CONV, TRANSPOSED
from .cpu_matrix_product import forward_is_product
from .fused_kernels import DTYPES, FusedKernels, offer_fused
from .layouts import same_order
from .routing import never, offer
from .torch_bias_leaky_relu import SMALL
from .torch_convolution import stands_apart
from .turned_edge import TurnedEdge

FUSED = FusedKernels(operators, any_order=True)

# What vectorizes. float16 takes twice to four times as long as in PyTorch, which has an instruction
# for it; float64 is for checking gradients, with PyTorch's own noise to the last digit.
FAST = frozenset({torch.float32, torch.bfloat16})

_FAST = "float32, bfloat16"
TURNED = 4096
"""Numbers from which two orders of memory are made one faster than PyTorch goes through both."""
_TURNED = f"from {TURNED} where the orders of memory differ"

LARGE = 1 << 20
"""Bytes from which a result keeps its memory (csrc/ops/kept_memory.h). A pass that PyTorch has in
one piece takes about as long there as long as its memory is at hand, and several times as long
where that comes fresh from the system, as within a training step.
"""


def _large(tensor: Tensor) -> bool:
    return tensor.numel() * tensor.element_size() >= LARGE


def _orders_differ(grad: Tensor, output: Tensor) -> bool:
    """As behind a flatten, whose gradient comes in contiguous memory."""
    return output.numel() >= TURNED and not same_order(grad, output)


def _activation_wins(input: Tensor, bias: Tensor | None, negative_slope: float) -> bool:
    """With a bias one pass instead of two."""
    return input.dtype in FAST and (bias is not None or _large(input))


def _mask_wins(grad: Tensor, shift: Tensor | None, output: Tensor, negative_slope: float) -> bool:
    """Without a shift PyTorch has it in one pass too, in bfloat16 a slower one, and slower by far
    where the two lie in different orders.
    """
    if output.dtype not in FAST:
        return False
    slower = output.dtype == torch.bfloat16 and output.numel() >= SMALL[torch.bfloat16]
    return shift is not None or slower or _large(output) or _orders_differ(grad, output)


def _mask_sum_wins(grad: Tensor, output: Tensor, negative_slope: float) -> bool:
    if output.dtype not in FAST:
        return False
    return output.numel() >= SMALL[output.dtype] or _orders_differ(grad, output)


def _noise_wins(*arguments: Any) -> bool:
    """Philox by PyTorch's integer operators takes 20 to 40 times as long."""
    logvar: Tensor = arguments[-2]  # in every pass; before it stand gradients, of other dtypes too
    return logvar.dtype in FAST or logvar.dtype == torch.float16


def _epilogue_wins(*arguments: Any) -> bool:
    """Elsewhere PyTorch's pass behind it costs nothing, or oneDNN has it inside."""
    input, weight, geometry = arguments[0], arguments[1], arguments[-1]
    return (
        input.dtype in FAST
        and stands_apart(input, weight, geometry)
        and not forward_is_product(*arguments)
    )


_APART = (
    "transposed with groups or dilation, to a size that is no multiple of the stride, or "
    f"contiguous with stride 1, {_FAST}"
)
_EDGE = "image edge (C++)"
_PICTURE = "1 to 4 channels on one side, kernel to 7, stride to 2, " + _FAST
for _operations, _pass, _run, _wins, _only in (
    ([CONV, TRANSPOSED], "forward", cpu_image_edge.forward, cpu_image_edge.wins, ""),
    ([CONV], "masked_forward", image_edge.masked_forward, cpu_image_edge.masked_forward_wins,
     "; float32 with stride 2 in channels_last or from 32 MiB"),
    ([CONV, TRANSPOSED], "input_gradient", cpu_image_edge.input_gradient, cpu_image_edge.wins, ""),
    ([CONV, TRANSPOSED], "weight_gradient", cpu_image_edge.weight_gradient,
     cpu_image_edge.weight_gradient_wins,
     "; a kernel row of 4 or more taps, in float32 to 128 filters"),
):  # fmt: skip
    _fits = getattr(cpu_image_edge, f"takes_{_pass}")
    offer(_EDGE, ["cpp"], _operations, [_pass], _run, fits=_fits, expected=_wins,
          when=_PICTURE + _only)  # fmt: skip
_turned = TurnedEdge(cpu_image_edge)
for _pass, _wins, _only in (
    ("forward", cpu_image_edge.turned_forward_wins, "; one tap: float32"),
    ("input_gradient", cpu_image_edge.turned_input_gradient_wins,
     "; bfloat16 in channels_last: to 63 channels or from 10 taps; one tap: float32, "
     "contiguous or from 64 channels"),
    ("weight_gradient", cpu_image_edge.turned_weight_gradient_wins, ""),
):  # fmt: skip
    offer("image edge, turned round (C++)", ["cpp"], [CONV], [_pass], getattr(_turned, _pass),
          fits=getattr(_turned, f"takes_{_pass}"), expected=_wins,
          when=f"into 1 to 4 channels, kernel to 7, stride 1, {_FAST}{_only}")  # fmt: skip
_WIDE = (
    "3x3 with stride 1 or 2, 4x4 or 5x5 with stride 2, channels multiples of 16 on both sides, "
    f"{_FAST}"
)
for _pass, _wins in (
    ("forward", cpu_winograd.forward_wins),
    ("masked_forward", cpu_winograd.forward_wins),
    ("input_gradient", cpu_winograd.input_gradient_wins),
    ("weight_gradient", cpu_winograd.weight_gradient_wins),
):
    offer("Winograd (C++)", ["cpp"], [CONV, TRANSPOSED], [_pass], getattr(cpu_winograd, _pass),
          fits=getattr(cpu_winograd, f"takes_{_pass}"), expected=_wins, when=_WIDE)  # fmt: skip
offer_fused(
    FUSED,
    "C++",
    ["cpp"],
    also_plain=("input_gradient", "weight_gradient"),
    dtypes=(*DTYPES, torch.float64),
    expected={
        "activation": (_activation_wins, f"{_FAST} with a bias or from 1 MiB"),
        "mask": (
            _mask_wins,
            f"bfloat16 from 32768 numbers; float32 from 1 MiB; with a shift; {_TURNED}",
        ),
        "mask_sum": (
            _mask_sum_wins,
            f"float32 from 131072 numbers, bfloat16 from 32768; {_TURNED}",
        ),
        "noise": (_noise_wins, f"{_FAST}, float16"),
        "convolution": (_epilogue_wins, _APART),
        "plain": (never, "by name only"),
    },
)
