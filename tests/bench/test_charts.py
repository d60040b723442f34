"""The pictures: valid PNGs in which what is drawn can be measured again."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageColor

from fastgen.bench import charts, tables


def rung(name: str, way: str, dtype: str, seconds: float, **more: Any) -> dict[str, Any]:
    return {
        "name": name, "way": way, "dtype": dtype, "layout": "channels_last", "seconds": seconds,
        "spread": 0.01, "method": "process", "wall_seconds": seconds, "over_eager": 2.0, **more,
    }  # fmt: skip


def ladder() -> dict[str, Any]:
    def row(name: str, kind: str, operations: int, numbers: int) -> dict[str, Any]:
        rungs = [
            rung("channels_last", "eager", "float32", 0.8),
            rung("torch.compile", "compile", "float32", 0.4),
            rung("fastgen", "fastgen", "float32", 0.2),
        ]
        return {
            "name": name, "kind": kind, "batch": 32, "operations": operations, "numbers": numbers,
            "rungs": rungs, "left_out": {"JAX jit": "jax is not installed"},
        }  # fmt: skip

    machine = {
        "processor": "a processor",
        "threads": 1,
        "torch": "2",
        "fastgen": "0",
        "commit": "c",
    }
    return {
        "format": 1, "date": "2026-01-01", "quick": False, "complete": True, "machine": machine,
        "ceilings": {
            "copy_bytes_per_second": 2e10,
            "operations_per_second": {"float32": 1e11, "bfloat16": 2e11},
        },
        "rows": [
            row("wide layer, k3 s1", "layer", 10**10, 10**7), row("moves", "layer", 0, 10**7),
            row("a step, batch 64", "step", 10**10, 10**8),
            row("drawing", "sampling", 10**9, 10**6),
        ],
        "skipped": [],
    }  # fmt: skip


def pixels(png: bytes) -> np.ndarray:
    image = Image.open(io.BytesIO(png))
    image.verify()
    assert image.format == "PNG"
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)


def longest_run(picture: np.ndarray, color: str) -> int:
    """The longest horizontal stretch of one color."""
    same = (np.abs(picture - np.array(ImageColor.getrgb(color))).max(axis=2) < 6).astype(int)
    best = 0
    for line in same:
        edges = np.flatnonzero(np.diff(np.concatenate([[0], line, [0]])))
        best = max(best, int((edges[1::2] - edges[::2]).max(initial=0)))
    return best


def test_bars_are_as_long_as_times() -> None:
    picture = pixels(charts.bar_chart(ladder()))
    eager, compiled, ours = (
        longest_run(picture, charts.COLORS[way]) for way in ("eager", "compile", "fastgen")
    )
    assert eager == pytest.approx(charts.BAR, abs=4)
    assert compiled == pytest.approx(charts.BAR / 2, abs=4)
    assert ours == pytest.approx(charts.BAR / 4, abs=4)


def test_a_chart_has_a_block_for_every_row() -> None:
    one, four = ladder(), ladder()
    one["rows"] = one["rows"][:1]
    blue = ImageColor.getrgb(charts.COLORS["fastgen"])

    def bars(results: dict[str, Any]) -> int:
        picture = pixels(charts.bar_chart(results))
        return int((np.abs(picture - np.array(blue)).max(axis=2) < 6).sum())

    assert bars(four) == pytest.approx(4 * bars(one), rel=0.05)


def test_the_roofline_shows_marks_below_its_roofs() -> None:
    results = ladder()
    picture = pixels(charts.roofline(results))
    assert picture.shape == (charts.HEIGHT, charts.WIDTH, 3)
    plot = picture[charts.TOP : charts.HEIGHT - charts.BOTTOM, : charts.WIDTH - charts.RIGHT]
    blue = np.array(ImageColor.getrgb(charts.COLORS["fastgen"]))
    rows, _ = np.nonzero(np.abs(plot - blue).max(axis=2) < 6)
    assert len(rows) > 3 * 40  # three discs of radius 5
    rows_of = [row for row in results["rows"] if row["operations"]]
    marks = [mark for place, row in enumerate(rows_of, 1) for mark in charts._marks(place, row)]
    axes = charts._axes(marks, results["ceilings"])
    for mark in marks:
        assert mark.speed == pytest.approx(
            results["rows"][0]["operations"] / mark.rung["seconds"]
            if mark.number < 3 else 1e9 / mark.rung["seconds"]
        )  # fmt: skip
        x, y = axes.place(mark.intensity, mark.speed)
        roof = axes.place(mark.intensity, min(1e11, mark.intensity * 2e10))
        assert charts.LEFT <= x <= charts.WIDTH - charts.RIGHT
        assert (y >= roof[1]) == (mark.speed <= min(1e11, mark.intensity * 2e10))


def test_a_ladder_without_rows_or_ceilings_is_still_a_picture() -> None:
    results = {**ladder(), "ceilings": {}, "rows": []}
    for draw in (charts.bar_chart, charts.roofline):
        assert len(np.unique(pixels(draw(results)).reshape(-1, 3), axis=0)) > 2


def test_tables_show_times_ratios_and_shares_of_the_limit() -> None:
    shown = tables.rich_tables(ladder())
    assert [str(table.title).split(",")[0] for table in shown] == [
        "Layers", "Training steps: losses", "Sampling"
    ]  # fmt: skip
    cells = [str(cell) for column in shown[0].columns for cell in column.cells]
    # 1e10 operations in 0.2 s are half of 1e11 a second; 4e7 bytes in 0.2 s 1 % of 2e10.
    assert "200 ms" in cells
    assert "50 %" in cells
    assert "1 %" in cells


def test_units_suit_numbers() -> None:
    assert [tables.duration(s) for s in (2.0, 0.0123, 4.5e-6)] == ["2.00 s", "12.3 ms", "4.50 us"]
    assert tables.rate(1.5e12) == "1.50 TFLOP/s"
    assert tables.rate(2.34e9) == "2.34 GFLOP/s"


def test_what_is_missing_is_one_line_for_each_reason() -> None:
    assert tables.left_out(ladder()) == ["jax is not installed: JAX jit"]
