"""Compile ahead, in parallel, what the measurements would compile one after the other.

    python -m gpu.warm [--jobs 8] [--seconds 120]

Each process runs its share of the layers and steps once: Triton and torch.compile then find their
machine code on disk. Nothing is measured for keeps: routes go to a folder that is thrown away, and
max-autotune, which chooses by measuring, is left to the quiet time.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch


def work(tiny: bool) -> list[Callable[[torch.device], object]]:
    """Everything worth compiling ahead, in the order in which it will be measured."""
    from fastgen.bench import peers
    from fastgen.bench.layers import EDGES, LAYERS, Layer
    from fastgen.bench.steps import STEPS, loop

    from . import steps
    from .session import DTYPES

    def layer_of(layer: Layer, dtype: torch.dtype, device: torch.device) -> None:
        layer = layer.scaled(batch=2, channels=8, size=8) if tiny else layer
        tensors = peers.layer_tensors(layer, dtype, device)
        eager = peers.eager_layer(layer)
        for function in (peers.fastgen_layer(layer), peers.compiled(eager)):
            peers.training_step(function)(*tensors)

    def step_of(kind: str, precision: str, device: torch.device) -> None:
        step = STEPS[kind]
        if tiny:
            step = step._replace(batch=4, size=16, width=8)
        steps.Fit(step, precision, device, "off").run(1)
        for mode in steps.MODES[kind]:
            torch.compiler.reset()
            loop(kind, step, precision, mode, device).run(2)

    jobs: list[Callable[[torch.device], object]] = []
    for precision in ("bfloat16", "float32"):
        for kind in STEPS:
            jobs.append(lambda device, kind=kind, p=precision: step_of(kind, p, device))
    for name in DTYPES:
        for layer in (*EDGES, *LAYERS):
            jobs.append(lambda device, layer=layer, d=DTYPES[name]: layer_of(layer, d, device))
    return jobs


def run_share(index: int, count: int, device: str, tiny: bool) -> None:
    """One process's share; a job that fails is left for the measurement to report."""
    from fastgen.bench import peers

    with peers.settings():
        for number, job in enumerate(work(tiny)[index::count]):
            torch.compiler.reset()  # see peers.compiled
            try:
                job(torch.device(device))
            except Exception as error:
                print(f"share {index}, job {number}: {error}", file=sys.stderr, flush=True)
                if "CUDA error" in str(error):
                    return


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--jobs", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--share", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.share is not None:
        run_share(options.share, options.jobs, options.device, options.tiny)
        return

    start = time.monotonic()
    path = os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    words = [sys.executable, "-m", "gpu.warm", "--jobs", str(options.jobs)]
    words += ["--device", options.device, *(["--tiny"] if options.tiny else [])]
    with tempfile.TemporaryDirectory() as scratch:
        shares = []
        for index in range(options.jobs):
            # A table of routes each: a choice made by another share would save its compilations.
            environment = {
                **os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1",
                "TORCHINDUCTOR_COMPILE_THREADS": "1", "FASTGEN_CACHE": f"{scratch}/{index}",
            }  # fmt: skip
            shares.append(subprocess.Popen([*words, f"--share={index}"], env=environment))
        done = 0
        for share in shares:
            try:
                share.wait(max(0.1, options.seconds - (time.monotonic() - start)))
                done += share.returncode == 0
            except subprocess.TimeoutExpired:
                share.kill()
                share.wait()
    spent = time.monotonic() - start
    print(f"compiled ahead: {done} of {options.jobs} shares complete in {spent:.0f} s")


if __name__ == "__main__":
    main()
