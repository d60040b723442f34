"""What a result was measured on."""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import torch

from fastgen.version import __version__

ROOT = Path(__file__).resolve().parents[2]


def describe(*, threads: int) -> dict[str, Any]:
    """Processor, threads, versions and commit of fastgen (`FASTGEN_COMMIT` where it is given,
    "unknown" for an installed package).
    """
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": threads,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "fastgen": __version__,
        "commit": _commit(),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(
            line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")
        )
    except (OSError, StopIteration):
        return platform.processor()


def _commit() -> str:
    if given := os.environ.get("FASTGEN_COMMIT"):
        return given
    # An installed package may lie inside another project's history, which says nothing about it.
    if not (ROOT / "csrc").is_dir():
        return "unknown"
    try:
        asked = subprocess.run(
            ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--exclude=*"],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
    except OSError:
        return "unknown"
    return asked.stdout.strip() or "unknown"
