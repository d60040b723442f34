"""The rungs of the speed ladder: each a way to compute, in one precision and layout."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.util import find_spec
from typing import NamedTuple

import torch

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


class Rung(NamedTuple):
    """One way to compute, as it appears in tables.

    Attributes:
        name: what tables and charts call it.
        way: how it is computed, a key of `WAYS`.
        dtype, layout: keys of `DTYPES` and `LAYOUTS`.
        quick: whether ``--quick`` measures it.
    """

    name: str
    way: str
    dtype: str = "float32"
    layout: str = "channels_last"
    quick: bool = True

    @property
    def torch_dtype(self) -> torch.dtype:
        return DTYPES[self.dtype]

    @property
    def memory_format(self) -> torch.memory_format:
        return LAYOUTS[self.layout]


RUNGS = (
    Rung("eager", "eager", layout="contiguous"),
    Rung("channels_last", "eager"),
    Rung("bf16", "eager", "bfloat16"),
    Rung("torch.compile", "compile"),
    Rung("torch.compile bf16", "compile", "bfloat16", quick=False),
    Rung("max-autotune", "compile max-autotune", quick=False),
    Rung("max-autotune bf16", "compile max-autotune", "bfloat16", quick=False),
    Rung("whole-penalty compile", "compile penalty", quick=False),
    Rung("ONNX Runtime", "onnxruntime", layout="contiguous"),
    Rung("JAX jit", "jax", quick=False),
    Rung("fastgen", "fastgen"),
    Rung("fastgen bf16", "fastgen", "bfloat16"),
    Rung("captured", "captured"),
    Rung("captured bf16", "captured", "bfloat16"),
)


def _installed(*packages: str) -> Callable[[torch.device], str | None]:
    def missing(device: torch.device) -> str | None:
        absent = [package for package in packages if find_spec(package) is None]
        if not absent:
            return None
        verb = "is" if len(absent) == 1 else "are"
        return f'{", ".join(absent)} {verb} not installed: pip install "fastgen-kernels[peers]"'

    return missing


def _onnxruntime(device: torch.device) -> str | None:
    if device.type != "cpu":
        return "ONNX Runtime is compared on a CPU only"
    return _installed("onnxruntime", "onnx", "onnxscript")(device)


def _always(device: torch.device) -> str | None:
    return None


def _on_cuda(device: torch.device) -> str | None:
    return None if device.type == "cuda" else "CUDA graphs need a CUDA device"


WAYS: dict[str, Callable[[torch.device], str | None]] = {
    "eager": _always,
    "compile": _always,
    "compile max-autotune": _always,
    "compile penalty": _always,
    "fastgen": _always,
    "captured": _on_cuda,
    "onnxruntime": _onnxruntime,
    "jax": _installed("jax"),
}
"""Why a way cannot run on a device, in one line; None when it can."""


def baseline(rung: Rung, rungs: Sequence[Rung] = RUNGS) -> Rung | None:
    """Eager PyTorch at the precision and layout of a rung, if it is among the rungs."""
    return next((r for r in rungs if r.way == "eager" and r[2:4] == rung[2:4]), None)
