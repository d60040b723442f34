"""The tape of `tape.py` freezes what a CUDA graph would, else tests with it would prove nothing."""

from __future__ import annotations

import pytest
import torch
from tape import Tape


def test_the_tape_freezes_what_a_graph_would_freeze() -> None:
    """A Python number, and memory that is gone."""
    tape, x, factor = Tape(), torch.ones(3), [2.0]
    recording = tape.record(lambda: x * factor[0])
    assert recording.results.isnan().all()
    factor[0] = 5.0
    recording.replay()
    assert torch.equal(recording.results, torch.full((3,), 2.0))
    x.fill_(4.0)
    recording.replay()
    assert torch.equal(recording.results, torch.full((3,), 8.0))
    x = torch.zeros(3)
    with pytest.raises(AssertionError, match="freed memory"):
        recording.replay()


def test_the_tape_leaves_no_trace_and_draws_anew() -> None:
    tape, x = Tape(), torch.zeros(3)
    state = torch.get_rng_state()
    recording = tape.record(lambda: x.add_(torch.rand(3)).clone())
    assert torch.equal(x, torch.zeros(3))
    assert torch.equal(torch.get_rng_state(), state)
    expected = torch.zeros(3)
    for seed in (1, 2):
        torch.manual_seed(seed)
        expected = expected + torch.rand(3)
        torch.manual_seed(seed)
        recording.replay()
        assert torch.equal(x, expected)
        assert torch.equal(recording.results, expected)
