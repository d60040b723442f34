"""One run of measurements: its jobs, its time, and the JSON that each finished row goes into.

The file is written after every row, so whatever stops the run leaves what was measured. Format 1:

    machine    device, driver, versions, commit, digest of the sources, settings
    ceilings   copy_bytes_per_second, fill_bytes_per_second; operations_per_second by dtype
    groups     name -> {"rows": [...], "skipped": [job, ...], "seconds": spent}
    row        name, dtype, what it is; seconds, spread and failed by candidate; bytes, operations;
               difference (ours from eager, relative); errors (of both from float64, where they
               differ much); sets (argument sets in rotation)
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch

from fastgen.bench import timing
from fastgen.bench.agreement import WRONG, difference, first_line
from fastgen.bench.passes import Pass
from fastgen.bench.rungs import LAYOUTS
from fastgen.files import replace_file

FORMAT = 1
Row = dict[str, Any]
DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}
ROUNDS, WARM_UP_S = 11, 0.05  # a hundred rows have to be measured in a few minutes
WRONG_IN_ANY_DTYPE = min(WRONG.values())


class Job(NamedTuple):
    """What gives one row: its name (which is listed if there is no time for it) and the work."""

    name: str
    work: Callable[[], Row]


class DeviceLost(RuntimeError):
    """The device answers nothing any more: an illegal access poisons the whole process."""


@dataclass
class Session:
    """The device, the deadline and the results of one run.

    Attributes:
        tiny: cut every shape down and take few rounds: to try the program out, not to measure.
    """

    device: torch.device
    path: Path
    deadline: float
    tiny: bool = False
    results: dict[str, Any] = field(default_factory=dict)

    def left(self) -> float:
        """Seconds until the deadline."""
        return self.deadline - time.monotonic()

    def say(self, line: str) -> None:
        print(line, flush=True)

    def save(self) -> None:
        """Write the JSON; the old file stays whole until the new one is complete."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(self.path, (json.dumps(self.results, indent=1) + "\n").encode())

    def run(self, group: str, jobs: Sequence[Job], deadline: float) -> list[Job]:
        """Run jobs until the deadline; the ones that found no time."""
        entry = self.results["groups"].setdefault(group, {"rows": [], "skipped": [], "seconds": 0})
        start = time.monotonic()
        left = list(jobs)
        try:
            while left and time.monotonic() < deadline:
                job = left.pop(0)
                row = self._row(job)
                entry["rows"].append(row)
                self.say(f"{group}: {describe(row)}")
                self._note(entry, start, left)
        finally:
            self._note(entry, start, left)
        return left

    def _note(self, entry: dict[str, Any], start: float, left: Sequence[Job]) -> None:
        entry["skipped"] = [job.name for job in left]
        entry["seconds"] = round(entry["seconds"] + time.monotonic() - start, 1)
        self.save()

    def _row(self, job: Job) -> Row:
        torch.compiler.reset()  # see peers.compiled
        try:
            return job.work()
        except (RuntimeError, ValueError, TypeError, AttributeError, ImportError) as error:
            row = {"name": job.name, "failed": {"job": first_line(error)}}
            if "CUDA error" in str(error):
                raise DeviceLost(f"{job.name}: {first_line(error)}") from error
            return row

    def measured(
        self,
        candidates: Mapping[str, Callable[..., Any]],
        make: Callable[[], tuple[Any, ...]],
        *,
        compare: tuple[str, str] | None = ("fastgen", "eager"),
    ) -> Row:
        """Times of candidates that compute the same, over argument sets larger than the L2 cache.

        A candidate that fails is left out, with its reason. `compare` names two whose results are
        compared on the first set.
        """
        sets = [make()] if self.tiny else timing.rotating(make, self.device)
        working, failed, results = {}, {}, {}
        for name, candidate in candidates.items():
            try:
                results[name] = candidate(*sets[0])
                working[name] = candidate
            except Exception as error:
                if "CUDA error" in str(error):
                    raise
                failed[name] = first_line(error)
        row: Row = {"failed": failed, "sets": len(sets)}
        if compare is not None and set(compare) <= results.keys():
            ours, theirs = (results[name] for name in compare)
            row["difference"] = difference(ours, theirs)
            if row["difference"] > WRONG_IN_ANY_DTYPE:
                # Which of the two is off? An activation's sign near 0 is anybody's guess.
                truth = working[compare[1]](*map(_exact, sets[0]))
                row["errors"] = {name: difference(results[name], truth) for name in compare}
            del ours, theirs
        del results
        times = timing.measure(
            working, sets, device=self.device, rounds=3 if self.tiny else ROUNDS, warmup_s=WARM_UP_S
        )
        row["seconds"] = {name: found.median_s for name, found in times.items()}
        row["spread"] = {name: round(found.spread, 4) for name, found in times.items()}
        row["method"] = next((found.method for found in times.values()), None)
        return row


def _exact(argument: Any) -> Any:
    """A tensor of numbers in float64."""
    if not isinstance(argument, torch.Tensor) or not argument.is_floating_point():
        return argument
    return argument.detach().double().requires_grad_(argument.requires_grad)


def pass_row(
    session: Session,
    measured: Pass,
    dtype: str,
    candidates: Mapping[str, Callable[..., Any]],
    layout: str = "channels_last",
) -> Row:
    """Times of a pass, and what it must move and compute."""
    row = session.measured(
        candidates,
        lambda: measured.make(DTYPES[dtype], session.device, LAYOUTS[layout]),
        compare=("fastgen", "eager") if measured.compares else None,
    )
    work = measured.work
    moved = work.bytes(DTYPES[dtype])
    return {"pass": measured.name, "bytes": moved, "operations": work.operations, **row}


def describe(row: Row) -> str:
    """A row as a line for the log."""
    words = [row["name"], row.get("dtype", "")]
    words += [f"{name} {1e6 * value:.1f} us" for name, value in row.get("seconds", {}).items()]
    words += [f"{name} failed ({reason})" for name, reason in row.get("failed", {}).items()]
    return "  ".join(filter(None, words))
