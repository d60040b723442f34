"""What the machine has to build with. Nothing here imports torch."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import site
import subprocess
import sys
import sysconfig
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from .settings import Architecture, BuildError, Settings

OLDEST_TORCH = (2, 11)


@dataclass(frozen=True)
class Torch:
    """The headers and libraries of an installed torch."""

    root: Path
    version: str
    cuda: str | None  # the CUDA version it was built with; None: a CPU build

    @property
    def include(self) -> Path:
        return self.root / "include"


@dataclass(frozen=True)
class Compiler:
    command: tuple[str, ...]
    version: str


@dataclass(frozen=True)
class Cuda:
    """A CUDA toolkit that can compile and link."""

    nvcc: Path
    version: str
    library: Path  # the folder of libcudart_static.a


@dataclass(frozen=True)
class Headers:
    """A header-only library."""

    include: tuple[Path, ...]
    version: str


def package_folders() -> Iterator[Path]:
    """Folders of installed packages: those of this interpreter, then those it stands on.

    pip's build isolation hides the environment's packages from sys.path, but runs the
    environment's own interpreter, whose sysconfig still names them. Tools that isolate with a
    virtual environment of their own (build, uv) leave VIRTUAL_ENV or CONDA_PREFIX to go by.
    """
    version = f"python{sys.version_info[0]}.{sys.version_info[1]}"
    prefixes = [os.environ.get("VIRTUAL_ENV"), os.environ.get("CONDA_PREFIX"), sys.base_prefix]
    candidates = [
        *(entry for entry in sys.path if entry),
        sysconfig.get_path("purelib"),
        sysconfig.get_path("platlib"),
        *site.getsitepackages(),
        *(os.path.join(p, "lib", version, "site-packages") for p in prefixes if p),
        site.getusersitepackages(),
        *site.getsitepackages([sys.base_prefix]),
    ]
    seen = set()
    for candidate in candidates:
        folder = Path(candidate).resolve()
        if folder not in seen and folder.is_dir():
            seen.add(folder)
            yield folder


def find_torch(chosen: Path | None) -> Torch:
    """The torch to compile against.

    Raises:
        BuildError: there is none, or it is too old.
    """
    roots = [chosen] if chosen else [folder / "torch" for folder in package_folders()]
    for root in roots:
        version_file = root / "version.py"
        if (root / "include/torch/csrc/stable/library.h").is_file() and version_file.is_file():
            text = version_file.read_text()
            version = re.search(r"__version__ = '([^']+)'", text)
            cuda = re.search(r"^cuda\b[^=]*= '([^']+)'", text, re.MULTILINE)
            if version is None:
                continue
            found = Torch(root, version[1], cuda[1] if cuda else None)
            if _numbers(found.version) < OLDEST_TORCH:
                oldest = ".".join(map(str, OLDEST_TORCH))
                raise BuildError(
                    f"torch {found.version} is older than {oldest}; pip install 'torch>={oldest}'"
                )
            return found
    raise BuildError(
        "torch was not installed when fastgen was built, and its headers are needed; install torch "
        "first, then fastgen with --no-build-isolation"
        if chosen is None
        else f"FASTGEN_TORCH={chosen} holds no torch with headers"
    )


def find_pybind11(torch: Torch) -> Headers:
    """pybind11 of the environment, else the copy that torch brings along."""
    includes = [folder / "pybind11/include" for folder in package_folders()]
    for include in (*includes, torch.include):
        common = include / "pybind11/detail/common.h"
        if common.is_file():
            text = common.read_text()
            parts = re.findall(r"#\s*define PYBIND11_VERSION_(?:MAJOR|MINOR|MICRO) (\d+)", text)
            return Headers((include,), ".".join(parts))
    raise BuildError("pybind11 was not found; pip install pybind11")


def find_compiler(settings: Settings) -> Compiler:
    """The C++ compiler: $CXX, else g++, c++ or clang++."""
    names = [settings.cxx] if settings.cxx else ["g++", "c++", "clang++"]
    for name in names:
        command = tuple(shlex.split(name))
        if shutil.which(command[0]) is None:
            continue
        answer = _run([*command, "--version"])
        if answer is None or not answer.strip():
            raise BuildError(
                f"the C++ compiler {name!r} does not run; set CXX to one that does, or install g++"
            )
        return Compiler(command, answer.splitlines()[0].strip())
    raise BuildError(f"no C++ compiler ({', '.join(names)}) was found; install g++ or set CXX")


# What a version of the CPU kernels may use beyond the machine's baseline, each more than the one
# before; csrc/cpu/capability.h has the same list.
CPU_VERSIONS = {
    "portable": (),
    "avx2": ("-mavx2", "-mfma", "-mf16c"),
    "avx512": ("-mavx2", "-mfma", "-mf16c", "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl",
               "-mprefer-vector-width=512"),
}  # fmt: skip
CPU_VERSIONS["avx512bf16"] = (*CPU_VERSIONS["avx512"], "-mavx512bf16")


def cpu_versions(compiler: Compiler) -> tuple[str, ...]:
    """The versions of the CPU kernels that the compiler can make: on x86-64 as far as it knows the
    instructions, elsewhere the portable one alone.
    """
    found = []
    for name, flags in CPU_VERSIONS.items():
        trial = (*compiler.command, *flags, "-fsyntax-only", "-x", "c++", os.devnull)
        on_x86 = os.uname().machine in ("x86_64", "AMD64")
        if flags and not (on_x86 and _run(trial) is not None):
            break
        found.append(name)
    return tuple(found)


def find_cuda() -> Cuda:
    """The CUDA toolkit: of $CUDA_HOME or $CUDA_PATH, else of the nvcc in PATH.

    The toolkit's folder is what nvcc says, not the parent of nvcc: nvcc may be a wrapper script.
    """
    homes = [os.environ[name] for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)]
    places = [Path(home) / "bin/nvcc" for home in homes]
    if (in_path := shutil.which("nvcc")) is not None:
        places.append(Path(in_path))
    places.append(Path("/usr/local/cuda/bin/nvcc"))
    nvcc = next((place for place in places if os.access(place, os.X_OK)), None)
    if nvcc is None:
        raise BuildError(
            "the CUDA compiler nvcc was not found; install the CUDA toolkit and put nvcc in PATH, "
            "or set CUDA_HOME"
        )
    answer = _run([str(nvcc), "--version"]) or ""
    version = re.search(r"\bV(\d+\.\d+\.\d+)", answer)
    if version is None:
        raise BuildError(f"{nvcc} does not run; install the CUDA toolkit or set CUDA_HOME")
    steps = _run([str(nvcc), "--dryrun", "-x", "cu", "-c", os.devnull, "-o", "unused.o"]) or ""
    tops = re.findall(r"^#\$ TOP=(.+)$", steps, re.MULTILINE)
    roots = [Path(top.strip()).resolve() for top in tops] + [nvcc.resolve().parent.parent]
    kinds = ("lib64", "lib", *(f"targets/{name}/lib" for name in _cuda_targets()))
    for library in (root / kind for root in roots for kind in kinds):
        if (library / "libcudart_static.a").is_file():
            return Cuda(nvcc, version[1], library)
    raise BuildError(
        f"libcudart_static.a was not found beside {nvcc}; install the CUDA runtime's development "
        "files or set CUDA_HOME to the toolkit"
    )


def usable_architectures(settings: Settings, cuda: Cuda) -> tuple[Architecture, ...]:
    """Those of the architectures asked for that this nvcc knows.

    Raises:
        BuildError: the user named one that it does not know, or none is left.
    """
    answer = _run([str(cuda.nvcc), "--list-gpu-code"]) or ""
    known = set(re.findall(r"\bsm_(\d+)", answer))
    fits = {a: re.sub(r"\D", "", a.code) in known for a in settings.architectures}
    unknown = [architecture.code for architecture, fit in fits.items() if not fit]
    if unknown and (settings.architectures_chosen or len(unknown) == len(fits)):
        raise BuildError(
            f"nvcc {cuda.version} does not know the architectures {', '.join(unknown)}; install a "
            "newer CUDA toolkit or set FASTGEN_CUDA_ARCHS to what it knows: "
            + ";".join(sorted(known, key=int))
        )
    usable = [architecture for architecture, fit in fits.items() if fit]
    if unknown and not any(architecture.ptx for architecture in usable):
        # What was to serve newer devices is gone: the newest that is left does it now.
        usable[-1] = Architecture(usable[-1].code, ptx=True)
    return tuple(usable)


def find_cutlass(chosen: Path | None) -> Headers:
    """The CUTLASS headers: of $FASTGEN_CUTLASS, else of the package nvidia-cutlass.

    The Makefile unpacks it beside the environment's packages: of what it asks for nothing is
    needed, and pip would complain about that from then on.
    """
    folders = [*package_folders(), Path(sys.prefix) / "cutlass"]
    packaged = [folder / "cutlass_library/source" for folder in folders]
    for root in [chosen] if chosen else packaged:
        version = root / "include/cutlass/version.h"
        if version.is_file():
            numbers = re.findall(
                r"#define CUTLASS_(?:MAJOR|MINOR|PATCH) (\d+)", version.read_text()
            )
            return Headers((root / "include", root / "tools/util/include"), ".".join(numbers))
    raise BuildError(
        "the CUTLASS headers were not found; pip install --no-deps nvidia-cutlass==4.2.0.0, then "
        "install fastgen again with --no-build-isolation"
        if chosen is None
        else f"FASTGEN_CUTLASS={chosen} holds no include/cutlass/version.h"
    )


def find_ninja() -> str | None:
    beside = Path(sys.executable).with_name("ninja")
    found = str(beside) if os.access(beside, os.X_OK) else shutil.which("ninja")
    return found if found and _run([found, "--version"]) else None


def demangle(names: Sequence[str]) -> list[str]:
    """C++ names as people write them; unchanged where c++filt is not installed."""
    if not names or shutil.which("c++filt") is None:
        return list(names)
    done = subprocess.run(
        ["c++filt"], input="\n".join(names), capture_output=True, text=True, check=True
    )
    return done.stdout.splitlines()


def _cuda_targets() -> tuple[str, ...]:
    machine = os.uname().machine
    return ("sbsa-linux", "aarch64-linux") if machine == "aarch64" else (f"{machine}-linux",)


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version)[:2])


def _run(command: Sequence[str]) -> str | None:
    """Everything the command prints, or None when it cannot be run or fails."""
    try:
        done = subprocess.run(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=60
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None
