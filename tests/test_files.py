"""Files are written whole or not at all, by several processes too; errors name them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fastgen import files
from fastgen.files import naming, replace_file, write_flushed


def names(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


def test_two_processes_replace_one_file_and_the_later_one_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, write = tmp_path / "report.html", files._write_flushed

    def write_slowly(partial: Path, data: bytes) -> None:
        write(partial, data)
        if data == b"later":
            with monkeypatch.context() as other:
                other.setattr(os, "getpid", lambda: 1)
                files.replace_file(path, b"earlier")
            assert path.read_bytes() == b"earlier"

    monkeypatch.setattr(files, "_write_flushed", write_slowly)
    files.replace_file(path, b"later")
    assert path.read_bytes() == b"later"
    assert names(tmp_path) == ["report.html"]


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


def test_the_cache_lies_where_the_user_says_and_without_a_home_folder_nowhere(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HOME", "/home/ada")
    monkeypatch.setenv("XDG_CACHE_HOME", "/fast")
    assert files.cache_folder() == Path("/fast/fastgen")
    monkeypatch.setenv("XDG_CACHE_HOME", "relative/paths/do/not/count")
    assert files.cache_folder() == Path("/home/ada/.cache/fastgen")
    monkeypatch.delenv("HOME")
    monkeypatch.setattr("pwd.getpwuid", {}.__getitem__)  # what an unknown user meets
    with pytest.raises(OSError, match="Not a directory"):
        files.cache_folder().mkdir(parents=True)


def full(descriptor: int) -> None:
    raise OSError(28, os.strerror(28))


def test_a_full_disk_leaves_the_old_file_and_is_told_with_the_new_ones_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "report.html"
    replace_file(path, b"old")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left") as caught:
        replace_file(path, b"new")
    assert caught.value.filename == str(path)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(OSError, match="No space left") as caught:
        write_flushed(tmp_path / "state.json", b"new")
    assert caught.value.filename == str(tmp_path / "state.json")


def test_a_name_and_a_message_that_are_there_stay(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as missing, naming(tmp_path):
        (tmp_path / "gone").stat()
    assert missing.value.filename == str(tmp_path / "gone")
    with pytest.raises(OSError, match=r"^only 3 GiB are free$"), naming(tmp_path):
        raise OSError("only 3 GiB are free")
