"""Makes what stands in for CUDA on a machine without a GPU, in the folder given.

    PYTHONPATH=. python tests/emulation/toolkit.py FOLDER

FOLDER/lib receives the libraries that a CUDA build of torch wants to load: the runtime of
cuda_runtime.cpp, and under the names of cuDNN, cuBLAS and the others one that answers 0 to
everything. FOLDER/cuda is a toolkit for the build: `nvcc` is emulated_nvcc.py, `cudart_static` the
runtime with simt.cpp. Needs g++, and the headers of a real toolkit.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from build_support import discover

HERE = Path(__file__).resolve().parent
RUNTIME = "libcudart.so.13"
OTHER_ANSWERS = {
    # Of a device without a context torch says that no stream of it is being captured.
    "cuDevicePrimaryCtxGetState": """
extern "C" int cuDevicePrimaryCtxGetState(int, unsigned* flags, int* active) {
  *flags = 0;
  *active = 1;
  return 0;
}"""
}


def symbols(library: Path, kind: str) -> set[str]:
    """Names that a library defines or leaves undefined, without versions."""
    done = subprocess.run(["nm", "-D", f"--{kind}", library], capture_output=True, text=True)
    return {line.split()[-1].partition("@")[0] for line in done.stdout.splitlines()}


def make(folder: Path) -> None:
    """Make all of it."""
    include, library = discover.find_cuda().library.parent / "include", folder / "lib"
    library.mkdir(parents=True, exist_ok=True)
    compiler = ["g++", "-std=c++17", "-O2", "-fPIC", "-isystem", str(include)]

    def shared(name: str, *what: str) -> None:
        words = ["-shared", "-o", str(library / name), f"-Wl,-soname,{name}", *what]
        subprocess.run([*compiler, *words], check=True)

    shared(RUNTIME, str(HERE / "cuda_runtime.cpp"))

    libraries = discover.find_torch(None).root / "lib"
    torch = [path for path in libraries.glob("lib*.so*") if path.is_file()]
    there = symbols(library / RUNTIME, "defined-only").union(
        *(symbols(path, "defined-only") for path in torch)
    )
    wanted = set().union(*(symbols(path, "undefined-only") for path in torch)) - there
    answers = sorted(name for name in wanted if re.match(r"(__)?cu|nccl|nv", name))
    source = folder / "answers.cpp"
    source.write_text(
        "\n".join(
            OTHER_ANSWERS.get(name, f'extern "C" long {name}() {{ return 0; }}') for name in answers
        )
    )
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
    subprocess.run(
        [*compiler, f"-I{HERE.parent / 'csrc'}", "-c", str(HERE / "simt.cpp"), "-o", str(simt)],
        check=True,
    )
    (toolkit / "lib64/libcudart_static.a").write_text(f"INPUT({simt} {library / RUNTIME})\n")
    nvcc = toolkit / "bin/nvcc"
    words = f'"{sys.executable}" "{HERE / "emulated_nvcc.py"}" "{include}"'
    nvcc.write_text(f'#!/bin/sh\nexec {words} "$@"\n')
    nvcc.chmod(0o755)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    make(Path(sys.argv[1]).resolve())
