"""Whole training steps: fastgen's Trainer against loops that a careful PyTorch user writes.

The two sides train the same networks with the same losses, optimizer (fused Adam) and precision.
fastgen's side is the whole `Trainer.fit`: batches gathered from uint8 images, seeding, the watch
for non-finite losses. The other side gets its batch for nothing and does none of that.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import peers
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import fastgen
from fastgen.data import ImageDataset
from fastgen.models import GAN, VAE, WGAN, Model, Phase
from fastgen.training import Trainer

from .session import Job, Row, Session, first_line

LATENTS = 128
PRECISIONS = {"bfloat16": "bf16", "float32": "fp32"}
BETAS = (0.5, 0.9)


class Step(NamedTuple):
    """A model, its batch and the size of its pictures and networks."""

    name: str
    model: type[Model]
    batch: int
    size: int = 64
    width: int = 64

    def build(self) -> Any:
        torch.manual_seed(0)
        return self.model.for_images(  # type: ignore[attr-defined]
            (3, self.size, self.size), latent_dim=LATENTS, width=self.width
        )


class CriticAlone(WGAN):
    """A Wasserstein GAN that trains its critic only: one update with the gradient penalty."""

    def phases(self) -> list[Phase]:
        return [replace(super().phases()[0], repeats=1)]


STEPS = {
    "dcgan-64": Step("DCGAN-64 step", GAN, 128),
    "critic": Step("WGAN-GP critic step", CriticAlone, 64),
    "vae": Step("VAE step", VAE, 128),
}
MODES = {
    "dcgan-64": ("compile", "compile reduce-overhead"),
    "critic": (),  # torch.compile refuses a gradient of a gradient
    "vae": ("compile", "compile reduce-overhead"),
}


# --- the PyTorch side ---


class Loop:
    """A hand-written training loop: losses, each with its parameters and an optimizer."""

    def __init__(
        self,
        losses: list[tuple[Callable[[Tensor], Tensor], list[nn.Parameter]]],
        images: Tensor,
        precision: str,
    ) -> None:
        self._images, self._mixed = images, precision == "bfloat16"
        self._losses = [
            (loss, parameters, torch.optim.Adam(parameters, lr=2e-4, betas=BETAS, fused=True))
            for loss, parameters in losses
        ]

    def run(self, steps: int) -> None:
        for _ in range(steps):
            for loss, parameters, optimizer in self._losses:
                torch.compiler.cudagraph_mark_step_begin()
                with torch.autocast(self._images.device.type, torch.bfloat16, self._mixed):
                    value = loss(self._images)
                gradients = torch.autograd.grad(value, parameters)
                for parameter, gradient in zip(parameters, gradients, strict=True):
                    parameter.grad = gradient
                optimizer.step()


def loop(kind: str, step: Step, precision: str, mode: str | None, device: torch.device) -> Loop:
    """The loop of one kind of step, eager or through torch.compile."""
    model = step.build()
    wrap: Any = partial(torch.compile, mode=peers.COMPILE_MODES[mode]) if mode else lambda f: f
    shape = (step.batch, 3, step.size, step.size)
    images = torch.rand(shape, device=device).mul_(2).sub_(1)
    images = images.contiguous(memory_format=torch.channels_last)

    def network(module: nn.Module) -> nn.Module:
        return peers.plain(module).to(device=device, memory_format=torch.channels_last)

    def noise(x: Tensor) -> Tensor:
        return torch.randn(len(x), LATENTS, device=x.device)

    losses: list[tuple[Callable[[Tensor], Tensor], list[nn.Parameter]]]
    if kind == "vae":
        encoder, decoder = network(model.encoder), network(model.decoder)
        log_sigma = nn.Parameter(model.pixel_noise.log_sigma.detach().clone().to(device))
        parameters = [*encoder.parameters(), *decoder.parameters(), log_sigma]
        losses = [(lambda x: peers.vae_loss(encoder, decoder, log_sigma, x, noise(x)), parameters)]
    elif kind == "critic":
        critic, generator = network(model.critic), network(model.generator)

        def critic_loss(x: Tensor) -> Tensor:
            u = torch.rand(len(x), 1, 1, 1, device=x.device)
            return peers.critic_loss(critic, generator, x, noise(x), u)

        losses = [(critic_loss, list(critic.parameters()))]
    else:
        judge, generator = network(model.discriminator), network(model.generator)
        losses = [
            (
                lambda x: peers.discriminator_loss(judge, generator, x, noise(x)),
                list(judge.parameters()),
            ),
            (
                lambda x: peers.generator_loss(judge, generator, noise(x)),
                list(generator.parameters()),
            ),
        ]
    return Loop([(wrap(loss), parameters) for loss, parameters in losses], images, precision)


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


def operations(step: Step, precision: str, device: torch.device) -> int:
    """Multiplications and additions of fastgen's step, counted from its PyTorch kernels.

    Only a GPU's are counted right: on a CPU oneDNN's fused convolutions are unknown to the counter.
    """
    model = step.build().to(device=device, memory_format=torch.channels_last)
    images = torch.rand(step.batch, 3, step.size, step.size, device=device)
    images = images.contiguous(memory_format=torch.channels_last)
    kind = device.type
    with FlopCounterMode(display=False) as counter, fastgen.backend("torch"):
        for phase in model.phases():
            with torch.autocast(kind, torch.bfloat16, precision == "bfloat16"):
                loss = phase.loss(images, None)["loss"]
            torch.autograd.grad(loss, phase.parameters, allow_unused=True)
    return counter.get_total_flops()


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
    torch.compiler.reset()
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
        medians |= _jax(session, step, precision, failed)
    return {
        "name": step.name, "dtype": precision, "batch": step.batch, "size": step.size,
        "width": step.width, "seconds": medians, "failed": failed, "method": "wall clock",
        "spread": {name: round((max(v) - min(v)) / medians[name], 4) for name, v in times.items()},
        "captured": obstacle is None and device.type == "cuda", "not captured because": obstacle,
        "operations": operations(step, precision, device), "bytes": 0,
    }  # fmt: skip


def _jax(session: Session, step: Step, precision: str, failed: dict[str, str]) -> dict[str, float]:
    """The critic's step by JAX, in a process of its own: the two would fight over GPU memory."""
    limit = max(20.0, min(90.0, session.left() / 3))
    words = [
        sys.executable, "-m", "gpu.jax_peer", f"--precision={precision}", f"--batch={step.batch}",
        f"--size={step.size}", f"--width={step.width}", f"--latents={LATENTS}",
    ]  # fmt: skip
    if session.tiny:
        words.append("--steps=2")
    path = os.pathsep.join([str(Path(__file__).parent.parent), os.environ.get("PYTHONPATH", "")])
    environment = {
        **os.environ, "PYTHONPATH": path, "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
        "JAX_PLATFORMS": "cuda" if session.device.type == "cuda" else "cpu",
    }  # fmt: skip
    try:
        done = subprocess.run(
            words, env=environment, capture_output=True, text=True, timeout=limit, check=False
        )
    except subprocess.TimeoutExpired:
        failed["jax jit"] = f"no answer within {limit:.0f} s"
        return {}
    if done.returncode:
        failed["jax jit"] = (done.stderr.strip().splitlines() or ["no message"])[-1]
        return {}
    return {"jax jit": json.loads(done.stdout.strip().splitlines()[-1])["seconds"]}
