"""The compiled CPU kernels as candidates of the router: backend "cpp".

A CPU is not measured, its clock is too noisy: the rule below decides, and it was measured.
"""

from __future__ import annotations

from typing import Any

import torch

from .compiled_kernels import operators
from .fused_kernels import DTYPES, FusedKernels, offer_fused

FUSED = FusedKernels(operators)


def _never(*_: Any) -> bool:
    return False


offer_fused(
    FUSED,
    "C++",
    ["cpp"],
    also_plain=("input_gradient", "weight_gradient"),
    dtypes=(*DTYPES, torch.float64),
    expected={"convolution": _never},
)
