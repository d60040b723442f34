"""The speed ladder on shapes so small that only the program is tried."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from fastgen.bench import rungs, subjects, tables
from fastgen.bench.ladder import Ladder, differs, higher, write
from fastgen.bench.layers import Layer
from fastgen.bench.passes import BOTH, bias_leaky_relu_pass
from fastgen.bench.subjects import Subject, layer_subject, pass_subject, sampling_subject
from fastgen.bench.work import Work

CPU = torch.device("cpu")
LAYER = Layer("small", 3, 3, 5, 9, kernel=3, stride=2, padding=1)
# Time for every subject and for no compilation, on a busy machine too.
TIME, COMPILATION = 600.0, 6000.0


def silent(line: str) -> None:
    pass


def small_subjects() -> list[Subject]:
    subjects = [
        layer_subject("a layer", LAYER, BOTH),
        pass_subject("an activation", 2, bias_leaky_relu_pass((2, 3, 5, 7), BOTH)),
        sampling_subject(batch=2, size=8, width=4),
    ]
    return [replace(subject, compile_seconds=COMPILATION) for subject in subjects]


def climb(chosen: list[Subject], **more: Any) -> dict[str, Any]:
    more = {"quick": True, "tiny": True, "seconds": TIME, "say": silent, **more}
    return Ladder(CPU, **more).climb(chosen)


@pytest.fixture(scope="module")
def results() -> dict[str, Any]:
    return climb(small_subjects())


def stub(name: str, make: Callable[..., Any], **more: Any) -> Subject:
    return Subject(name, "layer", 1, lambda: Work(8, 4), {"eager": make}, **more)


def test_every_subject_is_measured_on_the_rungs_that_apply(results: dict[str, Any]) -> None:
    assert [row["name"] for row in results["rows"]] == [s.name for s in small_subjects()]
    for row in results["rows"]:
        names = {rung["name"] for rung in row["rungs"]}
        assert {"eager", "channels_last", "bf16", "fastgen", "fastgen bf16"} <= names
        assert all(rung["seconds"] > 0 for rung in row["rungs"])
        assert all(rung["method"] == "process" for rung in row["rungs"])


def test_a_ratio_stands_only_between_one_precision_and_layout(results: dict[str, Any]) -> None:
    for row in results["rows"]:
        eager = {
            (r["dtype"], r["layout"]): r["seconds"] for r in row["rungs"] if r["way"] == "eager"
        }
        for rung in row["rungs"]:
            expected = eager[rung["dtype"], rung["layout"]] / rung["seconds"]
            assert rung["over_eager"] == pytest.approx(expected)


def test_every_rung_of_a_layer_computes_what_eager_pytorch_does(results: dict[str, Any]) -> None:
    compared = [rung for row in results["rows"] for rung in row["rungs"] if "difference" in rung]
    assert len(compared) >= 10
    assert not any(map(differs, compared))


def test_a_rung_that_computes_something_else_is_named() -> None:
    def wrong(rung: rungs.Rung, device: torch.device) -> Callable[[], torch.Tensor]:
        return lambda: torch.full((3,), 1.0 if rung.layout == "contiguous" else 2.0)

    def make(rung: rungs.Rung, device: torch.device) -> Callable[[], torch.Tensor]:
        return lambda: torch.ones(3)

    subject = Subject(
        "wrong", "layer", 1, lambda: Work(8, 4), {"eager": make, "fastgen": wrong}, compares=True
    )
    found = climb([subject])
    by_name = {rung["name"]: rung for rung in found["rows"][0]["rungs"]}
    assert by_name["fastgen"]["difference"] == pytest.approx(1.0)
    assert differs(by_name["fastgen"])
    assert not differs(by_name["eager"])
    cells = [list(column.cells) for column in tables.rich_tables(found)[0].columns]
    assert any("DIFFERS" in str(cell) for column in cells for cell in column)


def test_a_peer_that_is_not_installed_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rungs, "find_spec", lambda name: None)
    row = climb([sampling_subject(batch=2, size=8, width=4)])["rows"][0]
    (reason,) = [row["left_out"]["ONNX Runtime"]]
    assert "onnxruntime, onnx, onnxscript are not installed" in reason
    assert "\n" not in reason
    assert "ONNX Runtime" not in {rung["name"] for rung in row["rungs"]}


def test_peers_of_one_kind_of_device_say_so() -> None:
    cuda = torch.device("cuda")
    assert rungs.WAYS["onnxruntime"](cuda) == "ONNX Runtime is compared on a CPU only"
    assert rungs.WAYS["captured"](CPU) == "CUDA graphs need a CUDA device"
    assert rungs.WAYS["captured"](cuda) is None


def test_arguments_and_results_rotate_through_memory() -> None:
    def make() -> tuple[torch.Tensor]:
        return (torch.randn(1 << 21),)

    call = subjects.over_sets(lambda x: x + 1, make, CPU)
    addresses = [call().data_ptr() for _ in range(8)]  # type: ignore[attr-defined]
    sets = subjects.CPU_SET_BYTES // (4 << 21)
    assert len(set(addresses[:sets])) == sets > 1


def test_a_candidate_that_fails_leaves_the_others() -> None:
    def make(rung: rungs.Rung, device: torch.device) -> Callable[[], torch.Tensor]:
        if rung.dtype == "bfloat16":
            raise RuntimeError("no such kernel\nand more")
        return lambda: torch.ones(3)

    row = climb([stub("half", make)])["rows"][0]
    assert row["left_out"] == {"bf16": "RuntimeError: no such kernel"}
    assert [rung["name"] for rung in row["rungs"]] == ["eager", "channels_last"]


def test_what_there_is_no_time_for_is_left_out_by_name() -> None:
    found = climb(small_subjects(), seconds=0.0)
    assert found["skipped"] == [subject.name for subject in small_subjects()]
    assert found["complete"]
    assert any(line.startswith("no time left: a layer") for line in tables.left_out(found))


def test_ctrl_c_keeps_what_was_measured(tmp_path: Path) -> None:
    def stopped(rung: rungs.Rung, device: torch.device) -> Callable[[], torch.Tensor]:
        raise KeyboardInterrupt

    path = tmp_path / "new" / "ladder.json"
    found = climb(
        [small_subjects()[1], stub("stopped", stopped)], save=lambda results: write(path, results)
    )
    assert not found["complete"]
    assert [row["name"] for row in found["rows"]] == ["an activation"]
    assert json.loads(path.read_text()) == json.loads(json.dumps(found))
    assert tables.machine_line(found).endswith("not complete")


def test_the_json_says_what_was_measured_on_what(results: dict[str, Any]) -> None:
    kept = json.loads(json.dumps(results))
    assert kept["format"] == 1
    assert {"processor", "threads", "torch", "python", "commit", "fastgen"} <= kept[
        "machine"
    ].keys()
    assert kept["ceilings"]["copy_bytes_per_second"] > 0
    assert set(kept["ceilings"]["operations_per_second"]) == set(rungs.DTYPES)
    for row in kept["rows"]:
        assert {
            "name",
            "kind",
            "batch",
            "operations",
            "numbers",
            "least_operations",
            "rungs",
            "left_out",
        } == row.keys()


def test_the_higher_measurement_of_a_ceiling_counts() -> None:
    one = {
        "copy_bytes_per_second": 1.0,
        "fill_bytes_per_second": 3.0,
        "operations_per_second": {"float32": 5.0},
    }
    other = {
        "copy_bytes_per_second": 2.0,
        "fill_bytes_per_second": 1.0,
        "operations_per_second": {"float32": 4.0},
    }
    assert higher(one, other) == {
        "copy_bytes_per_second": 2.0,
        "fill_bytes_per_second": 3.0,
        "operations_per_second": {"float32": 5.0},
    }


def test_every_subject_of_the_ladder_has_its_ways_among_the_rungs() -> None:
    ways = {rung.way for rung in rungs.RUNGS}
    assert ways == rungs.WAYS.keys()
    offered = {way for subject in subjects.subjects(CPU, tiny=True) for way in subject.ways}
    assert offered == ways


def test_a_captured_step_runs_as_it_is_where_there_is_no_gpu() -> None:
    """What is captured on a GPU is the step itself: here the same callable computes eagerly."""
    step = subjects.CPU_STEPS["critic"]._replace(batch=2, size=8, width=4)
    rung = next(r for r in rungs.RUNGS if r.name == "captured")
    call = subjects.step_subject("critic", step).ways["captured"](rung, CPU)
    assert callable(call)
    first, second = call(), call()
    assert first[0].isfinite()
    assert first[0] != second[0]  # the optimizer moved
