"""Kernel bodies on the host: compile a small program around them, run it, read back its results.

A program `<name>_host.cpp` includes a `_body.h` of csrc/cuda, plays every thread of the grid in
turn and runs under AddressSanitizer and UndefinedBehaviorSanitizer, so an index outside its tensor
ends the test. Tensors travel as raw binary files.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent
SANITIZERS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
WARNINGS = ["-Wall", "-Wextra", "-Wno-unknown-pragmas"]


def compiler() -> str:
    """The C++ compiler, or the test is skipped: fastgen installs without one."""
    found = os.environ.get("CXX") or shutil.which("g++") or shutil.which("c++")
    if found is None:
        pytest.skip("no C++ compiler")
    return found


def part_of_the_build(name: str) -> ModuleType:
    """A module of build_support, which is not installed."""
    sys.path.insert(0, str(ROOT))
    try:
        return importlib.import_module(f"build_support.{name}")
    finally:
        sys.path.remove(str(ROOT))


def cpu_flags(version: str) -> list[str]:
    """What the build compiles a version of csrc/cpu with."""
    flags = (
        *part_of_the_build("module").CPU_FLAGS,
        *part_of_the_build("discover").CPU_VERSIONS[version],
        f"-DFASTGEN_CPU={version}",
    )
    return [*flags]


def cpu_versions() -> list[str]:
    """The versions of csrc/cpu that this machine runs and its compiler makes."""
    discover = part_of_the_build("discover")
    has = torch.backends.cpu.get_cpu_capability()
    bfloat16 = has == "AVX512" and torch.cpu._is_avx512_bf16_supported()
    count = 4 if bfloat16 else {"AVX512": 3, "AVX2": 2}.get(has, 1)
    known = discover.cpu_versions(discover.Compiler((shutil.which("g++") or "c++",), ""))
    return [*known[:count]]


def build(
    name: str, sources: Sequence[str | Path], sanitize: bool = True, more: Sequence[str] = ()
) -> Path:
    """Compile `sources` (relative to tests/csrc) into one executable and return its path; again
    only when they, a header of csrc or the flags change.
    """
    flags = [
        "-std=c++17",
        "-O1",
        "-g1",
        "-fno-omit-frame-pointer",
        *WARNINGS,
        f"-I{ROOT / 'csrc'}",
        *more,
    ]
    if sanitize:
        flags += SANITIZERS
    files = [HERE / source for source in sources]
    command = [compiler(), *flags, *map(str, files)]

    headers = [*(ROOT / "csrc").rglob("*.h"), *(ROOT / "csrc/cpu").glob("*.cpp"), *HERE.glob("*.h")]

    def make(program: Path) -> None:
        built = subprocess.run(
            [*command, "-o", str(program)], capture_output=True, text=True, check=False
        )
        assert built.returncode == 0, built.stderr
        assert "warning:" not in built.stderr, built.stderr

    return kept(name, " ".join(command), [*files, *headers], make)


def kept(name: str, how: str, sources: Sequence[Path], make: Callable[[Path], None]) -> Path:
    """The file that `make` makes from `sources`, made again only when these or `how` change.

    It is kept in the temporary folder under a name that holds the digest of both.
    """
    digest = hashlib.sha256(how.encode())
    for file in sorted(sources):
        digest.update(file.read_bytes())
    folder = Path(tempfile.gettempdir()) / f"fastgen-host-tests-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    program = folder / f"{name}-{digest.hexdigest()[:16]}"

    with open(folder / f"{name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not program.exists():
            for stale in folder.glob(f"{name}-*"):
                stale.unlink()
            unfinished = program.with_suffix(".part")
            make(unfinished)
            unfinished.rename(program)
    return program


def run(
    program: Path,
    arguments: Sequence[object],
    inputs: Mapping[str, np.ndarray],
    folder: Path,
) -> None:
    """Write each input as `<folder>/<name>.bin` and run `program <folder> <arguments ...>`.

    Raises:
        AssertionError: the program failed, with what it and the sanitizers said.
    """
    for name, values in inputs.items():
        (folder / f"{name}.bin").write_bytes(np.ascontiguousarray(values).tobytes())
    finished = subprocess.run(
        [str(program), str(folder), *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "ASAN_OPTIONS": "detect_leaks=1:halt_on_error=1"},
    )
    assert finished.returncode == 0, finished.stdout + finished.stderr


INTEGERS = {2: (torch.int16, np.int16), 4: (torch.int32, np.int32), 8: (torch.int64, np.int64)}
"""By the size of an element: integers of it, as which any dtype travels."""


def bits(tensor: torch.Tensor) -> np.ndarray:
    """The tensor's storage, in the order of memory."""
    flat = tensor.as_strided((tensor.untyped_storage().nbytes() // tensor.element_size(),), (1,), 0)
    return flat.view(INTEGERS[tensor.element_size()][0]).numpy()


def round_to_tf32(tensor: torch.Tensor) -> torch.Tensor:
    """float32 with 10 bits of fraction, as the kernels round it before tensor cores."""
    return ((tensor.view(torch.int32) + 0x1000) & ~0x1FFF).view(torch.float32)


def result_like(folder: Path, like: torch.Tensor) -> torch.Tensor:
    """What the program wrote as its result, in dtype, shape and strides like a tensor."""
    flat = result(folder, "result", INTEGERS[like.element_size()][1])
    return torch.from_numpy(flat).view(like.dtype).as_strided(like.shape, like.stride())


def result(folder: Path, name: str, dtype: np.dtype | type = np.float32) -> np.ndarray:
    """What the program wrote to `<folder>/<name>.bin`, flat."""
    return np.fromfile(folder / f"{name}.bin", dtype=dtype)
