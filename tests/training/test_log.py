"""The log is a file of JSON lines that a resumed training cuts where it goes on."""

from __future__ import annotations

import errno
import json
import os
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from fastgen.training.log import RunLog, read_log


def record(step: int) -> dict[str, float]:
    return {"step": step, "seconds": 1.5, "images_per_second": 10.0, "gan/loss": step / 3}


def write(path: Path, *steps: int, after: int = 0, every: int = 5) -> list[str]:
    said: list[str] = []
    with RunLog(path, after=after, every=every, goes_on=bool(steps), say=said.append) as log:
        for step in steps:
            log.record(record(step))
    return said


def steps(path: Path) -> list[float]:
    return [line["step"] for line in read_log(path)]


def test_numbers_come_back_exactly(tmp_path: Path) -> None:
    write(tmp_path / "log.jsonl", 5, 10)
    assert read_log(tmp_path / "log.jsonl") == [record(5), record(10)]
    assert [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]


def test_lines_beyond_the_checkpoint_are_dropped(tmp_path: Path) -> None:
    write(tmp_path / "log.jsonl", 5, 10, 15, 20)
    write(tmp_path / "log.jsonl", 15, after=12)
    assert steps(tmp_path / "log.jsonl") == [5, 10, 15]


def test_lines_beyond_a_step_that_the_caller_chose_are_kept_beside_the_log(tmp_path: Path) -> None:
    path, said = tmp_path / "log.jsonl", []
    write(path, 5, 10, 15, 20)
    for _ in range(2):
        options = {"every": 5, "goes_on": True, "say": said.append, "went_back": True}
        with RunLog(path, after=10, **options) as log:
            log.record(record(15))
        assert steps(path) == [5, 10, 15]
    assert steps(tmp_path / "log-after-000010.jsonl") == [15, 20, 15]
    assert [str(tmp_path / "log-after-000010.jsonl") in line for line in said] == [True, True]


def test_the_last_line_of_a_shorter_training_is_dropped_when_it_goes_on(tmp_path: Path) -> None:
    write(tmp_path / "log.jsonl", 5, 8)
    write(tmp_path / "log.jsonl", 10, after=8)
    assert steps(tmp_path / "log.jsonl") == [5, 10]


def test_the_last_line_of_a_training_stays_when_no_step_follows(tmp_path: Path) -> None:
    write(tmp_path / "log.jsonl", 5, 8)
    write(tmp_path / "log.jsonl", after=8)
    assert steps(tmp_path / "log.jsonl") == [5, 8]


def test_a_line_cut_short_by_a_kill_is_no_obstacle(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    write(path, 5)
    path.write_text(path.read_text() + '{"step": 10, "sec')
    assert steps(path) == [5]
    write(path, 10, after=5)
    assert steps(path) == [5, 10]


@pytest.mark.parametrize("line", ["{", "[]", "3", '{"step": 3}', '{"step": "x"}', "\udc80", ""])
def test_a_damaged_line_is_left_out_and_named(tmp_path: Path, line: str) -> None:
    path, said = tmp_path / "log.jsonl", []
    with RunLog(path, after=0, every=5, goes_on=True, say=print) as log:
        log.record(record(5))
    whole = path.read_bytes()
    path.write_bytes(line.encode(errors="surrogateescape") + b"\n" + whole)
    assert read_log(path) == [record(5)]
    with RunLog(path, after=5, every=5, goes_on=True, say=said.append):
        pass
    assert path.read_bytes() == whole
    assert any(f"{path}" in each and "line 1" in each for each in said)


def test_tensorboard_reads_the_same_numbers(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    write(tmp_path / "log.jsonl", 5, 10, 15)
    time.sleep(1)  # files of events are read in the order of their names, which count seconds
    write(tmp_path / "log.jsonl", 15, after=10)
    events = accumulator.EventAccumulator(str(tmp_path)).Reload()
    assert [(point.step, point.value) for point in events.Scalars("gan/loss")] == [
        (5, pytest.approx(5 / 3)),
        (10, pytest.approx(10 / 3)),
        (15, pytest.approx(5)),
    ]


@pytest.mark.parametrize(("after", "before"), [(0, (5, 10)), (10, (5, 10, 15)), (8, (5, 10))])
def test_tensorboard_shows_each_step_once_wherever_a_training_goes_on(
    after: int, before: tuple[int, ...], tmp_path: Path
) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")

    def training(*steps: int, first: int, after: int) -> None:
        picture = np.zeros((4, 4, 3), np.uint8)
        path = tmp_path / "log.jsonl"
        with RunLog(path, after=after, every=5, goes_on=True, say=print) as log:
            for step in range(first, steps[-1] + 1, 2):
                log.picture("samples", picture, step)
            for step in steps:
                log.record(record(step))

    training(*before, first=0, after=0)
    time.sleep(1)  # as above
    rest = [step for step in (5, 10, 15, 20) if step > after]
    training(*rest, first=after + 2 if after else 0, after=after)
    events = accumulator.EventAccumulator(str(tmp_path), size_guidance={"images": 0}).Reload()
    shown = [picture.step for picture in events.Images("samples")]
    assert shown == list(range(0, 21, 2))
    assert [point.step for point in events.Scalars("gan/loss")] == [5, 10, 15, 20]
    assert steps(tmp_path / "log.jsonl") == [5, 10, 15, 20]


def test_without_tensorboard_one_line_says_how_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fastgen.training.log.find_spec", lambda name: None)
    said = write(tmp_path / "log.jsonl", 5)
    assert len(said) == 1
    assert "pip install tensorboard" in said[0]
    assert steps(tmp_path / "log.jsonl") == [5]


def test_a_full_disk_is_told_with_the_file(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    log = RunLog(path, after=0, every=5, goes_on=True, say=lambda line: None)
    full = os.open("/dev/full", os.O_WRONLY)
    os.dup2(full, log._file.fileno())
    os.close(full)
    with pytest.raises(OSError, match="No space left") as caught:
        log.record(record(5))
    assert caught.value.filename == str(path)
    with pytest.raises(OSError, match="No space left") as caught, log:
        pass
    assert caught.value.filename == str(path)


def test_a_full_disk_is_told_once_where_tensorboards_thread_meets_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = pytest.importorskip("tensorboard.summary.writer.record_writer")
    printed: list[threading.ExceptHookArgs] = []
    monkeypatch.setattr(threading, "excepthook", printed.append)
    before = threading.excepthook

    def full(self: object, data: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    def another_thread_fails() -> None:
        thread = threading.Thread(target=lambda: [][0])
        thread.start()
        thread.join()

    log = RunLog(tmp_path / "log.jsonl", after=0, every=5, goes_on=True, say=print)
    another_thread_fails()
    log.flush()
    monkeypatch.setattr(writer.RecordWriter, "write", full)
    with pytest.raises(OSError, match="No space left"), log:
        log.record(record(5))
    assert [failure.exc_type for failure in printed] == [IndexError]
    assert threading.excepthook is before
    assert steps(tmp_path / "log.jsonl") == [5]
