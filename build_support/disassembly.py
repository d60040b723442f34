"""What the machine code of each kernel does: how wide it loads and stores, and whether it uses the
tensor cores. Read with nvdisasm, of the triton package or of the CUDA toolkit.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from .discover import demangle, package_folders
from .listing import readable
from .settings import BuildError

SECTION = re.compile(r"^\s*\.section\s+\.text\.([^,\s]+),", re.MULTILINE)
# LDG.E.128.CONSTANT R4, ... : the access is 32 bits wide where the name tells no width. LDGSTS is a
# load too, straight into shared memory.
GLOBAL_ACCESS = re.compile(r"\b(LDG|STG)(?:STS)?((?:\.\w+)*)\b")
MATRIX = re.compile(r"\b(HGMMA|QGMMA|UTCHMMA|UTCQMMA|HMMA|QMMA)\b")


@dataclass(frozen=True)
class Code:
    """One kernel's instructions for one architecture, summed up.

    Attributes:
        load_bits, store_bits: the widest access to global memory by one thread; 0 for none. What
            the tensor memory accelerator moves is not counted: no thread does.
        matrix: the tensor-core instructions that occur, such as HGMMA (Hopper) or HMMA.
    """

    name: str
    architecture: str
    load_bits: int
    store_bits: int
    matrix: tuple[str, ...]


def find_nvdisasm() -> Path:
    """Of the triton package, else of the CUDA toolkit or PATH.

    Raises:
        BuildError: it is in neither.
    """
    places = [folder / "triton/backends/nvidia/bin/nvdisasm" for folder in package_folders()]
    if home := os.environ.get("CUDA_HOME"):
        places.append(Path(home, "bin/nvdisasm"))
    if in_path := shutil.which("nvdisasm"):
        places.append(Path(in_path))
    for place in places:
        if os.access(place, os.X_OK):
            return place
    raise BuildError("nvdisasm was not found; pip install triton brings it")


def architecture_of(cubin: Path, only: str) -> str:
    """The architecture in a cubin's file name; nvcc leaves it out where there is only one."""
    found = re.findall(r"\.(?:compute|sm)_(\w+?)(?=\.)", cubin.name)
    return str(found[-1]) if found else only


def widest(text: str, instruction: str) -> int:
    widths = [
        max(
            (int(part) for part in modifiers.split(".") if part in ("64", "128", "256")), default=32
        )
        for name, modifiers in GLOBAL_ACCESS.findall(text)
        if name == instruction
    ]
    return max(widths, default=0)


def by_kernel(listing: str) -> tuple[list[str], list[str]]:
    """Names, demangled, and instructions of the kernels in nvdisasm's output."""
    pieces = SECTION.split(listing)
    return demangle(pieces[1::2]), pieces[2::2]


def summed_up(listing: str, architecture: str) -> list[Code]:
    """The kernels in nvdisasm's output."""
    names, bodies = by_kernel(listing)
    return [
        Code(
            readable(name),
            architecture,
            widest(body, "LDG"),
            widest(body, "STG"),
            tuple(sorted(set(MATRIX.findall(body)))),
        )
        for name, body in zip(names, bodies, strict=True)
    ]


def disassemble(cubins: Iterable[Path], jobs: int, only: str = "90a") -> list[Code]:
    """Every kernel of these cubins. `only` is the architecture of a file that names none."""
    nvdisasm = find_nvdisasm()

    def one(cubin: Path) -> list[Code]:
        # -ndf: no data-flow analysis, which takes long on large kernels and tells us nothing.
        done = subprocess.run(
            [nvdisasm, "-c", "-ndf", cubin], capture_output=True, text=True, check=True
        )
        return summed_up(done.stdout, architecture_of(cubin, only))

    with ThreadPoolExecutor(jobs) as pool:
        return [code for codes in pool.map(one, sorted(cubins)) for code in codes]
