"""Makes what stands in for CUDA on a machine without a GPU, in the folder given.

    python tests/emulation/toolkit.py FOLDER

FOLDER/lib receives the libraries that a CUDA build of torch wants to load: the runtime of
cuda_runtime.cpp, and under the names of cuDNN, cuBLAS and the others one that answers 0 to
everything. FOLDER/cuda is a toolkit for the build: `nvcc` is emulated_nvcc.py, `cudart_static` the
runtime with simt.cpp. Needs g++, and the header cuda_runtime_api.h of a real toolkit.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
RUNTIME = "libcudart.so.13"


def headers() -> Path:
    """The folder of cuda_runtime_api.h."""
    homes = [os.environ.get("CUDA_HOME"), "/usr/local/cuda"]
    if nvcc := shutil.which("nvcc"):
        answer = subprocess.run(
            [nvcc, "--dryrun", "-x", "cu", "-c", os.devnull, "-o", "unused.o"],
            capture_output=True, text=True,
        )  # fmt: skip
        homes += re.findall(r"^#\$ TOP=(.+)$", answer.stderr + answer.stdout, re.MULTILINE)
    for home in filter(None, homes):
        for place in (Path(home) / "include", *Path(home).glob("targets/*/include")):
            if (place / "cuda_runtime_api.h").is_file():
                return place.resolve()
    sys.exit("toolkit.py: cuda_runtime_api.h was not found; set CUDA_HOME to a CUDA toolkit")


def symbols(library: Path, kind: str) -> set[str]:
    """Names that a library defines or leaves undefined, without versions."""
    done = subprocess.run(["nm", "-D", f"--{kind}", library], capture_output=True, text=True)
    return {line.split()[-1].partition("@")[0] for line in done.stdout.splitlines()}


def make(folder: Path) -> None:
    """Make all of it."""
    include, library = headers(), folder / "lib"
    library.mkdir(parents=True, exist_ok=True)
    compiler = ["g++", "-std=c++17", "-O2", "-fPIC", "-isystem", str(include)]

    def shared(name: str, *what: str) -> None:
        words = ["-shared", "-o", str(library / name), f"-Wl,-soname,{name}", *what]
        subprocess.run([*compiler, *words], check=True)

    shared(RUNTIME, str(HERE / "cuda_runtime.cpp"))

    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        sys.exit("toolkit.py: this Python has no torch")
    torch = [path for path in (Path(spec.origin).parent / "lib").glob("lib*.so*") if path.is_file()]
    there = symbols(library / RUNTIME, "defined-only").union(
        *(symbols(path, "defined-only") for path in torch)
    )
    wanted = set().union(*(symbols(path, "undefined-only") for path in torch)) - there
    answers = sorted(name for name in wanted if re.match(r"(__)?cu|nccl|nv", name))
    source = folder / "answers.cpp"
    source.write_text("\n".join(f'extern "C" long {name}() {{ return 0; }}' for name in answers))
    shared("libanswers.so", str(source))

    dynamic = [
        subprocess.run(["readelf", "-d", path], capture_output=True, text=True).stdout
        for path in torch
    ]
    needed = set(re.findall(r"NEEDED.*\[(lib(?:cu|nccl|nv).*)\]", "".join(dynamic)))
    empty = folder / "empty.cpp"
    empty.touch()
    for name in needed - {RUNTIME} - {path.name for path in torch}:
        link = [f"-L{library}", "-Wl,--no-as-needed", "-lanswers", f"-Wl,-rpath,{library}"]
        shared(name, str(empty), *link)

    toolkit = folder / "cuda"
    for part in ("bin", "lib64"):
        (toolkit / part).mkdir(parents=True, exist_ok=True)
    simt = folder / "simt.o"
    subprocess.run([*compiler, "-c", str(HERE / "simt.cpp"), "-o", str(simt)], check=True)
    (toolkit / "lib64/libcudart_static.a").write_text(f"INPUT({simt} {library / RUNTIME})\n")
    nvcc = toolkit / "bin/nvcc"
    words = f'"{sys.executable}" "{HERE / "emulated_nvcc.py"}" "{include}"'
    nvcc.write_text(f'#!/bin/sh\nexec {words} "$@"\n')
    nvcc.chmod(0o755)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    make(Path(sys.argv[1]).resolve())
