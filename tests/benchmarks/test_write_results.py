"""The documents hold exactly what the committed JSON says, and misses are named."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import write_results
from results import FOLDER, opened, save, verdict


def a_cpu_result() -> dict[str, Any]:
    def demand(ours: str, over: str, target: float, reached: float | None) -> dict[str, Any]:
        return {"ours": ours, "over": over, "target": target, "reached": reached}

    bf16, eager = "fastgen bfloat16 channels_last", "eager bfloat16 channels_last"
    row = {"threads": 1, "batch": 64, "wall_seconds": {}, "spread": {}, "left_out": {}}
    return {
        "format": 1, "date": "2026-01-01",
        "machine": {"processor": "one", "cores": 2, "torch": "2", "python": "3", "commit": "c"},
        "ceilings": {
            "1": {"copy_bytes_per_second": 1.7e10, "operations_per_second": {"bfloat16": 2.3e11}},
        },
        "rows": [
            {**row, "row": "critic", "name": "a critic's step", "seconds": {bf16: 0.25},
             "demands": [demand(bf16, eager, 2.0, 1.5)]},
            {**row, "row": "bias", "name": "an activation", "seconds": {bf16: 0.0021},
             "demands": [demand(bf16, "copy bandwidth", 0.7, 0.77)],
             "left_out": {"ONNX Runtime": "it is not installed"}},
            {**row, "row": "import", "name": "import", "seconds": {"import fastgen": 0.3},
             "demands": [demand("import fastgen", "seconds", 0.2, 0.3)]},
            {"row": "dcgan", "threads": 2, "failed": "RuntimeError: no memory"},
        ],
    }  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("penalty.json", "quality.json"):
        shutil.copy(FOLDER / name, tmp_path)
    return tmp_path


def test_the_committed_documents_are_what_the_committed_results_say() -> None:
    assert write_results.PAGE.read_text() == write_results.page()
    readme = write_results.README.read_text()
    assert readme == write_results.with_numbers(readme)


def test_what_was_not_measured_is_said_plainly(folder: Path) -> None:
    page = write_results.page(folder)
    assert "## On a GPU\n\nNot measured on a GPU." in page
    assert "## Targets on a CPU\n\nNot measured yet." in page
    numbers = write_results.with_numbers("<!-- numbers --><!-- end of numbers -->", folder)
    assert "Nothing has been measured on a GPU." in numbers
    assert numbers.count("| not measured |") == len(write_results.HEADLINES)


def test_a_missed_target_is_named_with_by_how_much(folder: Path) -> None:
    save(folder / "cpu.json", a_cpu_result())
    page = write_results.page(folder)
    assert (
        "* a critic's step, 1 thread: bfloat16 channels_last, over eager bfloat16 channels_last "
        "**1.50x**, target >= 2.00x: missed by 25 %" in page
    )
    assert (
        "* import, 1 thread: import fastgen **0.300 s**, target < 0.200 s: missed by 50 %" in page
    )
    assert "* an activation" not in page.split("Missed:")[1].split("Not measured:")[0]
    assert "| >= 70 % | **77 %** |  |  | met |" in page
    assert "* dcgan, 2 threads: failed: RuntimeError: no memory" in page
    assert "* bias, 1 thread: ONNX Runtime: it is not installed" in page


def test_a_target_beyond_the_machines_peak_is_said_to_be(folder: Path) -> None:
    results = a_cpu_result()
    results["rows"][0]["demands"][0]["at_peak"] = 1.8
    save(folder / "cpu.json", results)
    page = write_results.page(folder)
    assert "missed by 25 %; the machine's peak allows 1.80x" in page
    assert "| **1.50x** |  | 1.80x | missed by 25 % |" in page
    results["rows"][0]["demands"][0]["at_peak"] = 2.1
    save(folder / "cpu.json", results)
    assert "the machine's peak allows" not in write_results.page(folder)


def test_the_readme_takes_its_numbers_from_one_thread(folder: Path) -> None:
    save(folder / "cpu.json", a_cpu_result())
    text = write_results.with_numbers("a\n<!-- numbers -->old<!-- end of numbers -->\nb", folder)
    assert "| **1.50x** | eager bfloat16 channels_last | >= 2.00x: missed by 25 % |" in text
    assert text.startswith("a\n")
    assert text.endswith("\nb")
    assert "old" not in text
    with pytest.raises(ValueError, match="once"):
        write_results.with_numbers("no markers", folder)


def test_a_gpu_run_is_shown_with_its_targets(folder: Path) -> None:
    row = {
        "name": "DCGAN-64 step", "dtype": "bfloat16", "failed": {}, "bytes": 0, "operations": 10**9,
        "seconds": {"fastgen": 0.001, "eager": 0.004, "compile reduce-overhead": 0.001},
    }  # fmt: skip
    results = {
        "format": 1, "tiny": False, "date": "2026-01-01",
        "machine": {"device": "a GPU", "driver": "1", "torch": "2", "commit": "c"},
        "ceilings": {
            "copy_bytes_per_second": 1e12,
            "fill_bytes_per_second": 9e11,
            "operations_per_second": {"bfloat16": 1e15},
        },
        "groups": {"steps": {"rows": [row], "skipped": ["VAE step bfloat16"], "seconds": 1}},
    }  # fmt: skip
    (folder / "gpu.json").write_text(json.dumps(results))
    page = write_results.page(folder)
    assert "a GPU, driver 1, torch 2, commit c, 2026-01-01." in page
    assert "a copy moves 1.00 TB/s, read and written, filling a tensor 0.90 TB/s; a matrix" in page
    assert "| bfloat16: over eager | >= 3.00x | 4.00x | met |" in page
    assert "| bfloat16: over compile reduce-overhead | >= 1.50x | 1.00x | missed by 33 % |" in page
    assert "steps: no time for 1: VAE step bfloat16" in page
    assert "Nothing has been measured on a GPU" not in page


@pytest.mark.parametrize(
    ("reached", "target", "at_most", "words"),
    [
        (None, 2.0, False, "not measured"),
        (2.0, 2.0, False, "met"),
        (1.5, 2.0, False, "missed by 25 %"),
        (0.1, 0.2, True, "met"),
        (0.3, 0.2, True, "missed by 50 %"),
    ],
)
def test_verdicts(reached: float | None, target: float, at_most: bool, words: str) -> None:
    assert verdict(reached, target, at_most=at_most) == words


def test_rows_of_another_commit_are_not_kept(tmp_path: Path) -> None:
    path = tmp_path / "cpu.json"
    fresh = opened(path)
    assert fresh["rows"] == []
    save(path, {**fresh, "rows": [{"row": "kept"}]})
    assert opened(path)["rows"] == [{"row": "kept"}]
    other = {**fresh["machine"], "commit": "another"}
    save(path, {**fresh, "rows": [{"row": "old"}], "machine": other})
    assert opened(path)["rows"] == []
    path.write_text("not JSON")
    assert opened(path)["rows"] == []
