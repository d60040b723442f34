"""`fastgen bench`: climb the ladder into a folder with JSON and pictures."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

from fastgen.files import replace_file
from fastgen.training.devices import resolve_device

from . import charts, tables
from .ladder import QUICK_SECONDS, Ladder, Results, write

PICTURES: dict[str, Callable[[Results], bytes]] = {
    "ladder.png": charts.bar_chart,
    "roofline.png": charts.roofline,
}


class Climbed(NamedTuple):
    """What `climb` found: the JSON, tables of `rich`, lines about what is missing, files."""

    results: Results
    tables: list[Any]
    left_out: list[str]
    files: list[Path]


def climb(
    folder: Path,
    *,
    quick: bool = False,
    tiny: bool = False,
    threads: int = 1,
    device: str = "auto",
    say: Callable[[str], None] = print,
) -> Climbed:
    """Measure this machine's ladder; the JSON is written after every subject, pictures at the end.

    Args:
        folder: receives ladder.json, ladder.png and roofline.png.
        quick: under two minutes on two cores, see `ladder.QUICK_SECONDS`.
        tiny: shapes so small that only the program is tried, not the machine.
        threads: of the CPU, for everything that is measured on it.
        device: ``"auto"``, ``"cpu"`` or ``"cuda"``.
        say: takes a line about how far it is.

    A KeyboardInterrupt ends it early with what was measured.

    Raises:
        ValueError: there is no such device.
        OSError: the folder cannot be made.
    """
    place = resolve_device(device)
    folder.mkdir(parents=True, exist_ok=True)  # what is wrong with it shows before the measuring
    path = folder / "ladder.json"
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        results = Ladder(
            place, quick=quick, tiny=tiny, seconds=QUICK_SECONDS if quick else None,
            say=_timed(say), save=partial(write, path),
        ).climb()  # fmt: skip
    finally:
        torch.set_num_threads(before)
    files = [path]
    for name, draw in PICTURES.items():
        if results["rows"]:
            replace_file(folder / name, draw(results))
            files.append(folder / name)
    return Climbed(results, tables.rich_tables(results), tables.left_out(results), files)


def _timed(say: Callable[[str], None]) -> Callable[[str], None]:
    start = time.monotonic()
    return lambda line: say(f"{time.monotonic() - start:4.0f} s  {line}")
