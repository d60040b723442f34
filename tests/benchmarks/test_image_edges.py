"""The page about CPUs shows what was measured of image edges, and nothing else."""

from __future__ import annotations

import json
import re

import pytest
import torch
from image_edges import (
    COLUMNS,
    LAYOUTS,
    MARKERS,
    PAGE,
    PASSES,
    RESULTS,
    Edge,
    eager,
    edges_table,
    operands,
    ours,
)

from fastgen.bench.rungs import DTYPES


def test_the_pages_table_is_the_one_that_the_measurements_give():
    (shown,) = re.findall(f"{MARKERS[0]}\n(.*?)\n{MARKERS[1]}", PAGE.read_text(), re.DOTALL)
    assert shown == edges_table(json.loads(RESULTS.read_text()))


def test_a_share_of_the_peak_is_operations_over_time():
    cell = {"operations": 3e9, "ms": {"eager": 90.0, "torch": 80.0, "cpp": 60.0}}
    row = {"layer": "L", "pass": "forward", **{f"{d} {layout}": cell for d, layout in COLUMNS}}
    results = {
        "ceilings": {"1": {"operations_per_second": {"float32": 1e11, "bfloat16": 2e11}}},
        "rows": [row, {**row, "pass": "tangent"}],
        "machine": {"processor": "P", "cores": 2, "torch": "T", "python": "3", "commit": "c"},
        "date": "D",
    }
    lines = edges_table(results).splitlines()
    half, quarter = "90 / 80 / 60, 50 %", "90 / 80 / 60, 25 %"
    assert lines[2] == f"| L | forward | {half} | {half} | {quarter} |"
    assert lines[3].startswith("|  | tangent |")
    assert "100 GFLOP/s in float32, 200 in bfloat16" in lines[-1]


@pytest.mark.parametrize("pass_", PASSES)
def test_what_is_compared_is_the_same(pass_):
    edge = Edge(3, 16, 12, 5, 2, 2, 1)
    for dtype, layout in COLUMNS:
        o = operands(edge, DTYPES[dtype], LAYOUTS[layout])
        expected = eager(edge, pass_, o)()
        found = ours(edge, pass_, o, "torch")()
        tolerance = 5e-2 if dtype == "bfloat16" else 1e-4
        torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)
