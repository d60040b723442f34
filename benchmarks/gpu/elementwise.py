"""Operations that only move bytes: bias + leaky ReLU and the reparameterization, each pass apart.

The kernels are called beneath autograd, so a backward is timed alone. Bytes: every input read
once, every output written once.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from math import prod
from typing import Any

import peers
import torch

from fastgen.ops.backend import BACKENDS, select

from .session import DTYPES, Job, Row, Session

MIB = 2**20
SLOPE = 0.2
BACKEND_NAMES = {"fastgen": "auto", "fastgen cuda": "cuda", "fastgen triton": "triton"}


def kernels_of(operation: str, device: torch.device) -> dict[str, Any]:
    """The kernels of each backend that can run here, by the candidate's name."""
    return {
        candidate: select(operation, backend, device)
        for candidate, backend in BACKEND_NAMES.items()
        if backend == "auto"
        or (
            BACKENDS[backend].missing() is None
            and BACKENDS[backend].runs_on(device.type, by_name=False)
        )
    }


def jobs(session: Session) -> list[Job]:
    """64 and 256 MiB a tensor; pictures in both layouts, latents as rows and as pictures."""
    found = []
    for mib in (64, 256):
        for name, dtype in DTYPES.items():
            numbers = mib * MIB // dtype.itemsize
            for layout in ("channels_last", "contiguous"):
                for pass_ in ("forward", "backward"):
                    shape = _cut(session, (numbers // (64 * 64 * 64), 64, 64, 64))
                    found.append(_activation(session, pass_, shape, name, layout, mib))
            for shape in ((numbers // 512, 512), (numbers // 16384, 4, 64, 64)):
                for pass_ in ("forward", "backward"):
                    found.append(_latents(session, pass_, _cut(session, shape), name, mib))
    # 64 MiB of everything first: with little time that is what the target asks for.
    return found


def _cut(session: Session, shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(min(extent, 4) for extent in shape) if session.tiny else shape


def _named(
    session: Session,
    operation: str,
    pass_: str,
    shape: tuple[int, ...],
    dtype: str,
    layout: str,
    mib: int,
    moved: int,
    measure: Callable[[], Row],
) -> Job:
    words = "x".join(map(str, shape))
    name = f"{operation} {pass_} {words} {layout} {dtype} ({mib} MiB a tensor)"

    def work() -> Row:
        return {
            "name": name, "operation": operation, "pass": pass_, "shape": list(shape),
            "dtype": dtype, "layout": layout, "bytes": moved, "operations": 0, **measure(),
        }  # fmt: skip

    return Job(name, work)


def _activation(
    session: Session, pass_: str, shape: tuple[int, ...], dtype: str, layout: str, mib: int
) -> Job:
    operation, kind, device = "bias_leaky_relu", DTYPES[dtype], session.device
    format_ = torch.channels_last if layout == "channels_last" else torch.contiguous_format

    def drawn() -> torch.Tensor:
        return torch.randn(shape, device=device, dtype=kind).contiguous(memory_format=format_)

    def forward() -> Row:
        candidates: dict[str, Callable[..., Any]] = {
            name: partial(_call, kernels.forward, SLOPE)
            for name, kernels in kernels_of(operation, device).items()
        }
        candidates["eager"] = partial(_call, peers.bias_leaky_relu, SLOPE)
        candidates["compile"] = peers.compiled(candidates["eager"])
        bias = torch.randn(shape[1], device=device, dtype=kind)
        return session.measured(candidates, lambda: (drawn(), bias))

    def backward() -> Row:
        candidates: dict[str, Callable[..., Any]] = {
            name: partial(_call, kernels.mask_sum, SLOPE)
            for name, kernels in kernels_of(operation, device).items()
        }
        candidates["eager"] = partial(_call, peers.bias_leaky_relu_backward, SLOPE)
        candidates["compile"] = peers.compiled(candidates["eager"])
        return session.measured(candidates, lambda: (drawn(), drawn()))

    passes = {"forward": (2, forward), "backward": (3, backward)}
    tensors, measure = passes[pass_]
    moved = tensors * prod(shape) * kind.itemsize
    return _named(session, operation, pass_, shape, dtype, layout, mib, moved, measure)


def _call(function: Callable[..., Any], slope: float, first: Any, second: Any) -> Any:
    return function(first, second, slope)


def _latents(session: Session, pass_: str, shape: tuple[int, ...], dtype: str, mib: int) -> Job:
    operation, kind, device = "reparameterize_kl", DTYPES[dtype], session.device
    seed = torch.tensor(7, device=device)

    def drawn() -> torch.Tensor:
        return torch.randn(shape, device=device, dtype=kind)

    def forward() -> Row:
        candidates: dict[str, Callable[..., Any]] = {
            name: partial(_sample, kernels)
            for name, kernels in kernels_of("reparameterize", device).items()
        }
        candidates["eager"] = lambda mu, logvar, seed: peers.reparameterize_kl(mu, logvar)
        candidates["compile"] = peers.compiled(candidates["eager"])
        # Noise is drawn by another generator on the two sides: nothing to compare.
        return session.measured(candidates, lambda: (drawn(), drawn(), seed), compare=None)

    def backward() -> Row:
        candidates: dict[str, Callable[..., Any]] = {
            name: partial(_gradients, kernels)
            for name, kernels in kernels_of("reparameterize", device).items()
        }
        candidates["eager"] = _eager_gradients
        candidates["compile"] = peers.compiled(candidates["eager"])

        def make() -> tuple[Any, ...]:
            gkl = torch.randn(shape[0], device=device)
            return drawn(), gkl, drawn(), drawn(), seed, drawn()

        return session.measured(candidates, make, compare=None)

    passes = {"forward": (3, forward), "backward": (5, backward)}
    tensors, measure = passes[pass_]
    moved = tensors * prod(shape) * kind.itemsize + 4 * shape[0]
    return _named(session, operation, pass_, shape, dtype, "contiguous", mib, moved, measure)


def _sample(kernels: Any, mu: Any, logvar: Any, seed: Any) -> Any:
    return kernels.forward_kl(mu, logvar, seed)


def _gradients(kernels: Any, gz: Any, gkl: Any, mu: Any, logvar: Any, seed: Any, eps: Any) -> Any:
    return kernels.backward(gz, gkl, mu, logvar, seed)


def _eager_gradients(gz: Any, gkl: Any, mu: Any, logvar: Any, seed: Any, eps: Any) -> Any:
    return peers.reparameterize_kl_backward(gz, gkl, mu, logvar, eps)
