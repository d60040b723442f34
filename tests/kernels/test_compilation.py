"""Every Triton configuration that can be launched, compiled ahead of time, within its budget."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

AOT = Path(__file__).with_name("aot.py")
ARCHITECTURES = ("sm_80", "sm_90", "sm_100")
REGENERATE = "TRITON_INTERPRET=0 python tests/kernels/aot.py --budget > /dev/null"


@pytest.fixture(scope="module")
def measured() -> dict[str, dict[str, Any]]:
    processes = str(min(os.cpu_count() or 1, 8))
    process = subprocess.run(
        [sys.executable, str(AOT), "--processes", processes],
        env=os.environ | {"TRITON_INTERPRET": "0"},
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stderr[-4000:]
    results: dict[str, dict[str, Any]] = json.loads(process.stdout)
    return results


def violations(
    measured: dict[str, dict[str, Any]], budgets: dict[str, dict[str, list[int]]]
) -> list[str]:
    """What is over its budget, spills, or lacks the instructions it should have."""
    wrong = []
    for name in sorted(measured.keys() | budgets.keys()):
        if name not in measured:
            wrong.append(f"{name}: in the budget, but no kernel has it")
            continue
        for architecture in ARCHITECTURES:
            found = measured[name].get(architecture, {"error": "not compiled"})
            where = f"{name}, {architecture}"
            if "error" in found:
                wrong.append(f"{where}: {found['error']}")
                continue
            if architecture not in budgets.get(name, {}):
                wrong.append(f"{where}: not in the budget")
                continue
            registers, shared = budgets[name][architecture]
            limits = {"registers": registers, "shared": shared, "spills": 0, "stack": 0}
            wrong += [
                f"{where}: {found[what]} {what}, allowed {limit}"
                for what, limit in limits.items()
                if found[what] > limit
            ]
            if found["wants_tensor_cores"] and not found["tensor_cores"]:
                wrong.append(f"{where}: no tensor-core instruction")
            if found["wants_wide_loads"] and not found["wide_loads"]:
                wrong.append(f"{where}: no 128-bit load")
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
    budgets = {"f": {a: [40, 0] for a in ARCHITECTURES}}
    bad = {
        "registers": 41, "shared": 1, "spills": 4, "stack": 8, "tensor_cores": False,
        "wide_loads": False,
    }  # fmt: skip
    everywhere = dict.fromkeys(ARCHITECTURES, good)
    assert violations({"f": everywhere}, budgets) == []
    for what, value in bad.items():
        assert len(violations({"f": everywhere | {"sm_90": good | {what: value}}}, budgets)) == 1
    assert len(violations({"f": {"sm_80": good, "sm_90": good}}, budgets)) == 1
    assert len(violations({"f": everywhere}, {})) == 3
    assert len(violations({}, budgets)) == 1
