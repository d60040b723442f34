"""The compiled CUDA kernels as candidates of the router."""

from __future__ import annotations

from typing import Any

import torch

from .fused_kernels import FusedKernels, offer_fused


def operators() -> Any:
    """`torch.ops.fastgen`; the module that holds it is loaded when the backend is found there."""
    return torch.ops.fastgen


CUDA = FusedKernels(operators)
offer_fused(CUDA, "CUDA", ["cuda"], also_plain=("input_gradient", "weight_gradient"))
