"""Which backends exist, why one is missing, and which one runs.

A backend is an entry in `BACKENDS`; what it can compute are its candidates, of which `routing`
makes entries in `KERNELS`, one per operation. Adding a backend means adding an entry and
candidates, nothing else: the autograd Functions take the kernels they are given.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor
from torch.compiler import is_compiling

from . import compiled
from .gradients import have_tangent, takes_no_function

AUTO = "auto"


class BackendUnavailable(RuntimeError):
    """A backend was named explicitly and cannot run here.

    The message gives the reason and the remedy. fastgen never falls back silently from a backend
    that was asked for by name; `backend="auto"` is the way to ask for whatever is there.
    """


@dataclass(frozen=True)
class Backend:
    """One way to compute the operations: its name, where it runs and why it may be missing."""

    name: str
    summary: str
    device_types: frozenset[str] | None  # None: every device
    missing: Callable[[], str | None]  # the reason and the remedy, or None when it can run
    by_name_only_on: frozenset[str] = frozenset()  # where "auto" never takes it

    def runs_on(self, device_type: str, *, by_name: bool) -> bool:
        """Whether it computes tensors on this kind of device."""
        if device_type in self.by_name_only_on:
            return by_name
        return self.device_types is None or device_type in self.device_types


def _always_there() -> str | None:
    return None


def _missing_cuda() -> str | None:
    return compiled.missing("cuda")


_HAS_TRITON = find_spec("triton") is not None


def _missing_triton() -> str | None:
    if not _HAS_TRITON:
        return "triton is not installed; pip install triton"
    if INTERPRETED or torch.cuda.is_available():
        return None
    return "torch sees no CUDA device"


def _missing_cpp() -> str | None:
    return compiled.missing("cpu")


# Triton's interpreter computes on the CPU, for tests and debugging.
INTERPRETED = frozenset({"cpu"} if os.environ.get("TRITON_INTERPRET") == "1" else ())

# In the order in which "auto" prefers them.
BACKENDS: dict[str, Backend] = {
    entry.name: entry
    for entry in (
        Backend("cuda", "CUDA C++ kernels", frozenset({"cuda"}), _missing_cuda),
        Backend("triton", "Triton kernels", frozenset({"cuda"}), _missing_triton, INTERPRETED),
        Backend("cpp", "C++ kernels for the CPU", frozenset({"cpu"}), _missing_cpp),
        Backend("torch", "plain PyTorch, no compiler needed", None, _always_there),
    )
}

KERNELS: dict[tuple[str, str], Any] = {}

_automatic: dict[str, frozenset[str]] = {}  # asking for a GPU costs, and every call asks
_default = os.environ.get("FASTGEN_BACKEND", AUTO)


def register(operation: str, backend: str, kernels: Any) -> None:
    """Enter the kernels with which `backend` computes `operation`."""
    KERNELS[operation, backend] = kernels


def _known(name: str, source: str) -> str:
    if name != AUTO and name not in BACKENDS:
        allowed = ", ".join(repr(known) for known in (AUTO, *BACKENDS))
        raise ValueError(f"{source} must be one of {allowed} (got {name!r})")
    return name


@contextmanager
def backend(name: str) -> Iterator[None]:
    """Make `name` the backend of every operation called with `backend="auto"` inside the block.

    The setting holds for the whole process, as the flags of `torch.backends` do, and wins over the
    environment variable `FASTGEN_BACKEND`. What is recorded for a backward keeps the backend of
    its forward.

    Args:
        name: ``"auto"``, ``"torch"``, ``"cpp"``, ``"cuda"`` or ``"triton"``.

    Raises:
        ValueError: there is no backend of that name.
        BackendUnavailable: it exists and cannot run here; the message says why and what to do.

    Example::

        with fastgen.backend("torch"):
            scores = critic(images)
    """
    global _default
    if _known(name, "backend") != AUTO:
        _require(BACKENDS[name])
    previous, _default = _default, name
    try:
        yield
    finally:
        _default = previous


def default_backend() -> str:
    """The backend that ``backend="auto"`` stands for now: `fastgen.backend`, else
    `FASTGEN_BACKEND`, else ``"auto"``.
    """
    return _known(_default, "the environment variable FASTGEN_BACKEND")


def _require(entry: Backend) -> None:
    reason = entry.missing()
    if reason is not None:
        raise BackendUnavailable(
            f"backend {entry.name!r} is not available: {reason}; or use backend='torch'"
        )


def select(operation: str, name: str, device: torch.device) -> Any:
    """The kernels that compute `operation` on `device`.

    ``"auto"`` is the router, which picks per shape; a backend named explicitly is taken or refused,
    never replaced.
    """
    if name == AUTO == _default:  # nearly every call
        return KERNELS[operation, AUTO]
    if _known(name, "backend") == AUTO:
        name = default_backend()
    if name == AUTO:
        return KERNELS[operation, AUTO]

    entry = BACKENDS[name]
    _require(entry)
    if not entry.runs_on(device.type, by_name=True):
        places = " and ".join(sorted(entry.device_types or ()))
        raise BackendUnavailable(
            f"backend {name!r} runs on {places} tensors (got a tensor on {device}); "
            "move the tensors or use backend='torch'"
        )
    return KERNELS[operation, name]


def is_composed(name: str, *tensors: Tensor | None) -> bool:
    """Whether a call by this backend is made of PyTorch's own functions: where `torch.jit.trace`
    records it, under `vmap`, `functionalize` and in forward mode, which take no Function of
    Python's.

    Raises:
        BackendUnavailable: the backend that is named computes by other functions.
    """
    if is_compiling():
        return False
    if torch._C._is_tracing():
        where = "recorded by torch.jit.trace; use backend='torch', or torch.export"
    elif takes_no_function() or have_tangent(*tensors):
        where = "taken through vmap, functionalize or forward mode; use backend='torch'"
    else:
        return False
    if name == AUTO:
        name = default_backend()
    if name not in (AUTO, "torch"):
        raise BackendUnavailable(f"backend {name!r} cannot be {where}")
    return True


def automatic_names(device_type: str) -> frozenset[str]:
    """The backends among which ``"auto"`` picks on this kind of device."""
    names = _automatic.get(device_type)
    if names is None:
        names = frozenset(
            entry.name
            for entry in BACKENDS.values()
            if entry.runs_on(device_type, by_name=False) and entry.missing() is None
        )
        if not is_compiling():
            _automatic[device_type] = names
    return names
