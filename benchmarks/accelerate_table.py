"""Write what benchmarks/results/accelerate.json holds into docs/accelerate.md.

    python benchmarks/accelerate_table.py

What stands between the two markers is replaced; no number there is typed by hand.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from results import between

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "accelerate.json"
PAGE = ROOT / "docs" / "accelerate.md"
MARKERS = ("<!-- accelerate table -->", "<!-- end of accelerate table -->")
HEAD = (
    "critic", "what", "dtype", "eager ms", "eager channels_last ms", "accelerated ms",
    "before / after", "against eager float32", "gradients differ by",
)  # fmt: skip


def accelerate_table(results: dict[str, Any]) -> str:
    """The table and the line that says on what it was measured."""
    rows = results["rows"]
    plain = {
        (row["critic"], row["task"]): row["eager_contiguous_ms"]
        for row in rows
        if row["dtype"] == "float32"
    }
    lines = [HEAD, ("---",) * len(HEAD)]
    for row in rows:
        accelerated = row["accelerated_ms"]
        lines.append(
            (
                row["critic"],
                row["task"],
                row["dtype"],
                f"{row['eager_contiguous_ms']:.0f}",
                f"{row['eager_channels_last_ms']:.0f}",
                f"{accelerated:.0f}",
                f"**{row['eager_channels_last_ms'] / accelerated:.2f}x**",
                f"{plain[row['critic'], row['task']] / accelerated:.2f}x",
                f"{row['weight_gradient_difference']:.0e}",
            )
        )
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    machine = results["machine"]
    slower = max(row["accelerated_contiguous_images_ms"] / row["accelerated_ms"] for row in rows)
    return (
        f"{table}\n\n"
        f"{machine['processor']}, {machine['cores']} cores, {machine['threads']} thread, "
        f"torch {machine['torch']}, Python {machine['python']}, commit {machine['commit']}, "
        f"{results['date']}; medians of process time over {results['rounds']} interleaved rounds.\n"
        f"Fed contiguous images, an accelerated critic takes at most {slower:.2f} times as long."
    )


def main() -> None:
    table = accelerate_table(json.loads(RESULTS.read_text()))
    PAGE.write_text(between(MARKERS, table, PAGE.read_text()))


if __name__ == "__main__":
    main()
