"""The targets, and what a run of measurements says about each; tables in Markdown."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from results import table, verdict

from fastgen.bench.agreement import WRONG

Results = dict[str, Any]
Row = dict[str, Any]


class Check(NamedTuple):
    """One demand of a target: a number that should be reached, and what was reached."""

    demand: str
    wanted: float
    measured: float | None
    rows: int
    worst: str = ""

    @property
    def met(self) -> bool | None:
        return None if self.measured is None else self.measured >= self.wanted

    @property
    def verdict(self) -> str:
        return verdict(self.measured, self.wanted)


def rows_of(results: Results, *groups: str) -> list[Row]:
    """The rows with times of these groups."""
    found = []
    for group in groups:
        entry = results.get("groups", {}).get(group, {})
        found += [row for row in entry.get("rows", []) if row.get("seconds", {}).get("fastgen")]
    return found


def fraction(row: Row, results: Results) -> float | None:
    """How much of the measured copy bandwidth fastgen's pass reaches."""
    copy = results.get("ceilings", {}).get("copy_bytes_per_second")
    return row["bytes"] / row["seconds"]["fastgen"] / copy if copy and row.get("bytes") else None


def speedup(row: Row, *peers: str) -> float | None:
    """The time of the best of these peers over fastgen's."""
    times = [row["seconds"][peer] for peer in peers if peer in row["seconds"]]
    return min(times) / row["seconds"]["fastgen"] if times else None


def bound(row: Row, results: Results) -> tuple[str, float] | None:
    """Which ceiling bounds a row, and the least seconds that it allows."""
    ceilings = results.get("ceilings", {})
    copy = ceilings.get("copy_bytes_per_second")
    rate = ceilings.get("operations_per_second", {}).get(row.get("dtype"))
    floors = {}
    if copy and row.get("bytes"):
        floors["bytes"] = row["bytes"] / copy
    if rate and row.get("operations"):
        floors["operations"] = row["operations"] / rate
    if not floors:
        return None
    name = max(floors, key=floors.__getitem__)
    return name, floors[name]


def is_wrong(row: Row) -> bool:
    """Whether fastgen's result is not eager PyTorch's: far from it, and from float64 twice as far.

    Where a sum lies near 0 the two may round it to either side, and its slope is another one.
    """
    if row.get("difference", 0.0) <= WRONG.get(row.get("dtype", ""), math.inf):
        return False
    errors = row.get("errors", {})
    return not errors or errors["fastgen"] > 2 * errors["eager"]


# --- the targets of the GPU path ---


def _least(
    demand: str, wanted: float, rows: Sequence[Row], value: Callable[[Row], float | None]
) -> Check:
    values = [(found, row) for row in rows if (found := value(row)) is not None]
    if not values:
        return Check(demand, wanted, None, 0)
    worst, row = min(values, key=lambda pair: pair[0])
    return Check(demand, wanted, worst, len(values), f"{row['name']} {row.get('dtype', '')}")


def _layer_speedups(results: Results) -> list[tuple[float, Row]]:
    """Each layer's speed-up over the best peer that it met, in whichever group that was."""
    best: dict[tuple[str, str], tuple[float, Row]] = {}
    for row in rows_of(results, *LAYER_GROUPS):
        found = speedup(row, "eager", "compile", "compile max-autotune")
        key = row["name"], row["dtype"]
        if found is not None and found < best.get(key, (math.inf,))[0]:
            best[key] = found, row
    return list(best.values())


LAYER_GROUPS = (
    "layers bfloat16",
    "layers float32",
    "layers bfloat16 max-autotune",
    "layers float32 max-autotune",
)


def _layers(results: Results) -> list[Check]:
    found = _layer_speedups(results)
    checks = []
    for dtype in ("bfloat16", "float32"):
        of_dtype = [(value, row) for value, row in found if row["dtype"] == dtype]
        logarithms = [math.log(value) for value, _ in of_dtype]
        mean = math.exp(sum(logarithms) / len(logarithms)) if logarithms else None
        demand = f"{dtype}: geometric mean over the better of eager and torch.compile"
        checks.append(Check(demand, 1.3, mean, len(of_dtype)))
        by_name = {id(row): value for value, row in of_dtype}
        slowest = _least(
            f"{dtype}: the slowest layer", 0.98, [row for _, row in of_dtype],
            lambda row, by_name=by_name: by_name[id(row)],
        )  # fmt: skip
        checks.append(slowest)
    return checks


def _step(
    results: Results, name: str, dtypes: Iterable[str], demands: dict[str, float]
) -> list[Check]:
    rows = [row for row in rows_of(results, "steps") if row["name"] == name]
    return [
        _least(
            f"{dtype}: over {peer}", wanted, [row for row in rows if row["dtype"] == dtype],
            lambda row, peer=peer: speedup(row, peer),
        )
        for dtype in dtypes
        for peer, wanted in demands.items()
    ]  # fmt: skip


def checks(results: Results) -> dict[str, list[Check]]:
    """Every target with its demands."""
    both = ("bfloat16", "float32")
    elementwise, edges = rows_of(results, "elementwise"), rows_of(results, "image edges")
    return {
        "Memory-bound passes, 64 MiB a tensor and more": [
            _least("share of copy bandwidth", 0.9, elementwise, lambda r: fraction(r, results))
        ],
        "Image-edge layers": [
            _least("share of copy bandwidth", 0.8, edges, lambda r: fraction(r, results)),
            _least("over cuDNN + separate bias and activation", 1.5, edges,
                   lambda r: speedup(r, "eager")),
        ],
        "GAN layer suite, forward + backward": _layers(results),
        "DCGAN-64 training step, batch 128": _step(
            results, "DCGAN-64 step", ("bfloat16",), {"eager": 3.0, "compile reduce-overhead": 1.5}
        ),
        "WGAN-GP critic step, 64x64, batch 64": _step(
            results, "WGAN-GP critic step", both, {"eager": 4.0, "jax jit": 1.3}
        ),
        "VAE step, 64x64, batch 128": _step(
            results, "VAE step", both, {"eager": 2.0, "compile reduce-overhead": 1.2}
        ),
    }  # fmt: skip


# --- tables ---


def _number(value: float | None, wanted: float) -> str:
    if value is None:
        return "-"
    return f"{100 * value:.0f} %" if wanted < 0.95 else f"{value:.2f}x"


def target_table(results: Results) -> str:
    rows = [
        (what, check.demand, f">= {_number(check.wanted, check.wanted)}",
         _number(check.measured, check.wanted), check.verdict, check.rows, check.worst)
        for what, demands in checks(results).items()
        for check in demands
    ]  # fmt: skip
    head = ("what", "demand", "target", "measured", "verdict", "rows", "slowest row")
    return table(head, rows)


def _microseconds(row: Row, candidate: str) -> str:
    seconds = row["seconds"].get(candidate)
    if seconds is None:
        return "failed" if candidate in row.get("failed", {}) else "-"
    return f"{1e6 * seconds:.1f}"


def row_table(results: Results, groups: Sequence[str]) -> str:
    """Every row of the groups: times, share of the copy bandwidth, and the bound that applies."""
    rows = rows_of(results, *groups)
    candidates = list(dict.fromkeys(name for row in rows for name in row["seconds"]))
    lines = []
    for row in rows:
        share, limit = fraction(row, results), bound(row, results)
        lines.append(
            [
                f"{row['name']} {row['pass']}" if row.get("input") else row["name"],
                row["dtype"],
                *(_microseconds(row, name) for name in candidates),
                "-" if share is None else f"{100 * share:.0f} %",
                "-" if limit is None else limit[0],
                "-" if limit is None else f"{row['seconds']['fastgen'] / limit[1]:.1f}",
                "DIFFERS" if is_wrong(row) else "",
            ]
        )
    head = ["what", "dtype", *(f"{name} us" for name in candidates), "of copy bandwidth"]
    return table([*head, "bound by", "time / bound", ""], lines)


def left_out(results: Results) -> list[str]:
    """What was not measured, or failed, and why: a line each."""
    lines = []
    for name, group in results.get("groups", {}).items():
        if group["skipped"]:
            names = ", ".join(group["skipped"])
            lines.append(f"{name}: no time for {len(group['skipped'])}: {names}")
        for row in group["rows"]:
            for candidate, reason in row.get("failed", {}).items():
                lines.append(f"{name}: {row['name']} {row.get('dtype', '')}, {candidate}: {reason}")
            if reason := row.get("not captured because"):
                lines.append(f"{name}: {row['name']} {row['dtype']} was not captured: {reason}")
            if is_wrong(row):
                lines.append(
                    f"{name}: {row['name']} {row['dtype']} differs from eager by "
                    f"{row['difference']:.1e}"
                )
    return lines
