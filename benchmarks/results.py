"""The files in benchmarks/results: reading, continuing and writing them."""

from __future__ import annotations

import json
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
