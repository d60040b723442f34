"""The files in benchmarks/results: reading, continuing and writing them; tables and verdicts."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from datetime import date
from pathlib import Path
from typing import Any

import torch

from fastgen.bench.ladder import write
from fastgen.bench.machine import describe

FOLDER = Path(__file__).resolve().parent / "results"
CPU = FOLDER / "cpu.json"
GPU = FOLDER / "gpu.json"
FORMAT = 1


def read(path: Path) -> dict[str, Any] | None:
    """The results in a file; None when nothing was measured."""
    return json.loads(path.read_text()) if path.is_file() else None  # type: ignore[no-any-return]


def opened(path: Path) -> dict[str, Any]:
    """Fresh results, with the rows of an earlier file of the same commit, machine and versions."""
    results: dict[str, Any] = {
        "format": FORMAT,
        "date": date.today().isoformat(),
        "machine": {
            **describe(threads=torch.get_num_threads()),
            "capability": torch.backends.cpu.get_cpu_capability(),
        },
        "ceilings": {},
        "rows": [],
    }
    del results["machine"]["threads"]  # each row has its own
    try:
        earlier = read(path)
    except ValueError:
        earlier = None
    if earlier and all(earlier.get(key) == results[key] for key in ("format", "machine")):
        results |= {key: earlier[key] for key in ("ceilings", "rows")}
    return results


def save(path: Path, results: dict[str, Any]) -> None:
    """Write results; the old file stays whole until the new one is complete."""
    write(path, results)


def table(head: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    """A Markdown table."""
    head = list(head)
    lines = [head, ["---"] * len(head), *([str(cell) for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def machine_line(results: dict[str, Any]) -> str:
    """On what results were measured, and when."""
    machine = results["machine"]
    threads = f"{machine['threads']} thread, " if "threads" in machine else ""
    return (
        f"{machine['processor']}, {machine['cores']} cores, {threads}"
        f"torch {machine['torch']}, Python {machine['python']}, commit {machine['commit']}, "
        f"{results['date']}."
    )


def between(markers: tuple[str, str], written: str, page: str) -> str:
    """A page with what stands between two markers written anew.

    Raises:
        ValueError: the page does not have them once.
    """
    first, last = markers
    pattern = re.compile(f"{re.escape(first)}.*?{re.escape(last)}", re.DOTALL)
    page, places = pattern.subn(lambda found: f"{first}\n{written}\n{last}", page)
    if places != 1:
        raise ValueError(f"the page must have {first} and {last} once (got {places})")
    return page


def verdict(reached: float | None, target: float, *, at_most: bool = False) -> str:
    """Whether a target is met, or by how much it is missed."""
    if reached is None:
        return "not measured"
    if reached <= target if at_most else reached >= target:
        return "met"
    share = reached / target - 1 if at_most else 1 - reached / target
    return f"missed by {100 * share:.0f} %"
