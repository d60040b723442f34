"""What a result was measured on, and which sources it belongs to."""

from __future__ import annotations

import hashlib
import os
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from fastgen.bench import timing
from fastgen.ops.backend import BACKENDS
from fastgen.ops.compiled import build_information

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ("fastgen", "kernels", "csrc", "build_support")
SUFFIXES = {".py", ".cpp", ".cu", ".h"}


def sources_digest(root: Path = ROOT) -> str:
    """Twelve hexadecimal digits that change with any source of the package.

    A commit tells less: a copy of the tree may have no history, or changes that are not committed.
    """
    digest = hashlib.sha256()
    for folder in SOURCES:
        for path in sorted((root / folder).rglob("*")):
            # fastgen/kernels is a link to kernels, which is read by itself.
            linked = "kernels" in path.relative_to(root).parts[1:2] and folder == "fastgen"
            if path.suffix in SUFFIXES and path.is_file() and not linked:
                digest.update(path.relative_to(root).as_posix().encode())
                digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def describe_machine(device: torch.device) -> dict[str, Any]:
    """Device, driver, versions, commit (`FASTGEN_COMMIT` where there is no history), sources."""
    machine = dict(timing.machine(device))
    if os.environ.get("FASTGEN_COMMIT"):
        machine["commit"] = os.environ["FASTGEN_COMMIT"]
    return {
        **machine,
        "sources": sources_digest(),
        "jax": _version_of("jax"),
        "backends": {name: entry.missing() or "there" for name, entry in BACKENDS.items()},
        "build": build_information(),
    }


def _version_of(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
