"""What `fastgen.accelerate` did, for people and for programs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple


class Row(NamedTuple):
    """One module of the model.

    Attributes:
        name: its path in the model, as in `named_modules`; "(model)" is the model itself.
        kind: its class.
        became: what computes in its place; empty where it was left alone.
        why: why it was left alone, or why not more was done.
    """

    name: str
    kind: str
    became: str
    why: str


@dataclass
class Report:
    """What was replaced, what was left, and why; `print(report)` shows a table.

    Attributes:
        replaced: rows of modules that compute by fastgen's operations now.
        left: rows of modules that do not, each with its reason.
        dry_run: whether the model was only looked at.
    """

    replaced: list[Row] = field(default_factory=list)
    left: list[Row] = field(default_factory=list)
    dry_run: bool = False

    def __iter__(self) -> Iterator[Row]:
        """All rows, those replaced first."""
        return iter([*self.replaced, *self.left])

    def __str__(self) -> str:
        rows = [("name", "was", "now", "why")]
        rows += [(name, kind, became or "left", why) for name, kind, became, why in self]
        title = "would replace" if self.dry_run else "replaced"
        count = f"fastgen.accelerate {title} {len(self.replaced)} modules, left {len(self.left)}"
        return "\n".join([count, *(_lines(rows) if len(rows) > 1 else [])])


def _lines(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        yield "  " + "  ".join(cells).rstrip()
