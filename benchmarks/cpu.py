"""Measure fastgen on this CPU against its targets, and write benchmarks/results/cpu.json.

    python benchmarks/cpu.py [--rows edge,bias] [--threads 1,2] [--rounds 9] [--json FILE]

Every row stands alone: one that fails is noted and the next begins, and the file is written after
each. Rows of an earlier file are kept where this run does not measure them, if they are from the
same commit. Candidates of a row take turns; times are process time divided by the threads, and the
wall clock stands beside it.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

# Threads that spin while they wait would count as computing.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
from results import CPU, opened, save

from fastgen.bench import peers
from fastgen.bench.agreement import first_line
from fastgen.bench.ladder import ceilings, measured
from fastgen.bench.layers import Layer
from fastgen.bench.passes import BOTH, bias_leaky_relu_pass, reparameterize_pass
from fastgen.bench.rungs import DTYPES, WAYS, Rung
from fastgen.bench.steps import CPU_STEPS
from fastgen.bench.subjects import (
    Subject,
    layer_subject,
    pass_subject,
    sampling_subject,
    shape_of,
    step_subject,
)

ROOT = Path(__file__).resolve().parent.parent
DEVICE = torch.device("cpu")

EAGER_NCHW = Rung("eager float32 contiguous", "eager", layout="contiguous")
EAGER = Rung("eager float32 channels_last", "eager")
EAGER_BF16 = Rung("eager bfloat16 channels_last", "eager", "bfloat16")
OURS_NCHW = Rung("fastgen float32 contiguous", "fastgen", layout="contiguous")
OURS = Rung("fastgen float32 channels_last", "fastgen")
OURS_BF16 = Rung("fastgen bfloat16 channels_last", "fastgen", "bfloat16")
COMPILED = Rung("torch.compile float32 channels_last", "compile")
COMPILED_BF16 = Rung("torch.compile bfloat16 channels_last", "compile", "bfloat16")
ONNX = Rung("ONNX Runtime float32", "onnxruntime", layout="contiguous")
COPY = "copy bandwidth"


class Demand(NamedTuple):
    """fastgen's rung must be `target` times as fast as another; with COPY: reach that share."""

    ours: Rung
    over: Rung | str
    target: float


class Row(NamedTuple):
    """What is measured, and what is demanded of it."""

    subject: Callable[[], Subject]
    demands: tuple[Demand, ...]


def _edge(pass_: str, layer: Layer) -> Row:
    name = f"image edge {pass_}, {shape_of(layer)}, batch {layer.batch}"
    demands = Demand(OURS_NCHW, EAGER_NCHW, 3.0), Demand(OURS, EAGER, 2.0)
    return Row(lambda: layer_subject(name, layer, pass_), demands)


def _latents(*shape: int) -> Row:
    name = f"reparameterize_kl forward + backward, {shape}"
    subject = pass_subject(name, shape[0], reparameterize_pass(shape, BOTH))
    return Row(lambda: subject, (Demand(OURS_NCHW, EAGER_NCHW, 4.0),))


def _activation(ours: Rung, eager: Rung) -> Row:
    shape = (32, 64, 64, 64)
    name = f"bias_leaky_relu forward + backward, {shape}, {ours.layout}"
    subject = pass_subject(name, shape[0], bias_leaky_relu_pass(shape, BOTH))
    return Row(lambda: subject, (Demand(ours, eager, 1.8), Demand(ours, COPY, 0.7)))


FOUR = Layer("critic's first layer", 32, 3, 32, 64, kernel=4, stride=2, padding=1)
THREE = Layer("first layer, 3x3", 32, 3, 64, 64, kernel=3, padding=1)

ROWS = {
    "edge k4 forward": _edge("forward", FOUR),
    "edge k4 input gradient": _edge("input gradient", FOUR),
    "edge k3 forward": _edge("forward", THREE),
    "edge k3 input gradient": _edge("input gradient", THREE),
    "bias contiguous": _activation(OURS_NCHW, EAGER_NCHW),
    "bias channels_last": _activation(OURS, EAGER),
    "reparameterize rows": _latents(4096, 512),
    "reparameterize maps": _latents(16, 4, 64, 64),
    "dcgan": Row(
        lambda: step_subject("dcgan-64", CPU_STEPS["dcgan-64"]),
        (
            Demand(OURS, EAGER, 1.4), Demand(OURS_BF16, EAGER_BF16, 1.4),
            Demand(OURS_BF16, EAGER_NCHW, 3.0),
            Demand(OURS, COMPILED, 1.4), Demand(OURS_BF16, COMPILED_BF16, 1.4),
            Demand(OURS_NCHW, EAGER_NCHW, 1.3),
        ),
    ),
    "critic": Row(
        lambda: step_subject("critic", CPU_STEPS["critic"]),
        (
            Demand(OURS, EAGER, 2.0), Demand(OURS_BF16, EAGER_BF16, 2.0),
            Demand(OURS_BF16, EAGER_NCHW, 4.0), Demand(OURS_NCHW, EAGER_NCHW, 1.3),
        ),
    ),
    "sampling": Row(sampling_subject, (Demand(OURS, ONNX, 1.5), Demand(OURS_BF16, ONNX, 2.5))),
}  # fmt: skip
IMPORT = "import"
IMPORT_TARGET_S = 0.2


def measure_row(key: str, threads: int, limits: dict[str, Any], rounds: int) -> dict[str, Any]:
    """Times of a row's candidates, and what they say about its demands."""
    row = ROWS[key]
    rungs = list(dict.fromkeys(r for d in row.demands for r in d[:2] if isinstance(r, Rung)))
    with peers.settings():
        found = measured(
            row.subject(), rungs, DEVICE, rounds=rounds, obstacle=lambda r: WAYS[r.way](DEVICE)
        )
    rows = {rung["name"]: rung for rung in found["rungs"]}
    demands = [_judged(demand, rows, found, limits) for demand in row.demands]
    return {
        "row": key, "threads": threads, "name": found["name"], "batch": found["batch"],
        "seconds": {name: rung["seconds"] for name, rung in rows.items()},
        "wall_seconds": {name: rung["wall_seconds"] for name, rung in rows.items()},
        "spread": {name: rung["spread"] for name, rung in rows.items()},
        "left_out": found["left_out"], "demands": demands,
    }  # fmt: skip


def _judged(
    demand: Demand, rows: dict[str, Any], work: dict[str, Any], limits: dict[str, Any]
) -> dict[str, Any]:
    """What was reached, and what would be if fastgen's convolutions and products, by Winograd's
    method where there is a kernel for it, ran at the peak that was measured and everything else
    took no time.
    """
    ours = rows.get(demand.ours.name)
    other = demand.over if isinstance(demand.over, str) else demand.over.name
    judged = {"ours": demand.ours.name, "over": other, "target": demand.target, "reached": None}
    if ours is None:
        return judged
    if other == COPY:
        moved = work["numbers"] * DTYPES[demand.ours.dtype].itemsize
        return {**judged, "reached": moved / ours["seconds"] / limits["copy_bytes_per_second"]}
    if other in rows:
        judged["reached"] = rows[other]["seconds"] / ours["seconds"]
        judged["by_wall_clock"] = rows[other]["wall_seconds"] / ours["wall_seconds"]
        if work["operations"]:
            least = work["least_operations"] or work["operations"]
            seconds = least / limits["operations_per_second"][demand.ours.dtype]
            judged["at_peak"] = rows[other]["seconds"] / seconds
    return judged


def measure_import(rounds: int) -> dict[str, Any]:
    """How many seconds `import fastgen` adds to `import torch`, each in a fresh interpreter."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    seconds = {}
    for what in ("fastgen", "fastgen.nn", "fastgen.models"):
        script = (
            "import torch, time; start = time.process_time(); "
            f"import {what}; print(time.process_time() - start)"
        )
        samples = [
            float(
                subprocess.run(
                    [sys.executable, "-c", script], env=environment, capture_output=True,
                    text=True, check=True,
                ).stdout
            )
            for _ in range(rounds)
        ]  # fmt: skip
        seconds[f"import {what}"] = statistics.median(samples)
    demands = [
        {"ours": name, "over": "seconds", "target": IMPORT_TARGET_S, "reached": value}
        for name, value in seconds.items()
    ]
    return {
        "row": IMPORT, "threads": 1, "name": "import, beyond import torch", "batch": 0,
        "seconds": seconds, "wall_seconds": {}, "spread": {}, "left_out": {}, "demands": demands,
    }  # fmt: skip


def describe(row: dict[str, Any]) -> str:
    """A row as a line for the log."""
    if "failed" in row:
        return f"failed: {row['failed']}"
    times = [f"{name} {1e3 * value:.3g} ms" for name, value in row["seconds"].items()]
    reached = [
        f"{demand['reached']:.2f} of {demand['target']:g}"
        for demand in row["demands"]
        if demand["reached"] is not None
    ]
    return "; ".join([*times, *reached, *(f"{k}: {v}" for k, v in row["left_out"].items())])


def _place(row: dict[str, Any]) -> tuple[int, int]:
    return row["threads"], [*ROWS, IMPORT].index(row["row"])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", default="", help=f"beginnings of {', '.join([*ROWS, IMPORT])}")
    parser.add_argument("--threads", default="1,2", help="separated by commas")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--json", type=Path, default=CPU)
    options = parser.parse_args()
    beginnings = tuple(filter(None, map(str.strip, options.rows.split(","))))
    keys = [key for key in [*ROWS, IMPORT] if not beginnings or key.startswith(beginnings)]
    if not keys:
        parser.error(f"no row begins with {options.rows!r}")

    results = opened(options.json)
    start = time.monotonic()
    for threads in map(int, options.threads.split(",")):
        torch.set_num_threads(threads)
        limits = ceilings(DEVICE)
        results["ceilings"][str(threads)] = limits
        for key in keys:
            if key == IMPORT and threads != 1:
                continue
            try:
                row = (
                    measure_import(min(options.rounds, 5))
                    if key == IMPORT
                    else measure_row(key, threads, limits, options.rounds)
                )
            except Exception as error:
                row = {"row": key, "threads": threads, "failed": first_line(error)}
            others = [r for r in results["rows"] if (r["row"], r["threads"]) != (key, threads)]
            results["rows"] = sorted([*others, row], key=_place)
            save(options.json, results)
            spent = time.monotonic() - start
            print(f"{spent:4.0f} s  {key}, {threads} threads: {describe(row)}", flush=True)


if __name__ == "__main__":
    main()
