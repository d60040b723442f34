"""The speed ladder of a machine: measure every subject on every rung, and keep what was measured.

What is fair here: candidates of a subject take turns in every round and medians are compared; a
ratio stands only between two rungs of one precision and one layout; inputs are random; on a CPU the
clock is process time with a fixed number of threads, on a GPU CUDA events or graph replays.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

import torch

from fastgen.files import replace_file

from . import peers, timing
from .agreement import WRONG, difference, first_line
from .rungs import DTYPES, RUNGS, WAYS, Rung, baseline
from .subjects import Candidate, Outside, Subject, subjects

FORMAT = 1
Results = dict[str, Any]
"""The JSON of a ladder.

    format, date, quick, complete
    machine     processor, threads, versions, commit; on a GPU its name, driver and clocks
    ceilings    copy_bytes_per_second, fill_bytes_per_second; operations_per_second by dtype
    rows        one for each subject: name, kind, batch, operations, numbers,
                rungs: [{name, way, dtype, layout, seconds, spread, method, wall_seconds,
                         over_eager (at equal precision and layout), difference (from it)}],
                left_out: rung -> reason
    skipped     names of subjects for which --quick had no time
"""

QUICK_SECONDS = 100.0
RESERVE = {"layer": 2.0, "sampling": 2.0, "step": 8.0}
"""Seconds that measuring a subject takes without compilation, for the budget of --quick."""


@dataclass
class Ladder:
    """One climb: the device, how long it may take, and what it found.

    Attributes:
        seconds: no subject is begun and nothing compiled that would not be done by then; None:
            however long it takes.
        say: takes a line about how far it is.
        save: takes the results after every subject.
    """

    device: torch.device
    quick: bool = False
    tiny: bool = False
    seconds: float | None = None
    say: Callable[[str], None] = print
    save: Callable[[Results], None] = lambda results: None

    def climb(self, chosen: list[Subject] | None = None) -> Results:
        """Measure the subjects, in order.

        A KeyboardInterrupt ends it early: what was measured is kept, and `complete` is false.
        """
        waiting = subjects(self.device, tiny=self.tiny) if chosen is None else list(chosen)
        end = None if self.seconds is None else time.monotonic() + self.seconds
        results: Results = {
            "format": FORMAT,
            "date": date.today().isoformat(),
            "quick": self.quick,
            "complete": False,
            "machine": timing.machine(self.device),
            "ceilings": {},
            "rows": [],
            "skipped": [],
        }
        with contextlib.suppress(KeyboardInterrupt), peers.settings():
            self.say("ceilings: a copy and matrix products")
            results["ceilings"] = ceilings(self.device, tiny=self.tiny)
            while waiting:
                if end is not None and time.monotonic() + RESERVE[waiting[0].kind] > end:
                    results["skipped"] = [subject.name for subject in waiting]
                    break
                subject = waiting.pop(0)
                self.say(f"{subject.name} ({len(waiting)} to go)")
                after = sum(RESERVE[later.kind] for later in [subject, *waiting])
                left = None if end is None else end - time.monotonic() - after
                results["rows"].append(self._measure(subject, left))
                self.save(results)
            results["ceilings"] = higher(results["ceilings"], ceilings(self.device, tiny=self.tiny))
            results["complete"] = True
        self.save(results)
        return results

    def _measure(self, subject: Subject, left: float | None) -> Results:
        return measured(
            subject, RUNGS, self.device,
            rounds=1 if self.tiny else 3 if self.quick else 7,
            warmup_s=0.0 if self.tiny else 0.1,
            obstacle=partial(self._obstacle, subject, time.monotonic(), left),
        )  # fmt: skip

    def _obstacle(
        self, subject: Subject, start: float, left: float | None, rung: Rung
    ) -> str | None:
        """Why a rung is not measured, in a line; `left` seconds were there at the start."""
        if self.quick and not rung.quick:
            return "left out by --quick"
        if rung.way.startswith("compile"):
            if self.quick and not subject.quick_compile:
                return "left out by --quick"
            if left is not None and left - (time.monotonic() - start) < subject.compile_seconds:
                return "no time left to compile it"
        return WAYS[rung.way](self.device)


def measured(
    subject: Subject,
    rungs: Sequence[Rung],
    device: torch.device,
    *,
    rounds: int,
    warmup_s: float = 0.1,
    obstacle: Callable[[Rung], str | None],
) -> Results:
    """One row: a subject on those of the rungs that apply to it.

    Args:
        obstacle: why a rung is left out, or None. One that fails is left out with its reason.
    """
    torch.compiler.reset()  # see peers.compiled
    rungs = [rung for rung in rungs if rung.way in subject.ways]
    candidates: dict[str, Candidate] = {}
    outside: dict[str, Outside] = {}
    answers: dict[str, Any] = {}
    left_out: dict[str, str] = {}
    for rung in rungs:
        if (reason := obstacle(rung)) is not None:
            left_out[rung.name] = reason
            continue
        try:
            torch.manual_seed(0)
            made = subject.ways[rung.way](rung, device)
            if isinstance(made, Outside):
                outside[rung.name] = made
                continue
            answer = made()
        except Exception as error:
            left_out[rung.name] = first_line(error)
            continue
        candidates[rung.name] = made
        if subject.compares:
            answers[rung.name] = answer
    times = timing.measure(
        candidates, device=device, rounds=rounds, warmup_s=warmup_s,
        method="auto" if subject.kind == "layer" else "events",
    )  # fmt: skip
    for name, seconds in outside.items():
        times[name] = timing.Timing(seconds[0], 0.0, 1, "a process of its own", seconds[1])
    work = subject.work()
    return {
        "name": subject.name, "kind": subject.kind, "batch": subject.batch,
        "operations": work.operations, "numbers": work.numbers,
        "least_operations": work.least_operations,
        "rungs": [_rung(rung, rungs, times, answers) for rung in rungs if rung.name in times],
        "left_out": left_out,
    }  # fmt: skip


def _rung(
    rung: Rung,
    rungs: Sequence[Rung],
    times: dict[str, timing.Timing],
    answers: dict[str, Any],
) -> Results:
    timed, base = times[rung.name], baseline(rung, rungs)
    found: dict[str, Any] = {
        **{key: getattr(rung, key) for key in ("name", "way", "dtype", "layout")},
        "seconds": timed.median_s, "spread": round(timed.spread, 4),
        "method": timed.method, "wall_seconds": timed.wall_s, "over_eager": None,
    }  # fmt: skip
    if base is not None and base.name in times:
        found["over_eager"] = times[base.name].median_s / timed.median_s
        if rung.name in answers and base.name in answers:
            found["difference"] = difference(
                _tensors(answers[rung.name]), _tensors(answers[base.name])
            )
    return found


def _tensors(answer: Any) -> Any:
    return answer if isinstance(answer, torch.Tensor | tuple | list) else torch.as_tensor(answer)


def differs(rung: dict[str, Any]) -> bool:
    """Whether a rung computed something else than eager PyTorch."""
    return bool(rung.get("difference", 0.0) > WRONG[rung["dtype"]])


def ceilings(device: torch.device, *, tiny: bool = False) -> Results:
    """Bandwidths of a copy and of filling, and rates of operations, of this very run, float32 in
    TF32 on a GPU.

    On a CPU the clock divides process time by the threads, so these are rates of all of them; and
    the rate is the better of a matrix product's and a convolution's, two libraries.
    """
    copied, rows = (1 << 16, 64) if tiny else (None, None)

    def best(dtype: torch.dtype) -> float:
        rates = [timing.matrix_rate(device, dtype, tf32=dtype == torch.float32, size=rows)]
        if device.type == "cpu":
            rates.append(timing.convolution_rate(device, dtype, channels=8 if tiny else 128))
        return max(rates)

    return {
        "copy_bytes_per_second": timing.copy_bandwidth(device, size=copied),
        "fill_bytes_per_second": timing.fill_bandwidth(device, size=copied),
        "operations_per_second": {name: best(dtype) for name, dtype in DTYPES.items()},
    }


def higher(one: Results, other: Results) -> Results:
    """The higher of two measurements of every ceiling: what disturbs one only makes it lower."""
    rates, others = one["operations_per_second"], other["operations_per_second"]
    bandwidths = [name for name in one if name.endswith("_bytes_per_second")]
    return {
        **{name: max(one[name], other[name]) for name in bandwidths},
        "operations_per_second": {name: max(rates[name], others[name]) for name in rates},
    }


def write(path: Path, results: Results) -> None:
    """Write the JSON; the old file stays whole until the new one is complete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, (json.dumps(results, indent=1) + "\n").encode())
