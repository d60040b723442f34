"""`fastgen bench`: files, table and exit code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from fastgen.bench import ladder
from fastgen.bench.passes import BOTH, bias_leaky_relu_pass
from fastgen.bench.subjects import Subject, pass_subject
from fastgen.cli import app


def only_a_small_one(device: torch.device, *, tiny: bool) -> list[Subject]:
    return [pass_subject("an activation", 2, bias_leaky_relu_pass((2, 3, 5, 7), BOTH))]


def quick_ceilings(device: torch.device, *, tiny: bool) -> dict[str, Any]:
    return {
        "copy_bytes_per_second": 1e10,
        "operations_per_second": {"float32": 1e11, "bfloat16": 1e11},
    }


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(ladder, "subjects", only_a_small_one)
    monkeypatch.setattr(ladder, "ceilings", quick_ceilings)


def test_the_ladder_is_a_table_a_json_file_and_two_pictures(tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    result = CliRunner().invoke(app, ["bench", "--quick", "--device", "cpu"])
    assert result.exit_code == 0, result.output
    for words in ("an activation", "fastgen bf16", "over eager", "1 thread, process time"):
        assert words in result.output
    assert "(0 to go)" in result.stderr
    folder = tmp_path / "fastgen-bench"
    assert sorted(path.name for path in folder.iterdir()) == [
        "ladder.json", "ladder.png", "roofline.png"
    ]  # fmt: skip
    assert json.loads((folder / "ladder.json").read_text())["complete"]
    for name in ("ladder.png", "roofline.png"):
        Image.open(folder / name).verify()
    assert torch.get_num_threads() == threads


def test_ctrl_c_leaves_the_files_and_says_where(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def stopped(device: torch.device, *, tiny: bool) -> list[Subject]:
        first = only_a_small_one(device, tiny=tiny)[0]

        def make(*_: object) -> None:
            raise KeyboardInterrupt

        second = Subject("never", "layer", 1, first.work, {"eager": make})  # type: ignore[dict-item]
        return [first, second]

    monkeypatch.setattr(ladder, "subjects", stopped)
    result = CliRunner().invoke(app, ["bench", "--quick", "--device", "cpu", "--out", "here"])
    assert result.exit_code == 130
    assert "what was measured is in here" in result.stderr
    kept = json.loads((tmp_path / "here" / "ladder.json").read_text())
    assert [row["name"] for row in kept["rows"]] == ["an activation"]
    assert not kept["complete"]


def test_a_device_that_is_not_there_is_one_line() -> None:
    result = CliRunner().invoke(app, ["bench", "--device", "cuda:99"])
    assert result.exit_code == 2
    assert result.stderr.startswith("fastgen: device 'cuda:99' is not there")
    result = CliRunner().invoke(app, ["bench", "--device", "gpu"])
    assert result.exit_code == 2
    assert result.stderr.startswith("fastgen: --device must be auto, cpu, cuda or a GPU by its")


def test_a_folder_that_cannot_be_made_is_told_before_anything_is_measured(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(ladder, "subjects", None)  # not to be reached
    (tmp_path / "file").touch()
    for out, code, message in (
        ("file", 2, "--out must be a folder (got the file file)"),
        ("file/deeper", 1, "file/deeper: Not a directory"),
    ):
        result = CliRunner().invoke(app, ["bench", "--quick", "--device", "cpu", "--out", out])
        assert (result.exit_code, result.stderr) == (code, f"fastgen: {message}\n")


def test_tuning_is_still_there() -> None:
    result = CliRunner().invoke(app, ["bench", "--tune"])
    assert result.exit_code == 0
    if not torch.cuda.is_available():
        assert "no GPU is visible" in result.output
