"""All randomness of a training step as a function of (seed, step), and of the process."""

from __future__ import annotations

from contextlib import AbstractContextManager

import numpy as np
import torch

PICTURES = 2**32 - 1
"""The "step" from which the noise of pictures comes, one that no training reaches."""


def step_seed(seed: int, step: int, phase: int = 0, repetition: int = 0, rank: int = 0) -> int:
    """A 64-bit seed for one run of one phase in one process; the first has those of one alone.

    NumPy's SeedSequence hashes (seed; step, phase, repetition), so neighbors have nothing in
    common: with seed + step, run 0 would repeat run 1's noise one step later.
    """
    key = (step, phase, repetition, rank) if rank else (step, phase, repetition)
    sequence = np.random.SeedSequence(seed, spawn_key=key)
    return int(sequence.generate_state(1, np.uint64)[0])


def seed_generators(seed: int, device: torch.device) -> None:
    """Seed torch's default generators of the CPU and of `device`. Nothing waits for the device."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.default_generators[device.index].manual_seed(seed)


def own_generators(device: torch.device) -> AbstractContextManager[None]:
    """A context inside which torch's default generators may be seeded at will.

    They get their state back at the end, so a training inside does not disturb the caller's random
    numbers.
    """
    devices = [device] if device.type == "cuda" else []
    return torch.random.fork_rng(devices)
