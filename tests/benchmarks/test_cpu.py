"""The program that measures the CPU targets, on shapes that take no time."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import cpu
import pytest

from fastgen.bench.layers import Layer
from fastgen.bench.passes import BOTH, bias_leaky_relu_pass
from fastgen.bench.subjects import Subject, layer_subject, pass_subject

LIMITS = {"copy_bytes_per_second": 1e10, "operations_per_second": {"float32": 1e11}}


def a_layer() -> Subject:
    layer = Layer("small", 2, 3, 5, 9, kernel=3, stride=2, padding=1)
    return layer_subject("a layer", layer, "input gradient")


def an_activation() -> Subject:
    return pass_subject("an activation", 2, bias_leaky_relu_pass((2, 3, 5, 7), BOTH))


def broken() -> Subject:
    raise RuntimeError("no such thing\nand more")


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = {
        "layer": cpu.Row(a_layer, (cpu.Demand(cpu.OURS, cpu.EAGER, 2.0),)),
        "broken": cpu.Row(broken, ()),
        "activation": cpu.Row(
            an_activation,
            (cpu.Demand(cpu.OURS, cpu.COPY, 0.7), cpu.Demand(cpu.OURS_BF16, cpu.ONNX, 1.5)),
        ),
    }
    monkeypatch.setattr(cpu, "ROWS", rows)
    monkeypatch.setattr(cpu, "ceilings", lambda device: LIMITS)


def run(monkeypatch: pytest.MonkeyPatch, path: Path, *words: str) -> dict[str, Any]:
    command = ["cpu.py", "--json", str(path), "--threads", "1", "--rounds", "1", *words]
    monkeypatch.setattr(sys, "argv", command)
    cpu.main()
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def test_a_demand_is_the_ratio_of_the_two_times() -> None:
    row = cpu.measure_row("layer", 1, LIMITS, rounds=3)
    (demand,) = row["demands"]
    expected = row["seconds"][cpu.EAGER.name] / row["seconds"][cpu.OURS.name]
    assert demand["reached"] == pytest.approx(expected)
    assert demand["by_wall_clock"] > 0
    assert set(row["seconds"]) == {cpu.EAGER.name, cpu.OURS.name}


def test_a_share_of_the_copy_bandwidth_is_bytes_over_time() -> None:
    row = cpu.measure_row("activation", 1, LIMITS, rounds=3)
    share, against_onnx = row["demands"]
    moved = 5 * 2 * 3 * 5 * 7 * 4
    assert share["reached"] == pytest.approx(moved / row["seconds"][cpu.OURS.name] / 1e10)
    assert against_onnx["reached"] is None  # ONNX Runtime has no such layer


def test_a_row_that_fails_leaves_the_others(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    found = run(monkeypatch, tmp_path / "cpu.json", "--rows", "layer,broken,activation")
    assert [row["row"] for row in found["rows"]] == ["layer", "broken", "activation"]
    assert found["rows"][1]["failed"] == "RuntimeError: no such thing"
    assert found["ceilings"]["1"] == LIMITS
    assert {"processor", "torch", "commit"} <= found["machine"].keys()


def test_rows_of_an_earlier_run_are_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "cpu.json"
    run(monkeypatch, path, "--rows", "activation")
    found = run(monkeypatch, path, "--rows", "layer")
    assert [row["row"] for row in found["rows"]] == ["layer", "activation"]


def test_a_row_that_does_not_exist_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with pytest.raises(SystemExit):
        run(monkeypatch, tmp_path / "cpu.json", "--rows", "nothing")


def test_importing_fastgen_is_timed_in_fresh_interpreters() -> None:
    row = cpu.measure_import(rounds=1)
    assert all(0 < seconds < 30 for seconds in row["seconds"].values())
    assert row["demands"][0]["reached"] == row["seconds"]["import fastgen"]
