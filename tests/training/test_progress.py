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
    assert "critic/loss -0.1235  1234 images/s" in shown
    assert "20/20" in shown
    assert re.search(r"\d\d:\d\d<\d\d:\d\d", shown)


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
