"""Counts that a clock cannot disturb: calls of operators and bytes saved for the backward."""

from __future__ import annotations

import copy
import json
from typing import Any

import instructions
import pytest
import torch


def test_saved_bytes_are_those_of_what_the_backward_needs() -> None:
    x, w = (torch.randn(7, 5, requires_grad=True) for _ in range(2))
    assert instructions.counted(lambda: x * w) == {
        "calls": {"aten::mul": 1},
        "saved_bytes": 2 * 7 * 5 * 4,
    }
    # The same memory twice counts once, and what needs no gradient saves nothing.
    assert instructions.counted(lambda: x * x.view(7, 5))["saved_bytes"] == 7 * 5 * 4
    assert instructions.counted(lambda: x.detach() + 1)["saved_bytes"] == 0


def test_a_penalty_s_convolutions_are_counted() -> None:
    """Real, generated and in-between pictures: one weight gradient for each of three stages."""
    (call,) = [call for name, call in instructions.steps() if name == "critic step"]
    with instructions.backend("torch"):
        call()  # makes the optimizer's state
        first, second = instructions.counted(call), instructions.counted(call)
    assert first["calls"] == second["calls"]
    assert first["saved_bytes"] == second["saved_bytes"] > 0
    assert first["calls"]["aten::_fused_adam_"] == 1
    assert first["calls"]["aten::convolution_backward"] == 2 * 3


def test_the_committed_file_counts_every_step_and_operation() -> None:
    kept = json.loads(instructions.COMMITTED.read_text())
    assert {"versions", "calls"} <= kept.keys()
    names = " ".join(kept["calls"])
    for stem in (
        "bias_leaky_relu", "conv2d_bias_leaky_relu", "conv_transpose2d_bias_leaky_relu",
        "reparameterize", "dcgan-64 step", "critic step", "vae step",
    ):  # fmt: skip
        assert stem in names


@pytest.fixture
def counts() -> dict[str, Any]:
    return {
        "versions": {"torch": "2"},
        "calls": {"a step": {"calls": {"aten::mm": 3}, "saved_bytes": 100}},
        "counter": "callgrind",
        "instructions": {"a kernel": 1000},
    }


def test_equal_counts_differ_in_nothing(counts: dict[str, Any]) -> None:
    assert instructions.differences(counts, copy.deepcopy(counts)) == []


def test_whatever_grows_is_a_line(counts: dict[str, Any]) -> None:
    now = copy.deepcopy(counts)
    now["calls"]["a step"] = {"calls": {"aten::mm": 4, "aten::add": 1}, "saved_bytes": 120}
    now["instructions"] = {"a kernel": 1030, "a new one": 5}
    assert instructions.differences(now, counts) == [
        "a step: aten::add called 1 times, 0 before",
        "a step: aten::mm called 4 times, 3 before",
        "a step: 120 bytes saved for the backward, 100 before",
        "a kernel: 1000 instructions became 1030 (+3.0 %)",
        "a new one: 5 instructions, not counted before",
    ]


def test_noise_and_other_versions_are_no_growth(counts: dict[str, Any]) -> None:
    now = copy.deepcopy(counts)
    now["instructions"]["a kernel"] = 1015
    assert instructions.differences(now, counts) == []
    now["calls"]["a step"]["saved_bytes"] = 200
    now["versions"] = {"torch": "3"}
    assert instructions.differences(now, counts) == []
