"""Print how much faster a gradient penalty runs than in PyTorch, at equal precision and layout.

    python benchmarks/penalty_ratio.py [--rounds 15] [--compile] [--json FILE]

Medians of process time over interleaved rounds, one thread. The baseline is eager PyTorch with
LeakyReLU in place; `--compile` adds PyTorch's private way to compile a whole penalty
(torch._dynamo.config.trace_autograd_ops).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from datetime import date
from pathlib import Path

import torch
from critics import (
    CRITICS,
    compiled_penalty_step,
    pair,
    penalty,
    penalty_step,
)

from fastgen.bench.machine import describe
from fastgen.bench.rungs import DTYPES, LAYOUTS
from fastgen.bench.timing import measure


def largest_difference(
    eager: torch.nn.Module, fused: torch.nn.Module, images: torch.Tensor
) -> float:
    """The largest relative difference between the two penalties' weight gradients."""
    differences = []
    gradients = []
    for critic in (eager, fused):
        weights = [p for p in critic.parameters() if p.dim() > 1]
        gradients.append(torch.autograd.grad(penalty(critic, images), weights))
    for ours, theirs in zip(*gradients, strict=True):
        differences.append(((ours - theirs).float().norm() / theirs.float().norm()).item())
    return max(differences)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--critic", choices=CRITICS, action="append")
    options = parser.parse_args()
    torch.set_num_threads(1)

    rows = []
    for name in options.critic or CRITICS:
        for dtype_name, dtype in DTYPES.items():
            for layout_name, layout in LAYOUTS.items():
                eager, fused, images = pair(name, dtype, layout)
                steps: dict[str, Callable[[], object]] = {
                    "eager": lambda eager=eager, images=images: penalty_step(eager, images),
                    "fastgen": lambda fused=fused, images=images: penalty_step(fused, images),
                }
                if options.compile:
                    steps["compiled"] = compiled_penalty_step(pair(name, dtype, layout)[0], images)
                times = measure(steps, device="cpu", rounds=options.rounds)
                medians = {step: 1e3 * found.median_s for step, found in times.items()}
                row = {
                    "critic": name,
                    "dtype": dtype_name,
                    "layout": layout_name,
                    **{f"{step}_ms": round(value, 2) for step, value in medians.items()},
                    "ratio": round(medians["eager"] / medians["fastgen"], 3),
                    "weight_gradient_difference": largest_difference(eager, fused, images),
                }
                rows.append(row)
                print(
                    "  ".join(
                        f"{key} {value:.3g}" if isinstance(value, float) else str(value)
                        for key, value in row.items()
                    ),
                    flush=True,
                )

    if options.json:
        results = {
            "machine": describe(threads=1),
            "date": date.today().isoformat(),
            "rounds": options.rounds,
            "rows": rows,
        }
        options.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
