"""Time a WGAN-GP critic before and after `fastgen.accelerate(critic)`.

    python benchmarks/accelerate.py [--rounds 11] [--json benchmarks/results/accelerate.json]

Two things: the gradient penalty and its backward, and the whole step, which also scores a real and
a generated batch, and lets Adam update the weights.
Medians of process time over interleaved rounds, one thread. Eager PyTorch has its LeakyReLU in
place; `python benchmarks/accelerate_table.py` writes the table into docs/accelerate.md.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import json
from collections.abc import Callable
from datetime import date
from pathlib import Path

import torch
import torch.nn.functional as F
from critics import CRITICS, build, penalty_step
from torch import Tensor, nn

import fastgen
from fastgen.bench import timing
from fastgen.bench.machine import describe
from fastgen.bench.rungs import DTYPES


class Block(nn.Module):
    """Gulrajani et al. 2017, app. F: ReLU, convolution, ReLU, convolution, beside a shortcut."""

    def __init__(self, channels: int, features: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, features, 3, padding=1)
        self.second = nn.Conv2d(features, features, 3, padding=1)
        self.shortcut = nn.Conv2d(channels, features, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.second(F.relu(self.first(F.relu(x))))
        return F.avg_pool2d(h, 2) + F.avg_pool2d(self.shortcut(x), 2)


class Residual(nn.Module):
    """A critic of such blocks for 32x32 images, with a forward of its own."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, width, 3, padding=1)
        self.blocks = nn.Sequential(*(Block(width, width) for _ in range(3)))
        self.head = nn.Linear(width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.blocks(self.first(x))).mean(dim=(2, 3)))


NETWORKS: dict[str, tuple[Callable[[], nn.Module], int, int]] = {
    **{
        name: (lambda name=name: build(name, fused=False), plan.image_size, plan.batch_size)
        for name, plan in CRITICS.items()
    },
    "residual-32": (Residual, 32, 16),
}
"""By name: what makes the critic, the size of its images, the batch."""


def critic_loss(critic: nn.Module, real: Tensor, fake: Tensor, u: Tensor) -> Tensor:
    """Gulrajani et al. 2017, eq. 3."""
    between = torch.lerp(fake, real, u).requires_grad_()
    (gradient,) = torch.autograd.grad(critic(between).sum(), between, create_graph=True)
    slopes = gradient.float().flatten(1).norm(dim=1)
    gap = critic(real).float().mean() - critic(fake).float().mean()
    return 10 * (slopes - 1).square().mean() - gap


def penalty_stepper(critic: nn.Module, batch: tuple[Tensor, Tensor, Tensor]) -> Callable[[], None]:
    """The penalty of a batch and its backward."""
    return lambda: penalty_step(critic, batch[0])


def stepper(critic: nn.Module, batch: tuple[Tensor, Tensor, Tensor]) -> Callable[[], None]:
    """One step of the critic, weights and all."""
    optimizer = torch.optim.Adam(critic.parameters(), lr=1e-4, betas=(0.0, 0.9))

    def step() -> None:
        optimizer.zero_grad()
        critic_loss(critic, *batch).backward()
        optimizer.step()

    return step


TASKS = {"penalty": penalty_stepper, "whole step": stepper}


def measure(name: str, task: str, dtype: torch.dtype, rounds: int) -> dict[str, object]:
    torch.manual_seed(0)
    make, size, count = NETWORKS[name]
    plain = make().to(dtype)
    real, fake = torch.randn(2, count, 3, size, size).to(dtype)
    u = torch.rand(count, 1, 1, 1).to(dtype)
    contiguous = (real, fake, u)
    channels_last = (
        real.contiguous(memory_format=torch.channels_last),
        fake.contiguous(memory_format=torch.channels_last),
        u,
    )
    moved = copy.deepcopy(plain).to(memory_format=torch.channels_last)
    accelerated = copy.deepcopy(plain)
    fastgen.accelerate(accelerated, verbose=False)
    difference = largest_difference(moved, accelerated, channels_last)
    task_of = TASKS[task]
    times = timing.measure(
        {
            "eager_contiguous": task_of(plain, contiguous),
            "eager_channels_last": task_of(moved, channels_last),
            "accelerated": task_of(accelerated, channels_last),
            "accelerated_contiguous_images": task_of(copy.deepcopy(accelerated), contiguous),
        },
        device="cpu",
        rounds=rounds,
    )
    return {
        "critic": name,
        "task": task,
        "dtype": str(dtype).removeprefix("torch."),
        "batch": count,
        **{f"{step}_ms": round(1e3 * time.median_s, 2) for step, time in times.items()},
        "weight_gradient_difference": difference,
    }


def largest_difference(
    plain: nn.Module, accelerated: nn.Module, batch: tuple[Tensor, Tensor, Tensor]
) -> float:
    """The largest relative difference between the two losses' weight gradients."""
    gradients = []
    for critic in (plain, accelerated):
        weights = [p for p in critic.parameters() if p.dim() > 1]
        gradients.append(torch.autograd.grad(critic_loss(critic, *batch), weights))
    return max(
        ((ours - theirs).float().norm() / theirs.float().norm()).item()
        for theirs, ours in zip(*gradients, strict=True)
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--critic", choices=NETWORKS, action="append")
    options = parser.parse_args()
    torch.set_num_threads(1)

    rows = []
    for name, task in itertools.product(options.critic or NETWORKS, TASKS):
        for dtype in DTYPES.values():
            rows.append(measure(name, task, dtype, options.rounds))
            print(rows[-1], flush=True)

    if options.json:
        results = {
            "machine": describe(threads=1),
            "date": date.today().isoformat(),
            "rounds": options.rounds,
            "rows": rows,
        }
        options.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
