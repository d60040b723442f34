"""Whole training steps: fastgen's Trainer against loops that a careful PyTorch user writes.

The two sides train the same networks with the same losses, optimizer (fused Adam) and precision.
fastgen's side is the whole `Trainer.fit`: batches gathered from uint8 images, seeding, the watch
for non-finite losses. The other side gets its batch for nothing and does none of that.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch

from fastgen.bench.agreement import first_line
from fastgen.bench.jax_peer import critic_seconds
from fastgen.bench.steps import BETAS, STEPS, Step, loop, work
from fastgen.data import ImageDataset
from fastgen.training import Trainer

from .session import Job, Row, Session

PRECISIONS = {"bfloat16": "bf16", "float32": "fp32"}
MODES = {
    "dcgan-64": ("compile", "compile reduce-overhead"),
    "critic": (),  # torch.compile refuses a gradient of a gradient
    "vae": ("compile", "compile reduce-overhead"),
}

# --- fastgen's side ---


class Fit:
    """fastgen's trainer, a window of steps at a time."""

    def __init__(self, step: Step, precision: str, device: torch.device, capture: str) -> None:
        shape = (16 * step.batch, 3, step.size, step.size)
        pictures = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
        self.trainer = Trainer(
            step.build(), ImageDataset(pictures), batch_size=step.batch, device=device,
            precision=PRECISIONS[precision], capture=capture, betas=BETAS, ema_decay=None,
            log_every=10**9, progress=False,
        )  # fmt: skip

    def run(self, steps: int) -> None:
        self.trainer.fit(self.trainer.step + steps)

    def not_captured_because(self) -> str | None:
        return self.trainer._stepper.graphs.reason


# --- measuring ---


def windows(
    candidates: dict[str, Callable[[int], None]],
    device: torch.device,
    *,
    rounds: int,
    seconds: float,
) -> dict[str, list[float]]:
    """Seconds per step of each candidate, by the wall clock, in interleaved windows of steps."""

    def timed(run: Callable[[int], None], steps: int) -> float:
        start = time.perf_counter()
        run(steps)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return (time.perf_counter() - start) / steps

    steps = {name: max(1, round(seconds / timed(run, 3))) for name, run in candidates.items()}
    found: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(rounds):
        for name, run in candidates.items():
            found[name].append(timed(run, steps[name]))
    return found


WARM_UP = 12


def jobs(session: Session) -> list[Job]:
    """The three steps, bfloat16 first: eager, torch.compile, JAX where it is, and fastgen."""
    return [
        Job(f"{STEPS[kind].name} {precision}", partial(_measure, session, kind, precision))
        for kind, precision in (
            ("dcgan-64", "bfloat16"),
            ("critic", "bfloat16"),
            ("critic", "float32"),
            ("vae", "bfloat16"),
            ("vae", "float32"),
            ("dcgan-64", "float32"),
        )
    ]


def _measure(session: Session, kind: str, precision: str) -> Row:
    step, device = STEPS[kind], session.device
    if session.tiny:
        step = step._replace(batch=4, size=16, width=8)
    makers: dict[str, Callable[[], Any]] = {
        "fastgen": lambda: Fit(step, precision, device, "auto"),
        "fastgen not captured": lambda: Fit(step, precision, device, "off"),
        "eager": lambda: loop(kind, step, precision, None, device),
    }
    for mode in MODES[kind]:
        makers[mode] = partial(loop, kind, step, precision, mode, device)

    running: dict[str, Callable[[int], None]] = {}
    failed: dict[str, str] = {}
    obstacle = None
    for name, make in makers.items():
        try:
            made = make()
            made.run(3 if session.tiny else WARM_UP)
            running[name] = made.run
            if name == "fastgen":
                obstacle = made.not_captured_because()
        except Exception as error:
            if "CUDA error" in str(error):
                raise
            failed[name] = first_line(error)
    rounds, seconds = (1, 0.0) if session.tiny else (5, 0.25)
    times = windows(running, device, rounds=rounds, seconds=seconds)
    medians = {name: statistics.median(values) for name, values in times.items()}
    if kind == "critic":
        limit = max(20.0, min(90.0, session.left() / 3))
        try:
            timed = critic_seconds(
                step, precision, device, steps=2 if session.tiny else 100, limit_s=limit
            )
            medians["jax jit"] = timed["seconds"]
        except RuntimeError as error:
            failed["jax jit"] = str(error)
    return {
        "name": step.name, "dtype": precision, "batch": step.batch, "size": step.size,
        "width": step.width, "seconds": medians, "failed": failed, "method": "wall clock",
        "spread": {name: round((max(v) - min(v)) / medians[name], 4) for name, v in times.items()},
        "captured": obstacle is None and device.type == "cuda", "not captured because": obstacle,
        "operations": work(step).operations, "bytes": 0,
    }  # fmt: skip
