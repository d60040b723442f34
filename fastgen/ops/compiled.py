"""The compiled module `fastgen._C`: loaded once, with `fastgen.ops`, or the reason why it is not.

Loading it registers the C++ operators as `torch.ops.fastgen.*`. A missing or broken module is no
error by itself: plain PyTorch computes everything. `missing` says what stands in the way and what
to do, for the message of a backend that was asked for by name and for `fastgen info`.
"""

from __future__ import annotations

import json
from functools import cache
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, cast

import torch

from . import fakes, variables

RECORD = Path(__file__).resolve().parent.parent / "_build.json"
NEVER_BUILT = (
    "fastgen runs from a source tree in which nothing was built; run pip install "
    "--no-build-isolation --editable . there, or python -m build_support"
)


CPU_VERSIONS = variables.ALLOWED["FASTGEN_CPU"]
"""Versions of the CPU kernels, each needing more of the CPU than the one before."""


@cache
def _module() -> ModuleType | str:
    """The module, loaded when first asked for, or the reason why it is not there."""
    for variable in ("FASTGEN_CPU", "FASTGEN_KEEP_MB"):  # the module reads them unchecked
        variables.read(variable)
    try:
        module = import_module("fastgen._C")
    except ModuleNotFoundError:
        return recorded_reason("cpu") or NEVER_BUILT
    except ImportError as failure:
        return (
            f"the compiled module does not load beside torch {torch.__version__} ({failure}); "
            "install fastgen again with --no-build-isolation --force-reinstall --no-deps"
        )
    fakes.register(cutlass=bool(module.build_information()["cutlass"]))
    return module


def recorded_reason(part: str) -> str | None:
    """Why the build left out `part` (``"cpu"``, ``"cuda"`` or ``"cutlass"``) and what to do."""
    try:
        record = json.loads(RECORD.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    reason = record.get("missing", {}).get(part)
    return str(reason) if reason else None


def missing(part: Literal["cpu", "cuda"]) -> str | None:
    """Why the compiled kernels of `part` cannot run here and what to do; None when they can."""
    return _missing(part)


# A constant for torch.compile, which cannot trace the loading of a module. This is what
# `torch.compiler.assume_constant_result` does, once it has imported the whole compiler.
missing._dynamo_marked_constant = True  # type: ignore[attr-defined]


@cache
def _missing(part: str) -> str | None:
    if isinstance(loaded := _module(), str):
        return loaded
    if part == "cpu":
        if build_information()["cpu_sources"] == "0":
            return "this version of fastgen holds no C++ kernels for the CPU; use backend='torch'"
        return None
    if not build_information()["cuda"]:
        return recorded_reason("cuda") or "fastgen was built without CUDA; install it again"
    if torch.version.cuda is None:
        return f"torch {torch.__version__} is a CPU build; install a CUDA build of torch"
    if not torch.cuda.is_available():
        return "torch sees no CUDA device; check nvidia-smi and CUDA_VISIBLE_DEVICES"
    return None


@cache
def build_information() -> dict[str, str]:
    """What the module was built with: versions, compilers, architectures. Empty without a module.

    Keys: ``torch_headers``, ``oldest_torch``, ``python``, ``compiler``, ``pybind11``, ``cuda``,
    ``cuda_architectures``, ``cutlass``, ``cpu_sources``, ``cpu_versions``; a part left out has an
    empty text.
    """
    loaded = _module()
    return {} if isinstance(loaded, str) else cast("dict[str, str]", loaded.build_information())


@cache
def cpu_capability() -> dict[str, bool]:
    """Vector instruction sets of this CPU by name (``avx2``, ``avx512``, ``neon``, ...)."""
    loaded = _module()
    return {} if isinstance(loaded, str) else cast("dict[str, bool]", loaded.cpu_capability())


def cpu_version() -> str:
    """Which version of the CPU kernels runs in this process, one of `CPU_VERSIONS`: the most that
    this CPU has and the build made, or less if the environment variable ``FASTGEN_CPU`` says so.
    Empty without a module.
    """
    loaded = _module()
    return "" if isinstance(loaded, str) else str(loaded.cpu_version())


cpu_version._dynamo_marked_constant = True  # type: ignore[attr-defined]


def cuda_kernels() -> list[dict[str, str | int]]:
    """Each compiled CUDA kernel for each architecture, as the CUDA compiler reported on it:
    ``name``, ``source``, ``architecture``, ``registers``, ``shared_bytes``, ``stack_bytes``,
    ``spill_stores``, ``spill_loads``.
    """
    loaded = _module()
    return (
        [] if isinstance(loaded, str) else cast("list[dict[str, str | int]]", loaded.cuda_kernels())
    )


def operators() -> Any:
    """`torch.ops.fastgen`; the module that holds it is loaded when its backend is looked for."""
    return torch.ops.fastgen


def kept_bytes() -> int:
    """Bytes of CPU memory that the C++ kernels keep for results to come; no tensor's now. The
    environment variable ``FASTGEN_KEEP_MB`` limits them (default 1024, at most an eighth of the
    machine's memory; 0 keeps nothing).
    """
    loaded = _module()
    return 0 if isinstance(loaded, str) else int(loaded.kept_bytes())


def forget_kept_memory() -> None:
    """Give that memory back to the system; the next large results take it from there again."""
    if not isinstance(loaded := _module(), str):
        loaded.forget_blocks()


def has_cutlass() -> bool:
    """Whether the CUTLASS kernels for Hopper are compiled in."""
    return bool(build_information().get("cutlass"))
