"""What is shown of a training's progress."""

from __future__ import annotations

import re
import sys
from time import sleep

import pytest

from fastgen.training.progress import Meter, Progress

RECORD = {"step": 10, "seconds": 2.0, "images_per_second": 1234.5, "critic/loss": -0.123456}


def test_off_a_terminal_each_log_point_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress(5, 20, on=True) as progress:
        progress.advance()
        progress.show(RECORD)
    out, err = capsys.readouterr()
    assert out == ""
    pattern = r"step 10/20  critic/loss -0\.1235  1234 images/s  \d+:\d\d:\d\d left\n"
    assert re.fullmatch(pattern, err)


@pytest.mark.parametrize("steps", [10**18, sys.maxsize, 10**40])
def test_more_steps_than_any_time_has_are_no_obstacle(
    steps: int, capsys: pytest.CaptureFixture[str]
) -> None:
    with Progress(0, steps, on=True) as progress:
        sleep(0.01)
        progress.show(RECORD)
    assert f"step 10/{steps}" in capsys.readouterr().err


def test_on_a_terminal_a_bar_shows_losses_speed_and_time_left(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with Progress(5, 20, on=True) as progress:
        progress.show(RECORD)
        for _ in range(15):
            sleep(0.01)
            progress.advance()
    shown = capsys.readouterr().err
    assert "critic -0.123  1234 images/s" in shown
    assert "20/20" in shown
    assert re.search(r"\d\d:\d\d<\d\d:\d\d", shown)


@pytest.mark.parametrize(("columns", "shown_last"), [(100, "1234 images/s]"), (80, "1234 ima")])
def test_a_bar_of_usual_width_shows_the_loss_of_every_phase(
    columns: int,
    shown_last: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setattr("tqdm.std._screen_shape_wrapper", lambda: lambda file: (columns, 24))
    logged = {"loss": 1.0912, "value": -0.6805, "real": 0.511, "fake": 0.498, "r1": 0.01234}
    record = {
        **{name: RECORD[name] for name in ("step", "seconds", "images_per_second")},
        **{f"discriminator/{name}": value for name, value in logged.items()},
        "generator/loss": 0.70123,
    }
    with Progress(26, 2000, on=True) as progress:
        progress.show(record)
    line = re.split(r"[\r\n]", capsys.readouterr().err.rstrip())[-1]
    assert len(line) <= columns
    assert "26/2000" in line
    assert "discriminator 1.09  generator 0.701" in line
    assert shown_last in line


def test_without_standard_error_nothing_is_said(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stderr", None)
    with Progress(0, 20, on=True) as progress:
        progress.advance()
        progress.show(RECORD)
        progress.warn("a line")
    monkeypatch.undo()
    assert capsys.readouterr() == ("", "")


def test_off_it_says_nothing_but_warnings(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress(0, 20, on=False) as progress:
        progress.show(RECORD)
        progress.say("good to know")
        progress.warn("must be known")
    assert capsys.readouterr().err == "must be known\n"


def test_time_stands_still_while_paused_and_goes_on_from_before(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 100.0
    monkeypatch.setattr("fastgen.training.progress.perf_counter", lambda: now)
    meter = Meter()
    meter.seconds_before = 50.0
    with meter.running():
        now += 2
        meter.add(128)
        with meter.paused():
            now += 1000
            assert meter.seconds == 52
            assert meter.rate() == 64
        now += 1
        meter.add(10)
    now += 1000
    assert meter.seconds == 53
    with meter.paused():
        now += 1
    assert meter.seconds == 53
    with meter.running():
        now += 4
        meter.add(8)
        assert meter.rate() == 2
