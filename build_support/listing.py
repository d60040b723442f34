"""What `ptxas -v` says of each kernel.

ptxas info    : Compiling entry function '_Z...' for 'sm_80'
ptxas info    : Function properties for _Z...
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 32 registers, used 1 barriers, 1024 bytes smem, 380 bytes cmem[0]
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace

ENTRY = re.compile(r"Compiling entry function '([^']+)' for 'sm_(\w+)'")
PROPERTIES = re.compile(r"Function properties for (\S+)")
STACK = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
USED = re.compile(r"Used (\d+) registers")
SHARED = re.compile(r"(\d+) bytes smem")
# nvcc names an unnamed namespace after the file and a hash of it.
UNNAMED = re.compile(r"\(anonymous namespace\)::|_GLOBAL__N__\w+?::|_INTERNAL_\w+?::")
LONGEST_NAME = 160


@dataclass(frozen=True)
class Kernel:
    """One kernel for one architecture. `shared_bytes` counts what is declared in the kernel; what
    a launch asks for on top is not known to the compiler."""

    name: str
    source: str
    architecture: str
    registers: int
    shared_bytes: int
    stack_bytes: int
    spill_stores: int
    spill_loads: int

    def as_dict(self) -> dict[str, str | int]:
        return asdict(self)


def parse(log: str, source: str) -> list[Kernel]:
    """The kernels in the log of one nvcc run, under their mangled names."""
    kernels: list[Kernel] = []
    of_entry = False
    for line in log.splitlines():
        if entry := ENTRY.search(line):
            kernels.append(Kernel(entry[1], source, entry[2], 0, 0, 0, 0, 0))
            of_entry = True
        elif properties := PROPERTIES.search(line):
            # A device function that was not inlined has properties of its own, which are not the
            # kernel's.
            of_entry = bool(kernels) and properties[1] == kernels[-1].name
        elif not kernels:
            continue
        elif (stack := STACK.search(line)) and of_entry:
            frame, stores, loads = map(int, stack.groups())
            kernels[-1] = replace(
                kernels[-1], stack_bytes=frame, spill_stores=stores, spill_loads=loads
            )
        elif used := USED.search(line):
            shared = SHARED.search(line)
            kernels[-1] = replace(
                kernels[-1],
                registers=int(used[1]),
                shared_bytes=int(shared[1]) if shared else 0,
            )
    return kernels


def readable(demangled: str) -> str:
    """A kernel's name without its return type, its arguments and our namespace.

    A template instance keeps its arguments; one longer than a line is cut and told apart by a
    few digits of a hash.
    """
    name = UNNAMED.sub("", demangled)
    depth, end = 0, len(name)
    for position, letter in enumerate(name):
        depth += {"<": 1, ">": -1}.get(letter, 0)
        if letter == "(" and depth == 0:
            end = position
            break
    name = name[:end]
    depth = 0
    for position in range(len(name) - 1, -1, -1):
        depth += {">": 1, "<": -1}.get(name[position], 0)
        if name[position] == " " and depth == 0:
            name = name[position + 1 :]  # the return type stands before
            break
    name = name.replace("fastgen::cuda::", "").replace("fastgen::", "")
    if len(name) > LONGEST_NAME:
        mark = hashlib.sha256(name.encode()).hexdigest()[:8]
        name = f"{name[: LONGEST_NAME - 12]}...#{mark}"
    return name


def named(
    kernels: Sequence[Kernel], demangle: Callable[[Sequence[str]], list[str]]
) -> list[Kernel]:
    """The kernels under readable names, in a fixed order."""
    names = demangle([kernel.name for kernel in kernels])
    found = [replace(k, name=readable(name)) for k, name in zip(kernels, names, strict=True)]

    def order(kernel: Kernel) -> tuple[str, str, int, str]:
        number = int(re.sub(r"\D", "", kernel.architecture))
        return kernel.source, kernel.name, number, kernel.architecture

    return sorted(found, key=order)
