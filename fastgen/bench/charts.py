"""The pictures of a ladder: bars of what every rung takes, and the roofline."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, NamedTuple

from .drawing import INK, QUIET, RULE, Canvas, Point
from .rungs import DTYPES
from .tables import duration, machine_line, rate
from .work import Work

Row = dict[str, Any]

COLORS = {
    "eager": "#9aa3b2",
    "compile": "#e39a4a",
    "compile max-autotune": "#c9762b",
    "compile penalty": "#e39a4a",
    "onnxruntime": "#9b7fd1",
    "jax": "#58a892",
    "fastgen": "#2f6fde",
    "captured": "#173f8a",
}
"""By way of computing."""

# --- bars ---

COLUMN, LABEL, BAR, LINE, TITLE, GAP, MARGIN = 640, 150, 300, 20, 26, 18, 32
HEADER, FOOTER = 92, 34


def bar_chart(results: dict[str, Any]) -> bytes:
    """A PNG: for every subject a block of bars, one for each rung; a shorter bar is faster."""
    rows = results["rows"]
    columns = [
        [row for row in rows if row["kind"] == "layer"],
        [row for row in rows if row["kind"] != "layer"],
    ]
    tallest = max((sum(map(_block_height, column)) for column in columns), default=0)
    canvas = Canvas(2 * COLUMN + MARGIN, HEADER + tallest + FOOTER)
    _heading(
        canvas, "Speed ladder: milliseconds per call, shorter is faster",
        "Behind each bar how much faster than eager PyTorch at the same precision and layout. "
        "float32, channels_last unless said otherwise; the first bar is contiguous.",
    )  # fmt: skip
    for place, column in enumerate(columns):
        top = float(HEADER)
        for row in column:
            _block(canvas, row, MARGIN + place * COLUMN, top)
            top += _block_height(row)
    canvas.text((MARGIN, canvas.height - 18), machine_line(results), size=12, color=QUIET)
    return canvas.png()


def _heading(canvas: Canvas, title: str, below: str) -> None:
    canvas.text((MARGIN, 30), title, size=22)
    canvas.text((MARGIN, 58), below, size=13, color=QUIET)


def _block_height(row: Row) -> int:
    return TITLE + LINE * len(row["rungs"]) + GAP


def _block(canvas: Canvas, row: Row, left: float, top: float) -> None:
    canvas.text((left, top + 9), row["name"], size=14)
    longest = max((rung["seconds"] for rung in row["rungs"]), default=1.0)
    start = left + LABEL
    for number, rung in enumerate(row["rungs"]):
        y = top + TITLE + LINE * number
        length = BAR * rung["seconds"] / longest
        canvas.text((start - 8, y + 7), rung["name"], size=12, color=QUIET, anchor="right")
        canvas.bar(start, y, length, LINE - 6, COLORS[rung["way"]])
        words = duration(rung["seconds"])
        if row["kind"] == "sampling":
            words += f"   {row['batch'] / rung['seconds']:.0f} images/s"
        canvas.text((start + length + 7, y + 7), words, size=12)
        if rung["over_eager"] is not None and rung["way"] != "eager":
            x = start + length + 7 + canvas.text_width(f"{words}   ", size=12)
            canvas.text((x, y + 7), f"{rung['over_eager']:.2f}x", size=12, color=COLORS["captured"])


# --- roofline ---

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 1180, 680, 96, 380, 96, 92
SHOWN = ("eager", "fastgen", "captured")


class _Axes(NamedTuple):
    """Logarithmic axes over powers of ten, and where they lie on the canvas."""

    x: tuple[float, float]
    y: tuple[float, float]

    def place(self, intensity: float, speed: float) -> Point:
        across = (math.log10(intensity) - self.x[0]) / (self.x[1] - self.x[0])
        up = (math.log10(speed) - self.y[0]) / (self.y[1] - self.y[0])
        return LEFT + across * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - up * (
            HEIGHT - TOP - BOTTOM
        )


class _Mark(NamedTuple):
    number: int
    rung: Row
    intensity: float
    speed: float


def roofline(results: dict[str, Any]) -> bytes:
    """A PNG: operations per second reached over operations per byte, under what a copy and a matrix
    product reach on the same machine.

    Work is what a subject cannot do without, so all rungs of a subject stand above one another.
    """
    rows = [row for row in results["rows"] if row["operations"]]
    marks = [mark for number, row in enumerate(rows, 1) for mark in _marks(number, row)]
    ceilings = results["ceilings"]
    canvas = Canvas(WIDTH, HEIGHT)
    _heading(
        canvas, "Roofline: how near to the machine's own limits",
        "Limits measured in the same run: a copy within memory, products of square matrices.",
    )  # fmt: skip
    if ceilings:
        axes = _axes(marks, ceilings)
        _grid(canvas, axes)
        _roofs(canvas, axes, ceilings)
        _points(canvas, axes, marks)
    _legend(canvas, rows, marks)
    canvas.text((MARGIN, HEIGHT - 20), machine_line(results), size=12, color=QUIET)
    return canvas.png()


def _marks(number: int, row: Row) -> list[_Mark]:
    work = Work(row["operations"], row["numbers"])
    return [
        _Mark(
            number, rung, work.operations / work.bytes(DTYPES[rung["dtype"]]),
            work.operations / rung["seconds"],
        )
        for rung in row["rungs"]
        if rung["way"] in SHOWN and rung["layout"] == "channels_last"
    ]  # fmt: skip


def _axes(marks: Iterable[_Mark], ceilings: dict[str, Any]) -> _Axes:
    speeds = [mark.speed for mark in marks] + list(ceilings["operations_per_second"].values())
    intensities = [mark.intensity for mark in marks] + [1.0, 300.0]
    x = math.floor(math.log10(min(intensities))), math.ceil(math.log10(max(intensities)))
    y = math.floor(math.log10(min(speeds))), math.ceil(math.log10(max(speeds)))
    return _Axes(x, (y[0], max(y[1], y[0] + 1)))


def _grid(canvas: Canvas, axes: _Axes) -> None:
    for power in range(int(axes.x[0]), int(axes.x[1]) + 1):
        for step in range(1, 10) if power < axes.x[1] else (1,):
            x, _ = axes.place(step * 10.0**power, 10.0 ** axes.y[0])
            color = "#cfd4dc" if step == 1 else RULE
            canvas.line((x, TOP), (x, HEIGHT - BOTTOM), color=color)
        canvas.text((axes.place(10.0**power, 1)[0], HEIGHT - BOTTOM + 15), f"{10.0**power:g}",
                    size=12, color=QUIET, anchor="middle")  # fmt: skip
    for power in range(int(axes.y[0]), int(axes.y[1]) + 1):
        for step in range(1, 10) if power < axes.y[1] else (1,):
            _, y = axes.place(1, step * 10.0**power)
            color = "#cfd4dc" if step == 1 else RULE
            canvas.line((LEFT, y), (WIDTH - RIGHT, y), color=color)
        canvas.text((LEFT - 8, axes.place(1, 10.0**power)[1]), rate(10.0**power), size=12,
                    color=QUIET, anchor="right")  # fmt: skip
    middle = (LEFT + WIDTH - RIGHT) / 2
    canvas.text((middle, HEIGHT - BOTTOM + 36), "operations per byte moved", anchor="middle")


def _roofs(canvas: Canvas, axes: _Axes, ceilings: dict[str, Any]) -> None:
    bandwidth = ceilings["copy_bytes_per_second"]
    right, floor = 10.0 ** axes.x[1], 10.0 ** axes.y[0]
    highest = max(ceilings["operations_per_second"].values())
    start = max(10.0 ** axes.x[0], floor / bandwidth)
    canvas.line(
        axes.place(start, start * bandwidth), axes.place(highest / bandwidth, highest), color=INK,
        width=2,
    )  # fmt: skip
    x, y = axes.place(start * 1.15, start * 1.15 * bandwidth)
    canvas.text((x + 14, y + 2), f"copy {bandwidth / 1e9:.3g} GB/s", size=12)
    for dtype, peak in ceilings["operations_per_second"].items():
        ridge = max(peak / bandwidth, 10.0 ** axes.x[0])
        canvas.line(axes.place(ridge, peak), axes.place(right, peak), color=INK, width=2)
        place = axes.place(right, peak)
        canvas.text((place[0] - 6, place[1] - 10), f"{dtype} product {rate(peak)}", size=12,
                    anchor="right")  # fmt: skip


def _points(canvas: Canvas, axes: _Axes, marks: list[_Mark]) -> None:
    taken = [axes.place(mark.intensity, mark.speed) for mark in marks]
    for number in sorted({mark.number for mark in marks}):
        for dtype in DTYPES:
            same = [m for m in marks if (m.number, m.rung["dtype"]) == (number, dtype)]
            places = [axes.place(mark.intensity, mark.speed) for mark in same]
            if not places:
                continue
            lowest, highest = max(places, key=_height), min(places, key=_height)
            canvas.line(lowest, highest, color="#b9c0cc", width=1.5)
            for mark, place in zip(same, places, strict=True):
                shape = canvas.disc if dtype == "float32" else canvas.square
                shape(place, 5, COLORS[mark.rung["way"]])
            _number(canvas, str(number), highest, taken)


def _height(place: Point) -> float:
    return place[1]


def _number(canvas: Canvas, words: str, at: Point, taken: list[Point]) -> None:
    """The number of a subject beside its highest mark, where nothing else stands."""
    around = ((0, -14), (13, -8), (-13, -8), (15, 5), (-15, 5), (0, -27), (22, -20), (-22, -20))
    for dx, dy in around:
        place = at[0] + dx, at[1] + dy
        if all(abs(place[0] - x) > 11 or abs(place[1] - y) > 11 for x, y in taken):
            break
    taken.append(place)
    canvas.text(place, words, size=12, anchor="middle")


def _legend(canvas: Canvas, rows: list[Row], marks: list[_Mark]) -> None:
    left, y = WIDTH - RIGHT + 28, float(TOP + 6)
    for way in SHOWN:
        if any(mark.rung["way"] == way for mark in marks):
            canvas.disc((left + 5, y), 5, COLORS[way])
            canvas.square((left + 21, y), 5, COLORS[way])
            canvas.text((left + 34, y), f"{way} float32, bfloat16", size=13)
            y += 22
    y += 12
    for number, row in enumerate(rows, 1):
        canvas.text((left + 12, y), str(number), size=13, anchor="right")
        words = row["name"].split(", ")
        canvas.text((left + 22, y), words[0], size=13)
        y += 16
        if len(words) > 1:
            canvas.text((left + 22, y), ", ".join(words[1:]), size=11, color=QUIET)
            y += 16
        y += 6
