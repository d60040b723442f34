"""The page about acceleration shows what was measured, and nothing else."""

from __future__ import annotations

import json
import re

from accelerate_table import MARKERS, PAGE, RESULTS, accelerate_table


def test_the_pages_table_is_the_one_that_the_measurements_give():
    (shown,) = re.findall(f"{MARKERS[0]}\n(.*?)\n{MARKERS[1]}", PAGE.read_text(), re.DOTALL)
    assert shown == accelerate_table(json.loads(RESULTS.read_text()))


def test_ratios_are_those_of_the_medians():
    row = {
        "critic": "toy", "task": "penalty", "dtype": "float32", "batch": 2,
        "eager_contiguous_ms": 90.0, "eager_channels_last_ms": 80.0, "accelerated_ms": 40.0,
        "accelerated_contiguous_images_ms": 44.0, "weight_gradient_difference": 3.4e-6,
    }  # fmt: skip
    machine = {
        "processor": "P",
        "cores": 2,
        "threads": 1,
        "torch": "T",
        "python": "3",
        "commit": "c",
    }
    results = {"machine": machine, "date": "D", "rounds": 7, "rows": [row]}
    text = accelerate_table(results)
    line = "| toy | penalty | float32 | 90 | 80 | 40 | **2.00x** | 2.25x | 3e-06 |"
    assert line in text.splitlines()
    assert "at most 1.10 times as long" in text
    assert "P, 2 cores, 1 thread, torch T, Python 3, commit c, D;" in text
