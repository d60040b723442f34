"""The report is one file that shows what the run holds."""

from __future__ import annotations

import json
import re
from base64 import b64decode
from html.parser import HTMLParser
from pathlib import Path

import pytest

from fastgen.training.report import HEIGHT, WIDTH, curve, write_report
from fastgen.training.run_folder import RunFolder

VOID = {"meta", "img", "br"}


class Page(HTMLParser):
    """Collects text and addresses; fails where tags do not match."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open, self.text, self.addresses = list[str](), "", list[str]()
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in VOID:
            self.open.append(tag)
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href", "xlink")]

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += f"{data}\n"


def filled(run: Path) -> RunFolder:
    folder = RunFolder(run)
    folder.claim({"model": "vae", "data": "<faces & more>", "steps": 20})
    folder.samples.mkdir()
    for name in ("000010", "000020", "000020-reconstructions"):
        (folder.samples / f"{name}.png").write_bytes(name.encode())
    folder.reals.write_bytes(b"reals")
    lines = [
        {"step": step, "seconds": 61.0, "images_per_second": 99.0, "vae/loss": 1.0 / step}
        for step in (10, 20)
    ]
    folder.log.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def test_the_page_needs_nothing_beside_it_and_shows_the_last_pictures(run: Path) -> None:
    folder = filled(run)
    write_report(folder)
    page = Page(folder.report.read_text())
    assert all(address.startswith("data:image/png;base64,") for address in page.addresses)
    shown = [b64decode(address.partition(",")[2]) for address in page.addresses]
    assert shown == [b"000020", b"000020-reconstructions", b"reals"]
    assert not re.search(r"https?://|<script|@import|url\(", folder.report.read_text())


def test_the_last_pictures_are_those_of_the_highest_step(run: Path) -> None:
    folder = filled(run)
    for step in (999_750, 1_000_000):
        for name in ("samples", "reconstructions"):
            path = folder.sample(step, name)
            path.write_bytes(path.stem.encode())
    write_report(folder)
    addresses = Page(folder.report.read_text()).addresses
    shown = [b64decode(address.partition(",")[2]) for address in addresses]
    assert shown == [b"1000000", b"1000000-reconstructions", b"reals"]


def test_the_page_holds_configuration_losses_and_evaluation(run: Path) -> None:
    folder = filled(run)
    write_report(folder)
    text = Page(folder.report.read_text()).text
    assert "Evaluation" not in text
    assert all(
        part in text for part in ("<faces & more>", "step 20", "0:01:01", "vae/loss", "0.05")
    )
    folder.evaluation.write_text(json.dumps({"elbo": -12.345678}))
    write_report(folder)
    assert "Evaluation\nelbo\n-12.346" in Page(folder.report.read_text()).text
    for damaged in ("{", "[1]", ""):
        folder.evaluation.write_text(damaged)
        write_report(folder)
        assert "Evaluation" not in Page(folder.report.read_text()).text


def test_a_loss_that_some_log_points_lack_has_a_curve_of_the_others(run: Path) -> None:
    folder = RunFolder(run)
    folder.claim({"model": "vae"})
    clock = {"seconds": 1.0, "images_per_second": 9.0}
    losses = [{"a": 1.0, "gone": 2.0}, {"a": 1.5}, {"a": 0.5, "late": 3.0}]
    lines = [{"step": 5 * k, **clock, **each} for k, each in enumerate(losses, 1)]
    folder.log.write_text("".join(json.dumps(line) + "\n" for line in lines))
    write_report(folder)
    text = " ".join(Page(folder.report.read_text()).text.split())
    for name, last, first_step, last_step in (("a", 0.5, 5, 15), ("gone", 2, 5, 5)):
        assert re.search(rf" {name} {last} .*? {first_step} step {last_step} ", text)
    assert re.search(r" late 3 3 3 15 step 15 ", text)


def test_a_run_without_anything_has_a_report_too(run: Path) -> None:
    folder = RunFolder(run)
    folder.claim({"model": "classifier"})
    write_report(folder)
    assert "no log point yet" in Page(folder.report.read_text()).text


@pytest.mark.parametrize("values", [[1.0], [3.0, 3.0], [(-1.0) ** i * i for i in range(5000)]])
def test_a_curve_stays_inside_its_frame_and_ends_at_the_last_step(values: list[float]) -> None:
    svg = curve("a/b", list(range(len(values))), values)
    lines = re.findall(r'points="([^"]+)"', svg)
    assert len(lines) == 2
    for line in lines:
        points = [tuple(map(float, point.split(","))) for point in line.split()]
        assert all(0 <= x <= WIDTH and 0 <= y <= HEIGHT for x, y in points)
        assert len(points) <= 402
        if len(values) > 1:
            assert points[-1][0] == WIDTH - 4
