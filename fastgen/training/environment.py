"""What fastgen runs on: versions, devices, backends, variables, optional packages."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Callable
from functools import partial
from importlib.metadata import PackageNotFoundError, version

import torch

from fastgen.data.storage import MEMORY_VARIABLE, fits_in_memory
from fastgen.ops import compiled, variables
from fastgen.ops.backend import BACKENDS, automatic_names, default_backend
from fastgen.version import __version__

PACKAGES = (
    "numpy",
    "pillow",
    "scikit-learn",
    "safetensors",
    "tensorboard",
    "tqdm",
    "rich",
    "typer",
    "scipy",
    "torchmetrics",
    "POT",
    "triton",
)

VARIABLES: dict[str, Callable[[], object]] = {
    **{name: partial(variables.read, name) for name in (*variables.ALLOWED, *variables.NUMBERS)},
    "FASTGEN_BACKEND": default_backend,
    MEMORY_VARIABLE: lambda: fits_in_memory(0),
    "FASTGEN_CACHE": lambda: None,
    "FASTGEN_COMMIT": lambda: None,
}
"""What reads each variable, and raises ValueError where it is wrong."""

OF_THE_BUILD = (
    "FASTGEN_BUILD",
    "FASTGEN_BUILD_DIR",
    "FASTGEN_CUDA_ARCHS",
    "FASTGEN_CUTLASS",
    "FASTGEN_TORCH",
)

Facts = dict[str, dict[str, str]]


def describe_environment() -> Facts:
    """Facts by title; every value is a line of text."""
    return {
        "versions": {
            "fastgen": __version__,
            "torch": torch.__version__,
            "python": f"{platform.python_version()} ({sys.executable})",
            "platform": platform.platform(),
        },
        "devices": _devices(),
        "backends": {
            name: f"{entry.summary}: {_unless_wrong(entry.missing) or 'available'}"
            for name, entry in BACKENDS.items()
        },
        "auto picks": _picks(),
        "environment variables": _variables(),
        "compiled module": _build(),
        "packages": {name: _version(name) for name in PACKAGES},
    }


def _devices() -> dict[str, str]:
    threads = torch.get_num_threads()
    capability = torch.backends.cpu.get_cpu_capability()
    found = {"cpu": f"{capability}, {threads} thread{'s' * (threads != 1)}"}
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        memory = properties.total_memory / 2**30
        found[f"cuda:{index}"] = (
            f"{properties.name}, compute capability {properties.major}.{properties.minor}, "
            f"{memory:.0f} GiB"
        )
    if len(found) == 1:
        built = torch.version.cuda
        found["cuda"] = "no GPU is visible" if built else "this torch is built without CUDA"
    return found


def _picks() -> dict[str, str]:
    """Among which backends ``"auto"`` picks on each kind of device."""
    kinds = ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)
    return {kind: _unless_wrong(partial(_picked, kind)) or "" for kind in kinds}


def _picked(kind: str) -> str:
    names = [name for name in BACKENDS if name in automatic_names(kind)]
    by_shape = ", by shape (see fastgen info --routes)" if len(names) > 1 else ""
    return " or ".join(names) + by_shape


def _variables() -> dict[str, str]:
    """Every variable of ours that is set, and what is wrong with it."""
    facts = {}
    for name, value in sorted(os.environ.items()):
        if name in OF_THE_BUILD:
            facts[name] = f"{value} (read when fastgen is installed)"
        elif name in VARIABLES:
            try:
                VARIABLES[name]()
                facts[name] = value
            except ValueError as error:
                facts[name] = f"wrong: {error}"
        elif name.startswith("FASTGEN_"):
            facts[name] = f"{value} (no variable that fastgen reads)"
    return facts


def _unless_wrong(ask: Callable[[], str | None]) -> str | None:
    """An answer, or which variable is so wrong that there is none."""
    try:
        return ask()
    except ValueError as error:
        return str(error)


def _build() -> dict[str, str]:
    """What `fastgen._C` was built with, or why it is not there and what to do."""
    try:
        compiled.build_information()
    except ValueError as error:
        return {"fastgen._C": str(error)}
    facts = {part: str(fact) for part, fact in compiled.build_information().items() if fact}
    for part in ("cpu", "cuda", "cutlass"):
        if not facts.get(part) and (reason := compiled.recorded_reason(part)):
            facts[part] = f"not built: {reason}"
    if version := compiled.cpu_version():
        facts["cpu kernels"] = f"{version} runs here (FASTGEN_CPU may lower it)"
    if kernels := compiled.cuda_kernels():
        most = max(int(kernel["registers"]) for kernel in kernels)
        spills = sum(int(k["spill_stores"]) + int(k["spill_loads"]) for k in kernels)
        facts["cuda kernels"] = f"{len(kernels)}, at most {most} registers, {spills} bytes spilled"
    return facts or {"fastgen._C": compiled.missing("cpu") or "built"}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
