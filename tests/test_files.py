"""Files are replaced whole, also by several processes at one time."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fastgen import files


def names(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


def test_two_processes_replace_one_file_and_the_later_one_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, write = tmp_path / "report.html", files.write_flushed

    def write_slowly(partial: Path, data: bytes) -> None:
        write(partial, data)
        if data == b"later":
            with monkeypatch.context() as other:
                other.setattr(os, "getpid", lambda: 1)
                files.replace_file(path, b"earlier")
            assert path.read_bytes() == b"earlier"

    monkeypatch.setattr(files, "write_flushed", write_slowly)
    files.replace_file(path, b"later")
    assert path.read_bytes() == b"later"
    assert names(tmp_path) == ["report.html"]


def test_a_file_that_cannot_be_written_stays_and_nothing_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "config.json"
    files.replace_file(path, b"old")

    def full(descriptor: int) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        files.replace_file(path, b"new")
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["config.json"]


def test_a_lock_is_waited_for_or_refused(tmp_path: Path) -> None:
    path, calls = tmp_path / "new" / ".lock", list[str]()

    def refuse() -> None:
        calls.append("busy")
        raise RuntimeError

    with files.locked(path, refuse):
        with pytest.raises(RuntimeError), files.locked(path, refuse):
            raise AssertionError
        assert calls == ["busy"]
    with files.locked(path, refuse):
        pass
    assert calls == ["busy"]
