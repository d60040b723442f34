"""Programs that run the kernels of csrc/cuda on the emulated device and watch their memory."""

from __future__ import annotations

import functools
import os
import re
import subprocess
import tempfile
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import emulated_nvcc
import pytest
from host import HERE, ROOT, compiler, kept, part_of_the_build

EMULATION = HERE.parent / "emulation"
KERNELS = sorted(f for f in (ROOT / "csrc/cuda").glob("*.cu") if "sm90" not in f.name)
"""All but Hopper's, which the emulated device does not have."""
CALLS = HERE / "calls_host.cpp"
FLAGS = ("-O1", "-g1", "-fsanitize=thread", "-fno-builtin")


def watched(name: str, kernels: Sequence[Path], *program: Path) -> Path:
    """An executable of these, of which the kernels are watched."""
    discover = part_of_the_build("discover")
    try:
        include = discover.find_cuda().library.parent / "include"
    except discover.BuildError as error:
        pytest.skip(str(error))
    own = [EMULATION / f"{part}.cpp" for part in ("simt", "watch", "cuda_runtime")]
    headers = [*(ROOT / "csrc").rglob("*.h"), *HERE.glob("*.h"), *EMULATION.rglob("*.[hp]*")]

    def make(path: Path) -> None:
        with tempfile.TemporaryDirectory() as scratch:

            def kernel(source: Path) -> str:
                product = f"{scratch}/{source.stem}.o"
                emulated_nvcc.compile_(source, product, str(include), FLAGS)
                renamed = [f"--redefine-sym={f}=watched_{f}" for f in ("memcpy", "memset")]
                subprocess.run(["objcopy", *renamed, product], check=True)
                return product

            def plain(source: Path) -> str:
                product = f"{scratch}/{source.stem}-plain.o"
                command = [compiler(), "-std=c++17", "-O2", "-g1", f"-I{ROOT / 'csrc'}"]
                command += [f"-I{HERE}", f"-I{EMULATION}", "-isystem", str(include)]
                subprocess.run([*command, "-c", str(source), "-o", product], check=True)
                return product

            with ThreadPoolExecutor(2) as pool:
                objects = [*pool.map(kernel, kernels), *pool.map(plain, [*own, *program])]
            # Addresses in reports are those of the file.
            subprocess.run([compiler(), "-no-pie", *objects, "-o", str(path)], check=True)

    how = " ".join((compiler(), *FLAGS))
    return kept(name, how, [*kernels, *program, *own, *headers], make)


def said(program: Path, calls: Iterable[str], multiprocessors: int) -> str:
    """What a program of CALLS writes about these calls.

    Raises:
        AssertionError: it failed, with the end of what it said; the last call is the one it failed
            in.
    """
    done = subprocess.run(
        [program],
        input="\n".join(calls),
        capture_output=True,
        text=True,
        env={**os.environ, "FASTGEN_EMULATED_MULTIPROCESSORS": str(multiprocessors)},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@functools.cache
def kernel_names(program: Path) -> dict[str, str]:
    """By address in lower-case hexadecimal digits: the kernels' names, without their arguments."""
    names = subprocess.run(["nm", "-C", program], capture_output=True, text=True, check=True)
    found = {}
    for line in names.stdout.splitlines():
        address, _, name = line.partition(" ")
        kernel = re.search(r"(\w+)(<.*)?\(", name)
        if kernel is not None:
            found[address.lstrip("0")] = kernel[1]
    return found
