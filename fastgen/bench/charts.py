"""The pictures of a ladder: bars of what every rung takes, and the roofline."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, NamedTuple

from .drawing import INK, QUIET, RULE, Canvas, Point
from .ladder import differs
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
            words = f"{rung['over_eager']:.2f}x{' DIFFERS' if differs(rung) else ''}"
            canvas.text((x, y + 7), words, size=12, color=COLORS["captured"])


# --- roofline ---

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 1180, 680, 96, 380, 96, 92
SHOWN = ("eager", "fastgen", "captured")
STRONG, LABELED = "#cfd4dc", (1, 2, 5)


class _Axes(NamedTuple):
    """Logarithmic axes from the least to the largest value, and where they lie on the canvas."""

    x: tuple[float, float]
    y: tuple[float, float]

    def place(self, intensity: float, speed: float) -> Point:
        across = math.log(intensity / self.x[0]) / math.log(self.x[1] / self.x[0])
        up = math.log(speed / self.y[0]) / math.log(self.y[1] / self.y[0])
        wide, high = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM
        return LEFT + across * wide, HEIGHT - BOTTOM - up * high


class _Mark(NamedTuple):
    number: int
    rung: Row
    intensity: float
    speed: float


def roofline(results: dict[str, Any]) -> bytes:
    """A PNG: operations per second reached over operations per byte, under what a copy and a
    product reach on the same machine.

    Work is what a subject cannot do without, so all rungs of a subject stand above one another.
    """
    rows = [row for row in results["rows"] if row["operations"]]
    marks = [mark for number, row in enumerate(rows, 1) for mark in _marks(number, row)]
    ceilings = results["ceilings"]
    canvas = Canvas(WIDTH, HEIGHT)
    _heading(
        canvas, "Roofline: how near to the machine's own limits",
        "Limits measured in the same run: a copy within memory, a matrix product or a wide "
        "convolution.",
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
    rates = list(ceilings["operations_per_second"].values())
    speeds = [mark.speed for mark in marks] + rates
    # The ridges, where the limits meet, are in the picture.
    ridges = [rate / ceilings["copy_bytes_per_second"] for rate in rates]
    intensities = [mark.intensity for mark in marks] + ridges
    return _Axes(
        (min(intensities) / 2.5, max(intensities) * 2.2), (min(speeds) / 2, max(speeds) * 1.8)
    )


def _ticks(ends: tuple[float, float]) -> Iterable[tuple[float, int]]:
    """(value, its first digit) of every line of the grid."""
    for power in range(math.floor(math.log10(ends[0])), math.ceil(math.log10(ends[1])) + 1):
        for digit in range(1, 10):
            if ends[0] <= digit * 10.0**power <= ends[1]:
                yield digit * 10.0**power, digit


def _grid(canvas: Canvas, axes: _Axes) -> None:
    for value, digit in _ticks(axes.x):
        x, bottom = axes.place(value, axes.y[0])
        canvas.line((x, TOP), (x, bottom), color=STRONG if digit == 1 else RULE)
        if digit in LABELED:
            canvas.text((x, bottom + 15), f"{value:g}", size=12, color=QUIET, anchor="middle")
    for value, digit in _ticks(axes.y):
        left, y = axes.place(axes.x[0], value)
        canvas.line((left, y), (WIDTH - RIGHT, y), color=STRONG if digit == 1 else RULE)
        if digit in LABELED:
            words = rate(value).replace(".00", "").replace(".0", "")
            canvas.text((left - 8, y), words, size=12, color=QUIET, anchor="right")
    middle = (LEFT + WIDTH - RIGHT) / 2
    canvas.text((middle, HEIGHT - BOTTOM + 38), "operations per byte moved", anchor="middle")


def _roofs(canvas: Canvas, axes: _Axes, ceilings: dict[str, Any]) -> None:
    bandwidth = ceilings["copy_bytes_per_second"]
    highest = max(ceilings["operations_per_second"].values())
    start = max(axes.x[0], axes.y[0] / bandwidth)
    foot, ridge = axes.place(start, start * bandwidth), axes.place(highest / bandwidth, highest)
    canvas.line(foot, ridge, color=INK, width=2)
    words = f"copy {bandwidth / 1e9:.3g} GB/s"
    place = (foot[0] + ridge[0]) / 2 - 16, (foot[1] + ridge[1]) / 2 - 4
    canvas.text(place, words, size=12, anchor="right")
    for dtype, peak in ceilings["operations_per_second"].items():
        left = axes.place(peak / bandwidth, peak)
        canvas.line(left, axes.place(axes.x[1], peak), color=INK, width=2)
        canvas.text((left[0] + 20, left[1] - 10), f"{dtype} peak {rate(peak)}", size=12)


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
