"""What the tests of the C++ kernels share: which one was taken, and programs of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from fastgen.ops import backend, compiled


def counted(monkeypatch: pytest.MonkeyPatch, *modules: ModuleType) -> list[str]:
    """The names of the operators that these modules call, as they do."""
    used: list[str] = []

    class Operators:
        def __getattr__(self, name: str) -> object:
            used.append(name)
            return getattr(torch.ops.fastgen, name)

    for module in modules:
        monkeypatch.setattr(module, "operators", Operators)
    return used


def chosen(operation: str, pass_: str, *arguments: object) -> str:
    """The candidate that the written rule takes."""
    router = backend.KERNELS[operation, "auto"]
    return router._by_rule(router.candidates(pass_, *arguments), pass_, arguments).name


def run_program(code: str, *arguments: str, **environment: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env={**os.environ, **environment}, capture_output=True, text=True, timeout=250,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def results_by_version(everything: str, folder: Path) -> dict[str, list[torch.Tensor]]:
    """What `everything()`, which the code defines, returns in every version that this CPU has."""
    then = "\ntorch.save(everything(), sys.argv[1])"
    highest = compiled.CPU_VERSIONS.index(compiled.cpu_version())
    found = {}
    for version in compiled.CPU_VERSIONS[: highest + 1]:
        file = folder / f"{version}.pt"
        run_program(everything + then, str(file), FASTGEN_CPU=version)
        found[version] = torch.load(file, weights_only=True)  # written by this very test
    return found


SAME_FOR_ALL_THREADS = """
first = None
for threads in (1, 2, 3, 4):
    torch.set_num_threads(threads)
    results = everything()
    first = first or results
    assert all(map(torch.equal, results, first)), threads
"""
