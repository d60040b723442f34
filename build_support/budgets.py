"""The budget of each CUDA kernel: what it may use and what its machine code has to show.

`tests/csrc/budgets.json` holds, per source and kernel, and in it per architecture, registers and
shared bytes (at most), bits per load and store (at least) and tensor-core instructions (these).
Stack and spills have no entry: they are zero for every kernel.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from .disassembly import Code
from .listing import Kernel

FILE = Path("tests/csrc/budgets.json")
REGENERATE = "FASTGEN_BUILD=cuda python -m build_support --budgets"

Budgets = dict[str, dict[str, dict[str, dict[str, Any]]]]


def measured(kernels: Iterable[Kernel], codes: Iterable[Code]) -> Budgets:
    """The budgets that these kernels need exactly."""
    code_of = {(code.name, code.architecture): code for code in codes}
    found: Budgets = {}
    for kernel in kernels:
        code = code_of[kernel.name, kernel.architecture]
        of_kernel = found.setdefault(kernel.source, {}).setdefault(kernel.name, {})
        of_kernel[kernel.architecture] = {
            "registers": kernel.registers,
            "shared": kernel.shared_bytes,
            "loads": code.load_bits,
            "stores": code.store_bits,
            **({"matrix": list(code.matrix)} if code.matrix else {}),
        }
    return found


def exceeded(
    kernels: Iterable[Kernel], codes: Iterable[Code], budgets: Budgets, *, registers: bool = True
) -> list[str]:
    """One line for each kernel and budget that do not agree; none when all is well.

    Args:
        registers: whether registers are compared; another nvcc than the one the file was written
            with allocates them otherwise.
    """
    problems = []
    for kernel in kernels:
        if kernel.stack_bytes or kernel.spill_stores or kernel.spill_loads:
            problems.append(
                f"{_title(kernel)}: {kernel.stack_bytes} bytes of stack, spills of "
                f"{kernel.spill_stores} bytes stored and {kernel.spill_loads} loaded; allowed is 0"
            )
    for source, of_source in measured(kernels, codes).items():
        for name, of_kernel in of_source.items():
            for architecture, used in of_kernel.items():
                title = f"{source}: {name} for sm_{architecture}"
                allowed = budgets.get(source, {}).get(name, {}).get(architecture)
                if allowed is None:
                    problems.append(f"{title} has no budget; {REGENERATE} writes one")
                else:
                    problems += _compared(title, used, allowed, registers)
    return problems


def _compared(
    title: str, used: Mapping[str, Any], allowed: Mapping[str, Any], registers: bool
) -> list[str]:
    problems = []
    for name in ("registers", "shared"):
        if used[name] > allowed[name] and (registers or name != "registers"):
            problems.append(f"{title}: {name} {used[name]}, budget {allowed[name]}")
    for name in ("loads", "stores"):
        if used[name] < allowed[name]:
            problems.append(f"{title}: {name} of {used[name]} bits, budget {allowed[name]}")
    lost = set(allowed.get("matrix", ())) - set(used.get("matrix", ()))
    if lost:
        problems.append(f"{title}: no {', '.join(sorted(lost))} instruction any more")
    return problems


def unknown(kernels: Iterable[Kernel], budgets: Budgets) -> list[str]:
    """Budgets of kernels that are not there (any more), in sources that are."""
    present = {(kernel.source, kernel.name) for kernel in kernels}
    sources = {source for source, _ in present}
    return [
        f"{source}: {name} has a budget and is no kernel; {REGENERATE} removes it"
        for source, of_source in budgets.items()
        for name in of_source
        if source in sources and (source, name) not in present
    ]


def read(root: Path) -> tuple[str, Budgets]:
    """The nvcc release that the file was written with, and the budgets."""
    content = json.loads((root / FILE).read_text())
    return content["nvcc"], content["kernels"]


def write(root: Path, nvcc: str, budgets: Budgets) -> None:
    """Write the file: a line for each kernel and architecture."""
    lines = [f'{{\n "nvcc": {json.dumps(nvcc)},\n "kernels": {{']
    sources = []
    for source, of_source in sorted(budgets.items()):
        kernels = [
            f"   {json.dumps(name)}: {{\n"
            + ",\n".join(f"    {json.dumps(a)}: {json.dumps(b)}" for a, b in of_kernel.items())
            + "\n   }"
            for name, of_kernel in of_source.items()
        ]
        sources.append(f"  {json.dumps(source)}: {{\n" + ",\n".join(kernels) + "\n  }")
    lines += [",\n".join(sources), " }\n}\n"]
    (root / FILE).parent.mkdir(parents=True, exist_ok=True)
    (root / FILE).write_text("\n".join(lines))


def _title(kernel: Kernel) -> str:
    return f"{kernel.source}: {kernel.name} for sm_{kernel.architecture}"
