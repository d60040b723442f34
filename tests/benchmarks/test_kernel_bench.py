"""`pytest benchmarks/ --benchmark-only`: groups, notes beside the times, skips with reasons."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from fastgen import ops
from fastgen.ops.backend import BACKENDS

ROOT = Path(__file__).resolve().parents[2]


def test_every_operation_has_a_benchmark_of_its_stem() -> None:
    stems = [name for name in ops.__all__ if name.endswith(("_relu", "reparameterize"))]
    assert len(stems) >= 4
    assert [s for s in stems if not (ROOT / "benchmarks" / f"bench_{s}.py").is_file()] == []


def test_a_time_stands_beside_its_work_and_its_share_of_the_limit(tmp_path: Path) -> None:
    path = tmp_path / "times.json"
    words = [
        sys.executable, "-m", "pytest", "benchmarks/bench_reparameterize.py", "--benchmark-only",
        "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "-k", "16 and forward-float32",
        f"--benchmark-json={path}",
    ]  # fmt: skip
    # pytest-benchmark measures nothing in a worker of xdist, and tells one by its variables.
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")}
    environment = {**inherited, "PYTHONPATH": str(ROOT), "TRITON_INTERPRET": "0"}
    done = subprocess.run(
        words, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout
    found = json.loads(path.read_text())["benchmarks"]
    assert {row["params"]["candidate"] for row in found} >= {"eager", "auto", "torch"}
    assert len({row["group"] for row in found}) == 1
    for row in found:
        notes = row["extra_info"]
        rows = row["extra_info"]["bytes"] // (3 * 4 * 64 * 64 * 4)
        assert notes["bytes"] == rows * 3 * 4 * 64 * 64 * 4  # mu, logvar, z
        assert notes["operations"] == 0
        assert 0 < notes["% of ceiling"] < 150
        expected = notes["bytes"] / row["stats"]["median"] / 1e9
        assert notes["GB/s"] == pytest.approx(expected, abs=0.006)
    for name, entry in BACKENDS.items():
        if (reason := entry.missing()) is not None and "interpreter" not in reason:
            assert f"{name}: " in done.stdout
