"""What fastgen runs on: versions, devices, backends, optional packages."""

from __future__ import annotations

import platform
import sys
from importlib.metadata import PackageNotFoundError, version

import torch

from fastgen.ops import compiled
from fastgen.ops.backend import BACKENDS, automatic_names
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
            name: f"{entry.summary}: {entry.missing() or 'available'}"
            for name, entry in BACKENDS.items()
        },
        "auto picks": _picks(),
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
    picks = {}
    for kind in kinds:
        names = [name for name in BACKENDS if name in automatic_names(kind)]
        by_shape = ", by shape (see fastgen info --routes)" if len(names) > 1 else ""
        picks[kind] = " or ".join(names) + by_shape
    return picks


def _build() -> dict[str, str]:
    """What `fastgen._C` was built with, or why it is not there and what to do."""
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
