"""Which backends exist, why one is missing, and which one runs.

A backend is an entry in `BACKENDS`; what it can compute are entries in `KERNELS`, one per
operation.
Adding a backend means adding both, nothing else: the autograd Functions take the kernels they are
    given.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

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


def _always_there() -> str | None:
    return None


def _not_in_this_build() -> str | None:
    return (
        "this installation of fastgen is pure Python and holds no compiled or Triton kernels; "
        "use backend='torch'"
    )


# In the order in which "auto" prefers them.
BACKENDS: dict[str, Backend] = {
    entry.name: entry
    for entry in (
        Backend("cuda", "CUDA C++ kernels", frozenset({"cuda"}), _not_in_this_build),
        Backend("triton", "Triton kernels", frozenset({"cuda"}), _not_in_this_build),
        Backend("cpp", "C++ kernels for the CPU", frozenset({"cpu"}), _not_in_this_build),
        Backend("torch", "plain PyTorch, no compiler needed", None, _always_there),
    )
}

KERNELS: dict[tuple[str, str], Any] = {}

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
        raise BackendUnavailable(f"backend {entry.name!r} is not available: {reason}")


def select(operation: str, name: str, device: torch.device) -> Any:
    """The kernels that compute `operation` on `device`.

    ``"auto"`` takes the first backend of `BACKENDS` that can run there and has the operation; a
    backend named explicitly is taken or refused, never replaced.
    """
    if _known(name, "backend") == AUTO:
        name = default_backend()
    if name == AUTO:
        return KERNELS[operation, automatic(operation, device)]

    entry = BACKENDS[name]
    _require(entry)
    if entry.device_types is not None and device.type not in entry.device_types:
        places = " and ".join(sorted(entry.device_types))
        raise BackendUnavailable(
            f"backend {name!r} runs on {places} tensors (got a tensor on {device}); "
            "move the tensors or use backend='torch'"
        )
    if (operation, name) not in KERNELS:
        raise BackendUnavailable(
            f"backend {name!r} does not compute {operation}; use backend='torch'"
        )
    return KERNELS[operation, name]


def automatic(operation: str, device: torch.device) -> str:
    """The name of the backend that ``"auto"`` picks for `operation` on `device`."""
    for entry in BACKENDS.values():
        fits = entry.device_types is None or device.type in entry.device_types
        if fits and (operation, entry.name) in KERNELS and entry.missing() is None:
            return entry.name
    raise BackendUnavailable(f"no backend computes {operation} on {device}")
