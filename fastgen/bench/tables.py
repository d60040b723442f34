"""A ladder as text: a table for a terminal, and the units of its numbers."""

from __future__ import annotations

from typing import Any

from .ladder import Results, differs
from .rungs import DTYPES
from .work import Work


def duration(seconds: float) -> str:
    """Seconds in the unit that suits them."""
    for unit, factor in (("s", 1.0), ("ms", 1e3)):
        if seconds * factor >= 1:
            return f"{_digits(seconds * factor)} {unit}"
    return f"{_digits(seconds * 1e6)} us"


def rate(operations_per_second: float) -> str:
    """Operations per second in the unit that suits them."""
    for unit, size in (("TFLOP/s", 1e12), ("GFLOP/s", 1e9)):
        if operations_per_second >= size:
            return f"{_digits(operations_per_second / size)} {unit}"
    return f"{_digits(operations_per_second / 1e6)} MFLOP/s"


def _digits(number: float) -> str:
    """Three significant digits, and all of those before the point."""
    return f"{number:.0f}" if number >= 100 else f"{number:#.3g}"


def machine_line(results: Results) -> str:
    """What a ladder was measured on, and how."""
    machine = results["machine"]
    gpu = machine.get("device", "cpu") != "cpu"
    place = machine["device"] if gpu else machine["processor"]
    threads = f"{machine['threads']} thread{'s' * (machine['threads'] != 1)}"
    clock = "device time" if gpu else f"{threads}, process time"
    return (
        f"{place}, {clock}, torch {machine['torch']}, fastgen {machine['fastgen']} "
        f"({machine['commit']}), {results['date']}"
        f"{'' if results['complete'] else ', not complete'}"
    )


def rich_tables(results: Results) -> list[Any]:
    """One table of `rich` for each kind of subject."""
    from rich.table import Table

    titles = {
        "layer": "Layers, forward + backward",
        "step": "Training steps: losses, gradients, Adam",
        "sampling": "Sampling",
    }
    tables = []
    for kind, title in titles.items():
        rows = [row for row in results["rows"] if row["kind"] == kind]
        if not rows:
            continue
        table = Table(title=title, title_justify="left", header_style="bold")
        for name in ("what", "rung", "dtype", "layout"):
            table.add_column(name)
        speed = () if kind == "layer" else ("images/s",)
        for name in ("time", *speed, "over eager", "of the limit"):
            table.add_column(name, justify="right")
        for row in rows:
            for number, rung in enumerate(row["rungs"]):
                table.add_row(
                    row["name"] if number == 0 else "", *_cells(row, rung, results),
                    style="bold" if rung["way"] in ("fastgen", "captured") else None,
                )  # fmt: skip
            table.add_section()
        tables.append(table)
    return tables


def _cells(row: dict[str, Any], rung: dict[str, Any], results: Results) -> list[str]:
    limit = share_of_limit(row, rung, results)
    ratio = "" if rung["over_eager"] is None else f"{rung['over_eager']:.2f}x"
    speed = [] if row["kind"] == "layer" else [f"{row['batch'] / rung['seconds']:.0f}"]
    return [
        rung["name"], rung["dtype"], rung["layout"], duration(rung["seconds"]), *speed,
        f"{ratio} DIFFERS" if differs(rung) else ratio,
        "" if limit is None else f"{100 * limit:.0f} %",
    ]  # fmt: skip


def share_of_limit(row: dict[str, Any], rung: dict[str, Any], results: Results) -> float | None:
    """How much of the measured ceiling that bounds it a rung reaches."""
    ceilings = results["ceilings"]
    if not ceilings or not row["numbers"]:
        return None
    rate_of = ceilings["operations_per_second"][rung["dtype"]]
    work = Work(row["operations"], row["numbers"])
    bound = work.bound(DTYPES[rung["dtype"]], ceilings["copy_bytes_per_second"], rate_of)
    return bound[1] / float(rung["seconds"])


def left_out(results: Results) -> list[str]:
    """What was not measured and why: one line for each reason."""
    rungs: dict[str, dict[str, int]] = {}
    for row in results["rows"]:
        for rung, reason in row["left_out"].items():
            counts = rungs.setdefault(reason, {})
            counts[rung] = counts.get(rung, 0) + 1
    measured = {rung["name"] for row in results["rows"] for rung in row["rungs"]}
    lines = [
        f"{reason}: " + ", ".join(
            f"{rung} ({count} of the rows)" if rung in measured else rung
            for rung, count in counts.items()
        )
        for reason, counts in rungs.items()
    ]  # fmt: skip
    if results["skipped"]:
        lines.append(f"no time left: {', '.join(results['skipped'])}")
    return lines
