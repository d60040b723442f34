"""Count what the hot kernels do, free of noise, and compare with benchmarks/instructions.json.

    python benchmarks/instructions.py            # compare; exit status 1 where something grew
    python benchmarks/instructions.py --calls    # operator calls and saved bytes only: seconds
    python benchmarks/instructions.py --renew    # write the file anew

* Operator calls and bytes saved for the backward, of whole steps and of each operation. They must
  not change at all; one convolution more in a penalty is found here.
* Machine instructions of each kernel, by valgrind's callgrind (some minutes, most of them loading
  torch) or, where that is missing, `perf stat`. They may grow by 2 %: allocators and hashing move a
  little. Valgrind knows no AVX-512, so kernels run as on a CPU that has AVX2.

Renew the file with the change that explains it, and say in the commit why a count grew. Counts
belong to versions of torch and compiler, so another torch is compared with nothing; it is said so.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from fastgen.bench.layers import Layer
from fastgen.bench.passes import (
    BOTH,
    Pass,
    bias_leaky_relu_pass,
    layer_pass,
    reparameterize_pass,
)
from fastgen.bench.steps import CPU_STEPS, Loop, fastgen_losses
from fastgen.ops.backend import BACKENDS, BackendUnavailable, backend

COMMITTED = Path(__file__).with_suffix(".json")
CPU = torch.device("cpu")
COUNTED_BACKENDS = ("torch", "cpp")
TOLERANCE = 0.02
CALLS = 3  # counted together, after as many that are not
Counts = dict[str, Any]

EDGE = Layer("edge", 2, 3, 16, 16, kernel=4, stride=2, padding=1)
WIDE = Layer("wide", 2, 64, 64, 8, kernel=4, stride=2, padding=1)
UP = Layer("up", 2, 16, 3, 8, kernel=4, stride=2, padding=1, transposed=True, tanh=True)


def passes() -> dict[str, Pass]:
    """What is counted: every pass of every operation, on small odd-sized or typical tensors."""
    found = {}
    for name in ("forward", "backward", BOTH):
        found[f"bias_leaky_relu {name}"] = bias_leaky_relu_pass((3, 32, 17, 17), name)
        found[f"reparameterize_kl {name}"] = reparameterize_pass((33, 64), name)
    for layer in (EDGE, WIDE, UP):
        kind = "conv_transpose2d" if layer.transposed else "conv2d"
        for name in ("forward", "input gradient", "weight gradient", BOTH):
            found[f"{kind}_bias_leaky_relu {layer.name} {name}"] = layer_pass(layer, name)
    return found


def kernels() -> Iterator[tuple[str, Callable[[], object]]]:
    """(name, call) of each pass on each backend that is here and computes it."""
    for name, measured in passes().items():
        for backend_name in COUNTED_BACKENDS:
            if BACKENDS[backend_name].missing() is not None:
                continue
            torch.manual_seed(0)
            arguments = measured.make(torch.float32, CPU, torch.channels_last)
            try:
                call = partial(measured.fastgen(backend_name, CPU), *arguments)
                call()
            except BackendUnavailable:
                continue
            yield f"{name}, {backend_name}", call


# --- operator calls and saved bytes ---


class Calls(TorchDispatchMode):
    """Counts calls of operators while it is on, but for those that only view."""

    PASSED_OVER = re.compile(
        "^profiler|view|reshape|expand|permute|transpose|detach|alias|slice|select|split|squeeze|::t$"
    )

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = func.name().split(".")[0]
        if not self.PASSED_OVER.search(name):
            self.calls[name] += 1
        return func(*args, **(kwargs or {}))


def counted(call: Callable[[], object]) -> Counts:
    """Operator calls of a call, and the bytes that it saves for a backward, each memory once."""
    # They are held, so that no memory is given out twice and counted once.
    saved: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        saved[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), Calls() as mode:
        call()
    total = sum(storage.nbytes() for storage in saved.values())
    return {"calls": dict(sorted(mode.calls.items())), "saved_bytes": total}


def steps() -> Iterator[tuple[str, Callable[[], object]]]:
    """Losses and gradients of small whole steps, as fastgen's models compute them."""
    for kind, step in CPU_STEPS.items():
        small = step._replace(batch=4, size=32, width=8)
        model = small.build().to(memory_format=torch.channels_last)
        losses = fastgen_losses(model)
        loop = Loop(losses, small.images(CPU, torch.channels_last), "float32")
        yield f"{kind} step", partial(loop.step, loop.images)


def count_calls() -> dict[str, Counts]:
    """All steps and kernels; steps on plain PyTorch, so that counts are those of the design."""
    found = {}
    for name, call in steps():
        torch.manual_seed(0)
        with backend("torch"):
            call()
            found[name] = counted(call)
    for name, call in kernels():
        if BOTH in name:
            found[name] = counted(call)
    return found


# --- machine instructions ---


def under_valgrind() -> None:
    """The counted process: between two marks nothing runs but one kernel."""
    torch.set_num_threads(1)
    names = []
    for name, call in kernels():
        for _ in range(CALLS):
            call()
        torch._C._valgrind_toggle()
        for _ in range(CALLS):
            call()
        torch._C._valgrind_toggle_and_dump_stats()
        names.append(name)
    print(json.dumps(names))


def by_callgrind() -> dict[str, int]:
    """Instructions of one call of each kernel, by callgrind."""
    with tempfile.TemporaryDirectory() as folder:
        words = [
            "valgrind", "--tool=callgrind", f"--callgrind-out-file={folder}/out",
            "--instr-atstart=yes", "--collect-atstart=no", sys.executable, __file__, "--counted",
        ]  # fmt: skip
        done = subprocess.run(words, env=_quiet(), capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"valgrind failed: {done.stderr.strip().splitlines()[-1:]}")
        names = json.loads(done.stdout.strip().splitlines()[-1])
        totals = [_total(Path(folder) / f"out.{place}") for place in range(1, len(names) + 1)]
    return {name: total // CALLS for name, total in zip(names, totals, strict=True)}


def _total(path: Path) -> int:
    found = re.search(r"^(?:summary|totals): (\d+)", path.read_text(), re.MULTILINE)
    if found is None:
        raise RuntimeError(f"{path.name} of callgrind holds no summary")
    return int(found.group(1))


def by_perf() -> dict[str, int]:
    """Instructions of one call of each kernel, by hardware counters: many calls less few."""
    found = {}
    for name, _ in kernels():
        few, many = (_perf(name, calls) for calls in (10, 60))
        found[name] = (many - few) // 50
    return found


def _perf(name: str, calls: int) -> int:
    words = ["perf", "stat", "-x,", "-e", "instructions:u", sys.executable, __file__]
    words += ["--run", name, str(calls)]
    done = subprocess.run(words, env=_quiet(), capture_output=True, text=True, check=True)
    (line,) = [line for line in done.stderr.splitlines() if "instructions" in line]
    return int(line.split(",")[0])


def _quiet() -> dict[str, str]:
    root = str(Path(__file__).resolve().parent.parent)
    path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    return {**os.environ, "PYTHONHASHSEED": "0", "OMP_NUM_THREADS": "1", "PYTHONPATH": path}


def _perf_counts() -> bool:
    words = ["perf", "stat", "-x,", "-e", "instructions:u", "true"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    return done.returncode == 0 and done.stderr.split(",")[0].isdigit()


def counter() -> tuple[str, Callable[[], dict[str, int]]] | None:
    """How instructions can be counted here: name and function; None when they cannot."""
    if shutil.which("valgrind") and torch._C._valgrind_supported_platform():
        return "callgrind", by_callgrind
    if shutil.which("perf") and _perf_counts():
        return "perf", by_perf
    return None


# --- comparing ---


def versions() -> dict[str, str]:
    """What counts belong to."""
    return {"torch": torch.__version__, "python": f"{sys.version_info[0]}.{sys.version_info[1]}"}


def differences(now: Counts, before: Counts) -> list[str]:
    """What grew or changed, a line each; what is new or gone is named too."""
    if now["versions"] != before["versions"]:
        return []
    lines = []
    for name in sorted(now["calls"].keys() | before["calls"].keys()):
        lines += _call_lines(name, now["calls"].get(name), before["calls"].get(name))
    if now.get("counter") == before.get("counter") and now.get("counter"):
        for name, count in now["instructions"].items():
            known = before["instructions"].get(name)
            if known is None:
                lines.append(f"{name}: {count} instructions, not counted before")
            elif count > known * (1 + TOLERANCE):
                share = 100 * (count / known - 1)
                lines.append(f"{name}: {known} instructions became {count} (+{share:.1f} %)")
    return lines


def _call_lines(name: str, now: Counts | None, before: Counts | None) -> list[str]:
    if now is None or before is None:
        # A backend that is not built here is no change of the code.
        absent = now is None and any(
            name.endswith(f", {b}") and BACKENDS[b].missing() for b in COUNTED_BACKENDS
        )
        word = "is not counted any more" if now is None else "was not counted before"
        return [] if absent else [f"{name} {word}"]
    lines = []
    for operator in sorted(now["calls"].keys() | before["calls"].keys()):
        old, new = before["calls"].get(operator, 0), now["calls"].get(operator, 0)
        if old != new:
            lines.append(f"{name}: {operator} called {new} times, {old} before")
    if now["saved_bytes"] != before["saved_bytes"]:
        old, new = before["saved_bytes"], now["saved_bytes"]
        lines.append(f"{name}: {new} bytes saved for the backward, {old} before")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--renew", action="store_true")
    parser.add_argument("--calls", action="store_true", help="no instructions")
    parser.add_argument("--counted", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--run", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.counted:
        under_valgrind()
        return
    torch.set_num_threads(1)
    if options.run:
        call = dict(kernels())[options.run[0]]
        for _ in range(int(options.run[1])):
            call()
        return

    now: Counts = {"versions": versions(), "calls": count_calls()}
    before = json.loads(COMMITTED.read_text()) if COMMITTED.is_file() else None
    how = None if options.calls else counter()
    if how is not None:
        print(f"counting instructions by {how[0]}: some minutes", flush=True)
        now |= {"counter": how[0], "instructions": how[1]()}
        for name, count in now["instructions"].items():
            print(f"{count:12,d}  {name}")
    elif not options.calls:
        print("neither valgrind nor perf's counters are here: operator calls only")

    if options.renew:
        if "instructions" not in now and before and before["versions"] == now["versions"]:
            now |= {key: before[key] for key in ("counter", "instructions") if key in before}
        COMMITTED.write_text(json.dumps(now, indent=1) + "\n")
        print(f"written: {COMMITTED.name}")
        return
    if before is None or before["versions"] != now["versions"]:
        print(f"{COMMITTED.name} has no counts for {now['versions']}: nothing to compare with")
        return
    lines = differences(now, before)
    print("\n".join(lines) if lines else f"nothing grew: {len(now['calls'])} counts of calls agree")
    sys.exit(bool(lines))


if __name__ == "__main__":
    main()
