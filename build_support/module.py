"""The compiled module: which steps make it, and the record of what is in it and what is not."""

from __future__ import annotations

import os
import platform
import sys
import sysconfig
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from . import discover, listing
from .discover import Compiler, Cuda, Headers, Torch
from .settings import Architecture, BuildError, Settings
from .steps import Step, StepFailed, digest, forget_old, included, run

# The oldest torch that runs what is built, as the stable ABI's headers want it: major, minor.
TARGET = "0x020b000000000000"
HOPPER = "90a"

CXX_FLAGS = ("-std=c++17", "-O3", "-g0", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra")
# Of the CPU kernels. Nobody asks for errno or floating-point traps, and without them roots and
# choices vectorize; a product and a sum are one rounding only where the formula says so, and so the
# same in every version.
CPU_FLAGS = ("-fno-math-errno", "-fno-trapping-math", "-ffp-contract=off")
NVCC_FLAGS = ("-std=c++17", "-O3", "-lineinfo", "-Xcompiler=-fPIC,-fvisibility=hidden")
CUTLASS_FLAGS = ("--expt-relaxed-constexpr", "-DNDEBUG")
NVCC_VARIABLES = ("NVCC_PREPEND_FLAGS", "NVCC_APPEND_FLAGS", "NVCC_CCBIN")

MODULE = "_C" + (sysconfig.get_config_var("EXT_SUFFIX") or ".so")
LOUDLY = "install again with FASTGEN_BUILD=cuda (or cpu) and pip's -v to see all of it"


@dataclass(frozen=True)
class Parts:
    """What the module is made with. `missing` says of each part that is left out why."""

    torch: Torch
    pybind11: Headers
    compiler: Compiler
    cpu_versions: tuple[str, ...] = ("portable",)
    cuda: Cuda | None = None
    architectures: tuple[Architecture, ...] = ()
    cutlass: Headers | None = None
    missing: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Built:
    """The outcome. `module` is None for pure Python; `missing` maps a part to reason and remedy."""

    module: Path | None
    missing: Mapping[str, str]
    kernels: tuple[listing.Kernel, ...] = ()
    cubins: tuple[Path, ...] = ()

    def record(self) -> dict[str, object]:
        """What the installed package keeps beside itself, in fastgen/_build.json."""
        return {"module": self.module is not None, "missing": dict(self.missing)}


def build(root: Path, settings: Settings) -> Built:
    """Build what the settings ask for, from the tree at `root`.

    Raises:
        BuildError: the mode is ``cpu`` or ``cuda`` and that cannot be built. In mode ``auto`` the
            reason is kept in `Built.missing` instead.
    """
    if settings.mode == "none":
        return _pure("FASTGEN_BUILD=none asked for pure Python; install again without it")
    try:
        parts = survey(settings)
        try:
            return compile_module(root, settings, parts)
        except StepFailed as failure:
            # In auto, CUDA code that does not compile costs the CUDA part alone.
            if settings.mode != "auto" or parts.cuda is None or failure.step.product == MODULE:
                raise
            reason = f"{failure.step.name} did not compile ({failure.first_line}); {LOUDLY}"
            print(f"fastgen: without CUDA: {reason}", file=sys.stderr)
            return compile_module(root, settings, _without_cuda(parts, reason))
    except BuildError as problem:
        if settings.mode != "auto":
            raise BuildError(f"FASTGEN_BUILD={settings.mode}: {problem}") from problem
        return _pure(str(problem))
    except StepFailed as failure:
        if settings.mode != "auto":
            raise BuildError(f"FASTGEN_BUILD={settings.mode}: {failure}") from failure
        return _pure(f"{failure.step.name} did not compile ({failure.first_line}); {LOUDLY}")


def _pure(reason: str) -> Built:
    if not reason.startswith("FASTGEN_BUILD=none"):
        print(f"fastgen: pure Python, without compiled kernels: {reason}", file=sys.stderr)
    return Built(None, {part: reason for part in ("cpu", "cuda", "cutlass")})


def _without_cuda(parts: Parts, reason: str) -> Parts:
    missing = {**parts.missing, "cuda": reason, "cutlass": reason}
    return replace(parts, cuda=None, architectures=(), cutlass=None, missing=missing)


def survey(settings: Settings) -> Parts:
    """What there is to build with, for these settings.

    Raises:
        BuildError: something that is asked for, or that everything needs, is not there.
    """
    if not sys.platform.startswith("linux"):
        raise BuildError(f"compiled kernels are built on Linux only, and this is {sys.platform}")
    torch = discover.find_torch(settings.torch)
    compiler = discover.find_compiler(settings)
    pybind11 = discover.find_pybind11(torch)
    parts = Parts(torch, pybind11, compiler, discover.cpu_versions(compiler))
    if settings.mode == "cpu" or not settings.architectures:
        asked = "FASTGEN_BUILD=cpu" if settings.mode == "cpu" else "FASTGEN_CUDA_ARCHS=none"
        return _without_cuda(parts, f"{asked} left CUDA out; install again without it")
    try:
        cuda = discover.find_cuda()
        architectures = discover.usable_architectures(settings, cuda)
    except BuildError as problem:
        if settings.mode == "cuda":
            raise
        return _without_cuda(parts, str(problem))
    parts = replace(parts, cuda=cuda, architectures=architectures)
    if HOPPER not in {architecture.code for architecture in architectures}:
        reason = f"its kernels need architecture {HOPPER}, which FASTGEN_CUDA_ARCHS leaves out"
        return replace(parts, missing={"cutlass": reason})
    try:
        return replace(parts, cutlass=discover.find_cutlass(settings.cutlass))
    except BuildError as problem:
        if settings.cutlass is not None:
            raise
        return replace(parts, missing={"cutlass": str(problem)})


def compile_module(root: Path, settings: Settings, parts: Parts) -> Built:
    """Compile what is not compiled yet, and link."""
    folder = build_folder(root, settings)
    ninja = discover.find_ninja()
    flags = (tuple(settings.cxx_flags.split()), tuple(settings.link_flags.split()))
    maker = _Maker(root, folder, parts, *flags, bool(settings.cxx))

    host = [maker.cxx(source) for source in maker.host_sources()]
    host += [maker.cpu(s, version) for s in maker.cpu_sources() for version in parts.cpu_versions]
    device = [maker.nvcc(source) for source in maker.cuda_sources()]
    # The slowest first, so that none of them is left running alone at the end.
    device.sort(key=lambda step: "_sm90" not in step.name)
    run([*device, *host], root, settings.jobs, ninja)

    kernels = kernel_listing(device)
    facts = maker.cxx(maker.facts(kernels))
    run([facts], root, settings.jobs, ninja)
    linked = maker.link([*host, facts, *device])
    run([linked], root, settings.jobs, ninja)

    forget_old(folder, [*host, *device, facts, linked])
    cubins = tuple(path for step in device for path in sorted(step.folder.glob("*.cubin")))
    return Built(linked.output, parts.missing, tuple(kernels), cubins)


def build_folder(root: Path, settings: Settings) -> Path:
    tag = f"{sys.implementation.cache_tag}-{sysconfig.get_platform()}"
    return (settings.build_folder or root / "build") / f"fastgen-{tag}"


def kernel_listing(steps: list[Step]) -> list[listing.Kernel]:
    found = [kernel for step in steps for kernel in listing.parse(step.log, step.name)]
    return listing.named(found, discover.demangle)


@dataclass(frozen=True)
class _Maker:
    """Makes the steps; every path inside the tree is relative to `root`, from where they run."""

    root: Path
    folder: Path
    parts: Parts
    cxx_flags: tuple[str, ...]
    link_flags: tuple[str, ...]
    compiler_chosen: bool

    def host_sources(self) -> list[Path]:
        return [Path("csrc/module.cpp"), Path("csrc/capability.cpp")] + [
            source
            for source in self._glob("csrc/ops/*.cpp")
            if self.parts.cutlass is not None or not _needs_cutlass(source)
        ]

    def cpu_sources(self) -> list[Path]:
        """The CPU kernels, each of which is compiled once per version."""
        return self._glob("csrc/cpu/*.cpp")

    def cuda_sources(self) -> list[Path]:
        return [
            source
            for source in self._glob("csrc/cuda/*.cu")
            if self.parts.cuda is not None
            and (self.parts.cutlass is not None or not _needs_cutlass(source))
        ]

    def cxx(self, source: Path) -> Step:
        parts = self.parts
        flags, tools = [*CXX_FLAGS, "-Icsrc", *self.cxx_flags], [parts.compiler.version]
        flags.append(f"-DFASTGEN_CPU_COUNT={len(parts.cpu_versions)}")
        if source.parent.name == "ops":
            flags += [f"-DTORCH_TARGET_VERSION={TARGET}", *_system([parts.torch.include])]
            flags += ["-DFASTGEN_WITH_CUDA"] if parts.cuda else []
            flags += ["-DFASTGEN_WITH_CUTLASS"] if parts.cutlass else []
            tools.append(parts.torch.version)
        if source.name == "module.cpp":
            flags += _system([*parts.pybind11.include, Path(sysconfig.get_path("include"))])
            tools += [parts.pybind11.version, platform.python_version()]
        command = (*parts.compiler.command, *flags, "-c", str(source), "-o", "{product}")
        return self._step(source, command, tools)

    def cpu(self, source: Path, version: str) -> Step:
        """One version of a source of csrc/cpu; see csrc/cpu/capability.h."""
        flags = [*CXX_FLAGS, *CPU_FLAGS, *discover.CPU_VERSIONS[version], "-Icsrc"]
        flags += [f"-DFASTGEN_CPU={version}", *self.cxx_flags]
        command = (*self.parts.compiler.command, *flags, "-c", str(source), "-o", "{product}")
        return self._step(source, command, [self.parts.compiler.version], version=version)

    def nvcc(self, source: Path) -> Step:
        parts = self.parts
        assert parts.cuda is not None
        flags, tools = [*NVCC_FLAGS, "-Xptxas=-v", "-Icsrc"], [parts.compiler.version]
        tools += [parts.cuda.version, *(os.environ.get(name, "") for name in NVCC_VARIABLES)]
        if (hopper := _needs_cutlass(source)) and parts.cutlass is not None:
            flags += [*CUTLASS_FLAGS, *_system(parts.cutlass.include)]
            tools.append(parts.cutlass.version)
        if self.compiler_chosen and len(parts.compiler.command) == 1:
            flags.append(f"-ccbin={parts.compiler.command[0]}")
        flags += [
            # Hopper's own kernels have no meaning for another architecture, PTX included.
            Architecture(HOPPER).gencode if hopper else architecture.gencode
            for architecture in parts.architectures
            if not hopper or architecture.code == HOPPER
        ]
        # Kept beside the object, the cubins are what the tests disassemble.
        flags += ["--keep", "--keep-dir", "{folder}"]
        command = (str(parts.cuda.nvcc), *flags, "-c", str(source), "-o", "{product}")
        return self._step(source, command, tools, keep="*.cubin")

    def link(self, objects: list[Step]) -> Step:
        parts = self.parts
        libraries = [f"-L{parts.torch.root / 'lib'}", "-Wl,--as-needed", "-ltorch_cpu"]
        if parts.cuda is not None:
            libraries += [f"-L{parts.cuda.library}", "-lcudart_static"]
        libraries += ["-ldl", "-lrt", "-lpthread"]
        # The CUDA runtime inside is ours alone: torch brings its own.
        libraries += ["-Wl,--exclude-libs,ALL", *self.link_flags, "-o", "{product}"]
        first = (*parts.compiler.command, "-shared", *self.cxx_flags)
        tools = [
            parts.compiler.version,
            parts.torch.version,
            parts.cuda.version if parts.cuda else "",
        ]
        names = [step.folder.name for step in objects]
        key = digest([*tools, *self._anonymous((*first, *libraries)), *names])
        command = (*first, *(str(step.output) for step in objects), *libraries)
        return Step("fastgen._C", self.folder / f"_C-{key}", MODULE, command)

    def facts(self, kernels: list[listing.Kernel]) -> Path:
        """Write what csrc/build_information.h declares; the source's path."""
        parts = self.parts
        hopper = any(_needs_cutlass(source) for source in self.cuda_sources())
        facts = {
            "torch_headers": parts.torch.version,
            "oldest_torch": ".".join(map(str, discover.OLDEST_TORCH)),
            "python": platform.python_version(),
            "compiler": parts.compiler.version,
            "pybind11": parts.pybind11.version,
            "cuda": parts.cuda.version if parts.cuda else "",
            "cuda_architectures": ";".join(
                a.code + ("+PTX" if a.ptx else "") for a in parts.architectures
            ),
            "cutlass": parts.cutlass.version if parts.cutlass and hopper else "",
            "cpu_sources": str(len(self.cpu_sources())),
            "cpu_versions": ";".join(parts.cpu_versions),
        }
        lines = ['#include "build_information.h"', "", "namespace fastgen {", ""]
        lines += ["const std::vector<BuildFact>& build_facts() {"]
        lines += ["  static const std::vector<BuildFact> facts = {"]
        lines += [f"      {{{_quoted(name)}, {_quoted(value)}}}," for name, value in facts.items()]
        lines += ["  };", "  return facts;", "}", ""]
        lines += ["const std::vector<CompiledKernel>& compiled_kernels() {"]
        lines += ["  static const std::vector<CompiledKernel> kernels = {"]
        for k in kernels:
            numbers = (
                k.registers, k.shared_bytes, k.stack_bytes, k.spill_stores, k.spill_loads
            )  # fmt: skip
            texts = (_quoted(k.name), _quoted(k.source), _quoted(k.architecture))
            lines.append(f"      {{{', '.join([*texts, *map(str, numbers)])}}},")
        lines += ["  };", "  return kernels;", "}", "", "}  // namespace fastgen", ""]
        text = "\n".join(lines)
        path = self.folder / f"generated-{digest([text])}" / "build_information.cpp"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    def _glob(self, pattern: str) -> list[Path]:
        return sorted(path.relative_to(self.root) for path in self.root.glob(pattern))

    def _step(
        self,
        source: Path,
        command: tuple[str, ...],
        tools: list[str],
        keep: str = "",
        version: str = "",
    ) -> Step:
        files = included(self.root / source, self.root / "csrc")
        contents = [path.read_text() for path in files]
        # csrc/cuda/x.cu and csrc/ops/x.cpp share a stem; what is generated lies outside the tree.
        name = source.stem if source.is_absolute() else "-".join(source.with_suffix("").parts[1:])
        name += f"-{version}" if version else ""
        key = digest([*tools, *self._anonymous(command), *contents])
        title = source.name if source.is_absolute() else str(source)
        title += f" for {version}" if version else ""
        return Step(title, self.folder / f"{name}-{key}", "object.o", command, keep)

    def _anonymous(self, command: tuple[str, ...]) -> list[str]:
        """The command without the paths of tools and foreign headers: their versions count."""
        places = {str(self.parts.torch.root): "torch", str(self.folder): "build"}
        places |= {str(path): "pybind11" for path in self.parts.pybind11.include}
        if self.parts.cuda is not None:
            places |= {str(self.parts.cuda.nvcc): "nvcc", str(self.parts.cuda.library): "cudart"}
        if self.parts.cutlass is not None:
            places |= {str(path): "cutlass" for path in self.parts.cutlass.include}
        words = list(command)
        for place in sorted(places, key=len, reverse=True):
            words = [word.replace(place, places[place]) for word in words]
        return words


def _needs_cutlass(source: Path) -> bool:
    return "_sm90" in source.stem


def _system(folders: list[Path] | tuple[Path, ...]) -> list[str]:
    return [word for folder in folders for word in ("-isystem", str(folder))]


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
