"""Stands in for nvcc: compiles a source of csrc/cuda for threads that are fibers of the host.

Run as `nvcc` of the toolkit that `toolkit.py` makes. Launches become calls, matrix products of
tensor cores a function, shared memory static or dynamic memory of simt.cpp; all else is compiled as
it stands.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).resolve().parent
LAYOUT = HERE.parent / "csrc" / "mma_layout.h"
SOURCES = HERE.parents[1] / "csrc"
LAUNCH = re.compile(r"(\w+(?:<[\w, ]+>)?)\s*<<<(.*?)>>>\(", re.DOTALL)
PRODUCTS = re.compile(
    r"(// \(d0, d1\) of row g.*?)(#endif\n\n}  // namespace fastgen::cuda)", re.DOTALL
)


def translated(source: str) -> str:
    """A .cu file with its launches as calls."""
    text, launches = LAUNCH.subn(r"emulation::launch(\2, \1, ", source)
    if not launches:
        raise SystemExit("emulated nvcc: no launch was found, so nothing would run")
    return text.replace(
        "extern __shared__ uint4 memory[];",
        "uint4* const memory = static_cast<uint4*>(emulation::dynamic_shared_memory());",
    )


def compile_(source: Path, product: str, headers: str, flags: Sequence[str] = ("-O2",)) -> None:
    """Compile a translated copy; what includes tensor_core.h gets a translated copy of that too."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        (folder / "cuda").mkdir()
        core = (SOURCES / "cuda/tensor_core.h").read_text()
        text, found = PRODUCTS.subn(r'#include "matrix_product.h"\n\2', core)
        if not found:
            raise SystemExit("emulated nvcc: tensor_core.h has no products to replace")
        (folder / "cuda" / "tensor_core.h").write_text(text)
        (folder / source.name).write_text(translated(source.read_text()))
        for name in ("cuda_runtime.h", "cuda_bf16.h", "cuda_fp16.h"):
            (folder / name).touch()  # simt.h takes their place
        command = ["g++", "-x", "c++", "-std=c++17", *flags, "-w", "-fPIC", "-fvisibility=hidden"]
        command += [f"-I{path}" for path in (folder, HERE, HERE / "csrc", LAYOUT.parent, SOURCES)]
        command += ["-isystem", headers]
        command += ["-include", "simt.h", "-c", str(folder / source.name), "-o", product]
        subprocess.run(command, check=True)


def main(arguments: list[str], headers: str) -> None:
    """What the build asks of nvcc: its version, what it can compile for, and objects."""
    if "--version" in arguments:
        # The build compiles again when the compiler's version changes, so ours is of its sources.
        sources = sorted(path for path in HERE.rglob("*") if path.suffix in (".h", ".py"))
        number = zlib.crc32(b"".join(path.read_bytes() for path in [*sources, LAYOUT]))
        print(f"Cuda compilation tools, release 13.0, V13.0.{number}")
    elif "--list-gpu-code" in arguments:
        print("sm_90")
    elif "--dryrun" not in arguments:
        source = arguments[arguments.index("-c") + 1]
        compile_(Path(source), arguments[arguments.index("-o") + 1], headers)


if __name__ == "__main__":
    main(sys.argv[2:], sys.argv[1])
