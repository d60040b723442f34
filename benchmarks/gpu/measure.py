"""Measure everything against its peers on this device: `python -m gpu.measure` in benchmarks/.

    python -m gpu.measure [--seconds 240] [--groups steps,elementwise] [--out FILE]
    python -m gpu.measure --device cpu --tiny     # tries the program out; its numbers mean nothing

Groups run in the order of the list below, each for its share of the time; what time is left goes to
the rows that found none. The file is written after every row. Rows of an earlier file of the same
sources, device and versions are kept where this run does not measure their group, so parts can be
run apart.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple

import torch

from fastgen.bench import peers
from fastgen.bench.ladder import ceilings

from . import convolutions, elementwise, steps, targets
from .environment import describe_machine
from .session import FORMAT, DeviceLost, Job, Session

ROOT = Path(__file__).resolve().parents[2]
DEFAULT = ROOT / "benchmarks" / "results" / "gpu.json"


class Group(NamedTuple):
    """Jobs, and the share of the whole time that they may take before others have had theirs."""

    jobs: Callable[[Session], list[Job]]
    share: float


GROUPS = {
    "elementwise": Group(elementwise.jobs, 0.15),
    "image edges": Group(convolutions.edge_jobs, 0.15),
    "steps": Group(steps.jobs, 0.35),
    "layers bfloat16": Group(lambda s: convolutions.layer_jobs(s, "bfloat16", "compile"), 0.25),
    "layers bfloat16 max-autotune": Group(
        lambda s: convolutions.layer_jobs(s, "bfloat16", "compile max-autotune"), 0.1
    ),
    "layers float32": Group(lambda s: convolutions.layer_jobs(s, "float32", "compile"), 0.1),
    "layers float32 max-autotune": Group(
        lambda s: convolutions.layer_jobs(s, "float32", "compile max-autotune"), 0.1
    ),
}


def run(session: Session, names: list[str]) -> None:
    """Measure the groups, twice around: first each for its share, then to the end of the time."""
    whole = session.left()
    waiting: dict[str, list[Job]] = {}
    for name in names:
        jobs = GROUPS[name].jobs(session)
        skipped = [job.name for job in jobs]
        session.results["groups"][name] = {"rows": [], "skipped": skipped, "seconds": 0}
        deadline = min(session.deadline, time.monotonic() + GROUPS[name].share * whole)
        waiting[name] = session.run(name, jobs, deadline)
    for name, jobs in waiting.items():
        if jobs:
            session.run(name, jobs, session.deadline)


SAME = ("device", "sources", "torch", "driver", "cuda", "cudnn", "jax")
"""What a file says once of all its rows."""


def kept(path: Path, machine: dict[str, Any], tiny: bool) -> dict[str, Any]:
    """The groups of an earlier run of the same sources and versions on the same kind of device."""
    try:
        earlier = json.loads(path.read_text())
        same = all(earlier["machine"].get(key) == machine.get(key) for key in SAME)
        if earlier["format"] == FORMAT and same and earlier["tiny"] == tiny:
            return dict(earlier["groups"])
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        pass
    return {}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="try the program out; measure nothing")
    parser.add_argument("--seconds", type=float, default=240.0)
    parser.add_argument("--groups", help=f"of {', '.join(GROUPS)}; separated by commas")
    parser.add_argument("--out", type=Path, help=f"default {DEFAULT.relative_to(ROOT)}")
    options = parser.parse_args()
    deadline = time.monotonic() + options.seconds
    names = [name.strip() for name in options.groups.split(",")] if options.groups else list(GROUPS)
    unknown = [name for name in names if name not in GROUPS]
    if unknown:
        parser.error(f"no group {unknown[0]!r}; there are {', '.join(GROUPS)}")
    if options.tiny and options.out is None:
        parser.error("--tiny measures nothing: give --out, a file that is not a result")
    if options.device.startswith("cuda") and not torch.cuda.is_available():
        sys.exit("measure: torch sees no CUDA device (is nvidia-smi there? CUDA_VISIBLE_DEVICES?)")

    device = torch.device(options.device)
    if device.type == "cuda":
        device = torch.device("cuda", device.index or 0)
        torch.cuda.set_device(device)
    session = Session(device, options.out or DEFAULT, deadline, tiny=options.tiny)
    machine = describe_machine(device)
    session.results = {
        "format": FORMAT,
        "tiny": options.tiny,
        "date": date.today().isoformat(),
        "machine": machine,
        "ceilings": {},
        "groups": kept(session.path, machine, options.tiny),
    }
    torch.manual_seed(0)
    lost = None
    with peers.settings():
        try:
            if not options.tiny:
                session.results["ceilings"] = ceilings(device)
            session.save()
            run(session, names)
        except DeviceLost as error:
            lost = f"the device was lost in {error}"
    session.results["lost"] = lost
    session.save()
    print(f"\n{targets.target_table(session.results)}\n")
    for line in targets.left_out(session.results):
        print(f"left out: {line}")
    print(f"written: {session.path}")
    if lost:
        sys.exit(f"measure: {lost}")


if __name__ == "__main__":
    main()
