"""Compile every Triton configuration for GPUs that are not there, and say what came out.

    TRITON_INTERPRET=0 python tests/kernels/aot.py            everything, as JSON on standard output
    TRITON_INTERPRET=0 python tests/kernels/aot.py --budget   and written to budgets.json
    TRITON_INTERPRET=0 python tests/kernels/aot.py --changed  what budgets.json was not written from

Needs no GPU: Triton compiles to PTX, its own ptxas reports registers, spills and stack, its
nvdisasm shows the instructions. A process of its own, because Triton interprets in the tests'.
What was compiled is kept in build/aot by the hash of the kernel with all it calls, Triton's version
and the configuration. The same hash stands in budgets.json: --changed passes over a configuration
that has it, but for one in ten, which are compiled all the same.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import json
import os
import re
import subprocess
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
BUDGETS = Path(__file__).with_name("budgets.json")
CACHE = ROOT / "build" / "aot"
ARCHITECTURES = (80, 90, 100)
# Tensor-core instructions: up to Ampere, Hopper, Blackwell.
TENSOR_CORES = re.compile(r"\b(HMMA|HGMMA|UTC\w*MMA)\b")
WIDE_LOAD = re.compile(r"\b(LDG|LDGSTS)\.[\w.]*128\b")
REPORT = {
    "registers": r"Used (\d+) registers",
    "stack": r"(\d+) bytes stack frame",
    "spills": r"(\d+) bytes spill stores",
}


def compilations() -> list[Any]:
    """The COMPILATIONS of all files in kernels/."""
    found: list[Any] = []
    for path in sorted((ROOT / "kernels").glob("*.py")):
        if path.stem != "__init__":
            module = importlib.import_module(f"fastgen.kernels.{path.stem}")
            found += getattr(module, "COMPILATIONS", ())
    names = [c.name for c in found]
    twice = sorted({n for n in names if names.count(n) > 1})
    assert not twice, f"names stand for more than one configuration: {twice}"
    return found


def tool(name: str) -> str:
    import triton

    return str(Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / name)


def source_hash(compilation: Any) -> str:
    """Of everything that the compiler is given."""
    import triton

    parts = (
        compilation.kernel.cache_key,
        triton.__version__,
        compilation.name,
        sorted(compilation.signature.items()),
        sorted((k, str(v)) for k, v in compilation.constexprs.items()),
        sorted(compilation.attrs.items()),
        compilation.num_warps,
        compilation.num_stages,
    )
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


def key(compilation: Any, architecture: int) -> str:
    """Of that, the architecture and the way the result is read."""
    parts = source_hash(compilation), Path(__file__).read_text(encoding="utf-8"), architecture
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:32]


def is_sampled(source: str) -> bool:
    """Whether a configuration is compiled although nothing about it changed."""
    return int(source, 16) % 10 == 0


def compiled(compilation: Any, architecture: int) -> dict[str, Any]:
    """Registers, spills, stack and shared memory in bytes; which instructions there are."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    source = ASTSource(
        compilation.kernel,
        compilation.signature,
        compilation.constexprs,
        compilation.attrs,
    )
    kernel = triton.compile(
        source,
        target=GPUTarget("cuda", architecture, 32),
        options={"num_warps": compilation.num_warps, "num_stages": compilation.num_stages},
    )
    ptx = kernel.asm["ptx"]
    target = re.search(r"\.target (\w+)", ptx)
    assert target is not None
    blackwell = tool("ptxas-blackwell")
    assembler = blackwell if architecture >= 100 and Path(blackwell).exists() else tool("ptxas")
    with tempfile.TemporaryDirectory() as folder:
        ptx_file, cubin = Path(folder, "kernel.ptx"), Path(folder, "kernel.cubin")
        ptx_file.write_text(ptx, encoding="utf-8")
        command = [assembler, "-v", f"--gpu-name={target[1]}", str(ptx_file), "-o", str(cubin)]
        report = subprocess.run(command, check=True, capture_output=True, text=True).stderr
        sass = subprocess.run(
            [tool("nvdisasm"), "-c", str(cubin)], check=True, capture_output=True, text=True
        ).stdout
    numbers = {name: re.search(pattern, report) for name, pattern in REPORT.items()}
    missing = [name for name, match in numbers.items() if match is None]
    assert not missing, f"ptxas does not report {missing}: {report}"
    return {
        **{name: int(match[1]) for name, match in numbers.items() if match},
        "shared": int(kernel.metadata.shared),
        "tensor_cores": bool(TENSOR_CORES.search(sass)),
        "wide_loads": bool(WIDE_LOAD.search(sass)),
    }


def measure(job: tuple[int, int]) -> tuple[str, str, dict[str, Any]]:
    """Compile number `job[0]` for an architecture, or take it from the cache."""
    compilation, architecture = compilations()[job[0]], job[1]
    place = CACHE / f"{key(compilation, architecture)}.json"
    try:
        result = json.loads(place.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        try:
            result = compiled(compilation, architecture)
        except Exception as failure:  # reported by name, beside all others
            return compilation.name, f"sm_{architecture}", {"error": repr(failure)[:2000]}
        CACHE.mkdir(parents=True, exist_ok=True)
        beside = place.with_suffix(f".{os.getpid()}")
        beside.write_text(json.dumps(result), encoding="utf-8")
        beside.replace(place)
    promised = {
        "wants_tensor_cores": compilation.tensor_cores,
        "wants_wide_loads": compilation.memory_bound,
    }
    return compilation.name, f"sm_{architecture}", result | promised


def measured(
    processes: int, pattern: str, known: dict[str, dict[str, Any]]
) -> dict[str, dict[str, Any]]:
    """By configuration and architecture: what `compiled` says, and what was promised; "source" is
    the hash, and alone where it is `known` and not sampled.
    """
    results: dict[str, dict[str, Any]] = {}
    jobs = []
    for number, compilation in enumerate(compilations()):
        if not re.search(pattern, compilation.name):
            continue
        source = source_hash(compilation)
        results[compilation.name] = {"source": source}
        if known.get(compilation.name, {}).get("source") != source or is_sampled(source):
            jobs += [(number, architecture) for architecture in ARCHITECTURES]
    with ProcessPoolExecutor(processes) as pool:
        for name, architecture, result in pool.map(measure, jobs, chunksize=2):
            results[name][architecture] = result
    return results


def budget(results: dict[str, dict[str, Any]], old: dict[str, Any]) -> dict[str, Any]:
    """The hash, and registers and shared bytes per architecture, one short line each.

    Raises:
        SystemExit: something did not compile, spills, has a stack or lacks what it should have:
            then its hash may not be written.
    """
    fresh = {}
    for name, by in results.items():
        fresh[name] = {"source": by["source"]}
        for architecture, result in by.items():
            if architecture == "source":
                continue
            if problems := broken(result):
                sys.exit(f"{name}, {architecture}: {', '.join(problems)}; no budget is written")
            fresh[name][architecture] = [result["registers"], result["shared"]]
    return dict(sorted((old | fresh).items()))


def broken(result: dict[str, Any]) -> list[str]:
    """What no configuration may have, whatever its budget."""
    if "error" in result:
        return [result["error"]]
    problems = [f"{result[what]} {what}, allowed 0" for what in ("spills", "stack") if result[what]]
    if result["wants_tensor_cores"] and not result["tensor_cores"]:
        problems.append("no tensor-core instruction")
    if result["wants_wide_loads"] and not result["wide_loads"]:
        problems.append("no 128-bit load")
    return problems


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--budget", action="store_true", help="write what is measured as allowed")
    parser.add_argument("--changed", action="store_true", help="pass over what is in the budget")
    parser.add_argument("--only", default="", help="a regular expression that names must match")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args()
    if os.environ.get("TRITON_INTERPRET", "0") != "0":
        sys.exit("TRITON_INTERPRET is set: nothing would be compiled; run with TRITON_INTERPRET=0")
    with tempfile.TemporaryDirectory() as cache:
        os.environ["TRITON_CACHE_DIR"] = cache
        held = json.loads(BUDGETS.read_text(encoding="utf-8")) if BUDGETS.exists() else {}
        results = measured(options.processes, options.only, held if options.changed else {})
    if options.budget:
        old = held if options.only else {}
        lines = [f"{json.dumps(k)}: {json.dumps(v)}" for k, v in budget(results, old).items()]
        BUDGETS.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
    json.dump(results, sys.stdout)


if __name__ == "__main__":
    main()
