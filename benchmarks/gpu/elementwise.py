"""Operations that only move bytes: bias + leaky ReLU and the reparameterization, each pass apart.

The kernels are called beneath autograd, so a backward is timed alone. Bytes: every input read
once, every output written once.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from fastgen.bench import peers
from fastgen.bench.passes import Pass, bias_leaky_relu_pass, reparameterize_pass
from fastgen.ops.backend import BACKENDS

from .session import DTYPES, Job, Row, Session, pass_row

MIB = 2**20
BACKEND_NAMES = {"fastgen": "auto", "fastgen cuda": "cuda", "fastgen triton": "triton"}


def jobs(session: Session) -> list[Job]:
    """64 and 256 MiB a tensor; pictures in both layouts, latents as rows and as pictures."""
    found = []
    for mib in (64, 256):
        for name, dtype in DTYPES.items():
            numbers = mib * MIB // dtype.itemsize
            pictures = _cut(session, (numbers // (64 * 64 * 64), 64, 64, 64))
            for layout in ("channels_last", "contiguous"):
                for pass_ in ("forward", "backward"):
                    measured = bias_leaky_relu_pass(pictures, pass_)
                    found.append(_job(session, measured, pictures, name, layout, mib))
            for shape in ((numbers // 512, 512), (numbers // 16384, 4, 64, 64)):
                latents = _cut(session, shape)
                for pass_ in ("forward", "backward"):
                    measured = reparameterize_pass(latents, pass_)
                    found.append(_job(session, measured, latents, name, "contiguous", mib))
    # 64 MiB of everything first: with little time that is what the target asks for.
    return found


def _cut(session: Session, shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(min(extent, 4) for extent in shape) if session.tiny else shape


def _job(
    session: Session, measured: Pass, shape: tuple[int, ...], dtype: str, layout: str, mib: int
) -> Job:
    operation = "bias_leaky_relu" if measured.compares else "reparameterize_kl"
    words = "x".join(map(str, shape))
    name = f"{operation} {measured.name} {words} {layout} {dtype} ({mib} MiB a tensor)"
    about = {
        "name": name, "operation": operation, "shape": list(shape), "dtype": dtype, "layout": layout
    }  # fmt: skip
    return Job(name, partial(_measure, session, measured, about))


def _measure(session: Session, measured: Pass, about: Row) -> Row:
    candidates: dict[str, Callable[..., Any]] = {
        candidate: measured.fastgen(backend, session.device)
        for candidate, backend in BACKEND_NAMES.items()
        if backend == "auto" or _runs(backend, session.device.type)
    }
    candidates["eager"] = measured.eager
    candidates["compile"] = peers.compiled(measured.eager)
    return {**about, **pass_row(session, measured, about["dtype"], candidates, about["layout"])}


def _runs(backend: str, device_type: str) -> bool:
    entry = BACKENDS[backend]
    return entry.missing() is None and entry.runs_on(device_type, by_name=False)
