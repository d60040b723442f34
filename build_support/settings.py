"""What the environment asks of the build."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

MODES = ("auto", "cpu", "cuda", "none")
DEFAULT_ARCHITECTURES = "80;90a;100+PTX"
ARCHITECTURE = re.compile(r"(\d{2,3}[af]?)(\+PTX)?")


class BuildError(RuntimeError):
    """Something asked for cannot be built; the message gives the reason and the remedy."""


@dataclass(frozen=True)
class Architecture:
    """One CUDA architecture: `code` as in sm_<code>; with `ptx` also code for newer devices."""

    code: str
    ptx: bool = False

    @property
    def gencode(self) -> str:
        targets = f"sm_{self.code}" + (f",compute_{self.code}" if self.ptx else "")
        # The brackets are nvcc's list syntax; one target alone takes none.
        return f"-gencode=arch=compute_{self.code},code=" + (
            f"[{targets}]" if self.ptx else targets
        )


@dataclass(frozen=True)
class Settings:
    """The environment variables of the build, read once and checked."""

    mode: str
    architectures: tuple[Architecture, ...]  # empty: CUDA is left out
    architectures_chosen: bool  # named by the user: then one that nvcc lacks is an error
    jobs: int
    build_folder: Path | None
    torch: Path | None
    cutlass: Path | None
    cxx: str
    cxx_flags: str
    link_flags: str


def parse_architectures(text: str) -> tuple[Architecture, ...]:
    """`"80;90a;100+PTX"` as architectures; `"none"` as no architecture.

    Raises:
        BuildError: an entry is not a number with an optional letter and an optional ``+PTX``.
    """
    if text.strip().lower() == "none":
        return ()
    found = []
    for entry in filter(None, re.split(r"[;,\s]+", text.strip())):
        match = ARCHITECTURE.fullmatch(entry.replace("sm_", "").replace(".", ""))
        if match is None:
            raise BuildError(
                f"FASTGEN_CUDA_ARCHS holds {entry!r}; allowed are entries like 80, 90a or 100+PTX, "
                f"separated by semicolons (default {DEFAULT_ARCHITECTURES!r}), or 'none'"
            )
        found.append(Architecture(match[1], bool(match[2])))
    return tuple(dict.fromkeys(found))


def read_settings(environment: Mapping[str, str] = os.environ) -> Settings:
    """The settings of this build.

    ========================  =====================================================================
    FASTGEN_BUILD             ``auto`` (default): what the machine can build. ``cpu``, ``cuda``:
                              exactly that, or an error. ``none``: pure Python.
    FASTGEN_CUDA_ARCHS        default ``80;90a;100+PTX``; ``none`` leaves CUDA out of ``auto``
    FASTGEN_BUILD_DIR         where objects are kept (default ``build/`` beside setup.py)
    FASTGEN_TORCH             the folder of the torch package, when it is not found by itself
    FASTGEN_CUTLASS           a CUTLASS source tree, instead of the package nvidia-cutlass
    MAX_JOBS                  compilations at a time (default: the number of processors)
    CXX, CXXFLAGS, LDFLAGS    the C++ compiler and further flags
    CUDA_HOME                 the CUDA toolkit (default: the one of the nvcc in PATH)
    ========================  =====================================================================

    Raises:
        BuildError: a variable holds what it may not.
    """
    mode = environment.get("FASTGEN_BUILD", "").strip().lower() or "auto"
    if mode not in MODES:
        raise BuildError(f"FASTGEN_BUILD must be one of {', '.join(MODES)} (got {mode!r})")
    chosen = environment.get("FASTGEN_CUDA_ARCHS", "").strip()
    architectures = parse_architectures(chosen or DEFAULT_ARCHITECTURES)
    if mode == "cuda" and not architectures:
        raise BuildError("FASTGEN_BUILD=cuda needs an architecture in FASTGEN_CUDA_ARCHS")
    jobs = environment.get("MAX_JOBS", "").strip() or str(_processors())
    if not jobs.isdigit() or int(jobs) < 1:
        raise BuildError(f"MAX_JOBS must be a positive whole number (got {jobs!r})")

    def path(name: str) -> Path | None:
        return Path(environment[name]).expanduser().resolve() if environment.get(name) else None

    return Settings(
        mode=mode,
        architectures=architectures,
        architectures_chosen=bool(chosen),
        jobs=int(jobs),
        build_folder=path("FASTGEN_BUILD_DIR"),
        torch=path("FASTGEN_TORCH"),
        cutlass=path("FASTGEN_CUTLASS"),
        cxx=environment.get("CXX", "").strip(),
        cxx_flags=environment.get("CXXFLAGS", ""),
        link_flags=environment.get("LDFLAGS", ""),
    )


def _processors() -> int:
    # The processors this process may use, not those of the machine: containers give fewer.
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
