"""A checkpoint is whole or not there."""

from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from fastgen.training.checkpoint import (
    Checkpoint,
    CheckpointError,
    DamagedCheckpoint,
    checkpoints,
    discard_damaged,
    discard_partial,
    keep_newest,
    read_checkpoint,
    read_latest,
    write_checkpoint,
)


def example(step: int) -> Checkpoint:
    shared = torch.randn(3)
    weights = {
        "channels_last": torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last),
        "scalar": torch.tensor(2, dtype=torch.int64),
        "half": torch.randn(5).bfloat16(),
        "empty": torch.zeros(0, 4),
        "tied": shared,
        "tied_too": shared,
    }
    return Checkpoint({"model": weights, "optimizer": {}}, {"step": step, "note": [1, None]})


def write(folder: Path, *steps: int) -> list[Path]:
    paths = [folder / f"{step:06d}" for step in steps]
    for step, path in zip(steps, paths, strict=True):
        write_checkpoint(path, example(step))
    return paths


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_what_is_written_is_read_bit_for_bit(tmp_path: Path) -> None:
    written = example(7)
    write_checkpoint(tmp_path / "7", written)
    read = read_checkpoint(tmp_path / "7")
    assert read.state["step"] == 7
    assert read.state["note"] == [1, None]
    assert read.tensors["optimizer"] == {}
    for name, tensor in written.tensors["model"].items():
        assert read.tensors["model"][name].dtype == tensor.dtype
        assert torch.equal(read.tensors["model"][name], tensor)


def test_only_safetensors_and_json_are_written(tmp_path: Path) -> None:
    (path,) = write(tmp_path, 1)
    assert names(path) == ["model.safetensors", "optimizer.safetensors", "state.json"]
    json.loads((path / "state.json").read_text())
    for file in path.glob("*.safetensors"):
        header_size = int.from_bytes(file.read_bytes()[:8], "little")
        json.loads(file.read_bytes()[8 : 8 + header_size])


@pytest.mark.parametrize("file", ["model.safetensors", "optimizer.safetensors", "state.json"])
@pytest.mark.parametrize("damage", ["truncated", "flipped", "missing"])
def test_a_damaged_checkpoint_is_refused_by_name_and_the_one_before_is_used(
    tmp_path: Path, file: str, damage: str
) -> None:
    _, good, bad = write(tmp_path, 1, 2, 10)
    data = (bad / file).read_bytes()
    if damage == "missing":
        (bad / file).unlink()
    elif damage == "truncated":
        (bad / file).write_bytes(data[: len(data) // 2])
    else:
        (bad / file).write_bytes(data[:-2] + bytes([data[-2] ^ 1]) + data[-1:])
    with pytest.raises(DamagedCheckpoint, match=f"{bad}.*{file}"):
        read_checkpoint(bad)
    latest = read_latest(tmp_path)
    assert latest is not None
    path, checkpoint, complaints = latest
    assert path == good
    assert checkpoint.state["step"] == 2
    assert len(complaints) == 1
    assert str(bad) in complaints[0]


def test_where_all_are_damaged_none_is_invented(tmp_path: Path) -> None:
    for path in write(tmp_path, 1, 2):
        (path / "model.safetensors").write_bytes(b"")
    with pytest.raises(DamagedCheckpoint, match="no checkpoint can be read"):
        read_latest(tmp_path)
    assert read_latest(tmp_path / "nothing") is None


def test_a_disk_that_fills_at_any_moment_leaves_the_old_ones_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every single flush of a file or folder fails once, until a checkpoint gets through."""
    write(tmp_path, 1)
    flush, failures = os.fsync, 0

    def failing_at(call: int) -> None:
        calls = iter(range(100))

        def fsync(descriptor: int) -> None:
            if next(calls) == call:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            flush(descriptor)

        monkeypatch.setattr(os, "fsync", fsync)

    for call in range(3 + 1):  # three files and the new folder
        failing_at(call)
        with pytest.raises(CheckpointError, match="No space left on device"):
            write(tmp_path, 2)
        failures += 1
        assert names(tmp_path) == ["000001"]
        assert read_checkpoint(tmp_path / "000001").state["step"] == 1
    monkeypatch.setattr(os, "fsync", flush)
    write(tmp_path, 2)
    assert names(tmp_path) == ["000001", "000002"]
    assert failures == 4


def test_what_a_kill_left_is_cleared_and_never_read(tmp_path: Path) -> None:
    write(tmp_path, 1)
    partial = tmp_path / ".partial-000002"
    partial.mkdir()
    (partial / "model.safetensors").write_bytes(b"half")
    assert [path.name for path in checkpoints(tmp_path)] == ["000001"]
    # Another process may be writing that one; this one's own is written again.
    write(tmp_path, 3)
    assert names(tmp_path) == [".partial-000002", "000001", "000003"]
    write(tmp_path, 2)
    assert names(tmp_path) == ["000001", "000002", "000003"]
    partial.mkdir()
    discard_partial(tmp_path)
    assert names(tmp_path) == ["000001", "000002", "000003"]


def test_the_newest_are_kept_by_number_and_not_by_name(tmp_path: Path) -> None:
    write(tmp_path, 999_999, 1_000_000, 20)
    keep_newest(tmp_path, 2, spared=tmp_path / "000020")
    assert names(tmp_path) == ["000020", "1000000", "999999"]
    keep_newest(tmp_path, 2)
    assert names(tmp_path) == ["1000000", "999999"]
    keep_newest(tmp_path, 5)
    assert len(names(tmp_path)) == 2


def test_a_kill_while_an_old_one_goes_leaves_no_half_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, 1, 2)

    def killed(path: Path) -> None:
        (path / "model.safetensors").unlink()
        raise KeyboardInterrupt

    monkeypatch.setattr(shutil, "rmtree", killed)
    with pytest.raises(KeyboardInterrupt):
        keep_newest(tmp_path, 1)
    assert [path.name for path in checkpoints(tmp_path)] == ["000002"]


def test_a_checkpoint_is_never_overwritten(tmp_path: Path) -> None:
    (path,) = write(tmp_path, 1)
    with pytest.raises(CheckpointError, match="is there already"):
        write_checkpoint(path, example(2))
    discard_damaged(path)
    assert read_checkpoint(path).state["step"] == 1
    (path / "state.json").write_text("{")
    discard_damaged(path)
    assert not path.exists()


@pytest.mark.parametrize(
    "state",
    [
        "null",
        "[]",
        "{}",
        '"text"',
        '{"sha256": {}}',
        '{"format": 1, "sha256": ["model.safetensors"]}',
    ],
)
def test_a_state_that_is_json_and_nothing_more_is_damage(tmp_path: Path, state: str) -> None:
    (path,) = write(tmp_path, 1)
    (path / "state.json").write_text(state)
    with pytest.raises(DamagedCheckpoint, match=r"state\.json is unreadable"):
        read_checkpoint(path)


@pytest.mark.parametrize(
    "change", [{"step": 2}, {"note": [1]}, {"sha256": {}}, {"step": None}], ids=str
)
def test_a_state_that_was_changed_is_damage(tmp_path: Path, change: dict[str, Any]) -> None:
    (path,) = write(tmp_path, 1)
    state = json.loads((path / "state.json").read_text())
    sha256 = {**change.get("sha256", state["sha256"]), "state.json": state["sha256"]["state.json"]}
    (path / "state.json").write_text(json.dumps({**state, **change, "sha256": sha256}))
    with pytest.raises(DamagedCheckpoint, match=r"state\.json is not what was written"):
        read_checkpoint(path)


def test_a_state_without_a_digest_of_its_own_is_read(tmp_path: Path) -> None:
    (path,) = write(tmp_path, 1)
    state = json.loads((path / "state.json").read_text())
    del state["sha256"]["state.json"]
    (path / "state.json").write_text(json.dumps(state))
    assert read_checkpoint(path).state["step"] == 1


def test_another_format_is_refused(tmp_path: Path) -> None:
    (path,) = write(tmp_path, 1)
    state = json.loads((path / "state.json").read_text())
    (path / "state.json").write_text(json.dumps({**state, "format": 99}))
    with pytest.raises(CheckpointError, match="has format 99"):
        read_checkpoint(path)
