"""Every Triton configuration that can be launched, compiled ahead of time, within its budget."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import aot
import pytest

AOT = Path(__file__).with_name("aot.py")
ARCHITECTURES = ("sm_80", "sm_90", "sm_100")
# Everything, 1008 compilations, took 26 minutes of two cores that were busy otherwise, too.
CHANGED = [] if os.environ.get("FASTGEN_COMPILE_ALL") == "1" else ["--changed"]
REGENERATE = "TRITON_INTERPRET=0 python tests/kernels/aot.py --budget > /dev/null"


@pytest.fixture(scope="module")
def measured() -> dict[str, dict[str, Any]]:
    processes = str(min(os.cpu_count() or 1, 8))
    process = subprocess.run(
        [sys.executable, str(AOT), "--processes", processes, *CHANGED],
        env=os.environ | {"TRITON_INTERPRET": "0"},
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stderr[-4000:]
    results: dict[str, dict[str, Any]] = json.loads(process.stdout)
    return results


def violations(
    measured: dict[str, dict[str, Any]], budgets: dict[str, dict[str, Any]]
) -> list[str]:
    """What is over its budget, spills, or lacks the instructions it should have."""
    wrong = []
    for name in sorted(measured.keys() | budgets.keys()):
        if name not in measured:
            wrong.append(f"{name}: in the budget, but no kernel has it")
            continue
        if name not in budgets:
            wrong.append(f"{name}: not in the budget")
            continue
        if measured[name].keys() == {"source"} and measured[name] != {
            "source": budgets[name].get("source")
        }:
            wrong.append(f"{name}: passed over, though it is not what the budget was written from")
        for architecture, found in measured[name].items():
            if architecture == "source":
                continue
            where = f"{name}, {architecture}"
            if problems := aot.broken(found):
                wrong += [f"{where}: {problem}" for problem in problems]
            elif architecture not in budgets[name]:
                wrong.append(f"{where}: not in the budget")
            else:
                wrong += [
                    f"{where}: {found[what]} {what}, allowed {limit}"
                    for what, limit in zip(
                        ("registers", "shared"), budgets[name][architecture], strict=True
                    )
                    if found[what] > limit
                ]
    return wrong


@pytest.mark.timeout(900)
def test_every_configuration_compiles_within_its_budget(
    measured: dict[str, dict[str, Any]],
) -> None:
    budgets = json.loads(AOT.with_name("budgets.json").read_text(encoding="utf-8"))
    assert measured
    wrong = violations(measured, budgets)
    assert not wrong, "\n".join([*wrong, f"to accept registers and shared bytes: {REGENERATE}"])


def test_the_budget_refuses_what_it_should() -> None:
    good = {
        "registers": 40, "shared": 0, "spills": 0, "stack": 0, "tensor_cores": True,
        "wide_loads": True, "wants_tensor_cores": True, "wants_wide_loads": True,
    }  # fmt: skip
    budgets = {"f": {"source": "1f"} | {a: [40, 0] for a in ARCHITECTURES}}
    bad = {
        "registers": 41, "shared": 1, "spills": 4, "stack": 8, "tensor_cores": False,
        "wide_loads": False,
    }  # fmt: skip
    everywhere: dict[str, Any] = {"source": "1f"} | dict.fromkeys(ARCHITECTURES, good)
    assert violations({"f": everywhere}, budgets) == []
    assert violations({"f": {"source": "1f"}}, budgets) == []
    assert len(violations({"f": {"source": "2f"}}, budgets)) == 1
    for what, value in bad.items():
        assert len(violations({"f": everywhere | {"sm_90": good | {what: value}}}, budgets)) == 1
    assert len(violations({"f": everywhere | {"sm_90": {"error": "none"}}}, budgets)) == 1
    assert len(violations({"f": everywhere}, {"f": {"source": "1f"}})) == 3
    assert len(violations({"f": everywhere}, {})) == 1
    assert len(violations({}, budgets)) == 1


def test_a_budget_is_not_written_from_what_may_not_be() -> None:
    good = {
        "registers": 40, "shared": 0, "spills": 0, "stack": 0, "tensor_cores": True,
        "wide_loads": True, "wants_tensor_cores": True, "wants_wide_loads": True,
    }  # fmt: skip
    assert aot.budget({"f": {"source": "1f", "sm_80": good}}, {"g": {}}) == {
        "f": {"source": "1f", "sm_80": [40, 0]},
        "g": {},
    }
    with pytest.raises(SystemExit, match="f, sm_80: 4 spills, allowed 0"):
        aot.budget({"f": {"source": "1f", "sm_80": good | {"spills": 4}}}, {})


def test_some_of_the_unchanged_are_compiled_all_the_same() -> None:
    held = json.loads(AOT.with_name("budgets.json").read_text(encoding="utf-8"))
    sampled = [name for name, line in held.items() if aot.is_sampled(line["source"])]
    assert 0.03 * len(held) < len(sampled) < 0.25 * len(held)
