"""All randomness of a step is a function of (seed, step)."""

from __future__ import annotations

import torch

from fastgen.training.seeds import own_generators, seed_generators, step_seed

CPU = torch.device("cpu")


def test_no_two_moments_of_neighboring_runs_share_a_seed() -> None:
    seeds = [
        step_seed(seed, step, phase, repetition)
        for seed in range(5)
        for step in range(40)
        for phase in range(2)
        for repetition in range(5)
    ]
    assert len(set(seeds)) == len(seeds)
    # What torch's CPU generator makes of a seed are its lower 32 bits.
    assert len({seed % 2**32 for seed in seeds}) == len(seeds)


def test_a_seed_is_the_same_on_every_machine() -> None:
    """Known answer: otherwise a run could not go on elsewhere."""
    assert step_seed(0, 0) == 4189226428916626942
    assert step_seed(7, 12345, 1, 4) == 2030339098989289066


def test_the_callers_random_numbers_are_not_disturbed() -> None:
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    with own_generators(CPU):
        seed_generators(99, CPU)
        torch.rand(17)
    assert torch.equal(torch.rand(3), expected)
