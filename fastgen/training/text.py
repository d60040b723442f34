"""Plain text: tables, and things by what they are and not by where they lie."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from types import FunctionType


def columns(rows: Iterable[Sequence[object]]) -> str:
    """Rows as lines with aligned columns, indented by two; None is a dash."""
    table = [["-" if cell is None else writable(str(cell)) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        for row in table
    ]
    return "\n".join(f"  {line.rstrip()}" for line in lines)


def writable(text: str) -> str:
    """Text as UTF-8 can hold it: with escapes for what is none in the name of a file."""
    return text.encode("utf-8", "backslashreplace").decode()


def without_addresses(text: str) -> str:
    """Text in which Python shows objects by their addresses, the same in every process."""
    return re.sub(r" at 0x[0-9a-fA-F]+", "", text)


def spelled(thing: object) -> str:
    """What a thing is, the same in every process: a function's full name, else its `repr`."""
    if isinstance(thing, FunctionType):
        return f"{thing.__module__}.{thing.__qualname__}"
    return without_addresses(repr(thing))
