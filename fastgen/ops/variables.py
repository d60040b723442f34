"""Environment variables that choose how operations compute: what each may be."""

from __future__ import annotations

import os

ALLOWED: dict[str, tuple[str, ...]] = {
    "FASTGEN_CPU": ("portable", "avx2", "avx512", "avx512bf16"),
    "FASTGEN_ROUTES": ("measure", "off"),
    "FASTGEN_WINOGRAD": ("on", "off"),
}
"""Variables that are one of a few words; ``FASTGEN_BACKEND``, whose words are the backends, is read
in `backend`."""

NUMBERS = ("FASTGEN_KEEP_MB",)
"""Variables that are whole numbers from 0."""


def read(variable: str) -> str | None:
    """The value of a variable; None where it is not set.

    Raises:
        ValueError: it is set to something that it may not be.
    """
    value = os.environ.get(variable)
    if value is None:
        return None
    if variable in NUMBERS:
        if not (value.isascii() and value.isdecimal()):
            raise ValueError(
                f"the environment variable {variable} must be a whole number from 0 (got {value!r})"
            )
    elif value not in ALLOWED[variable]:
        allowed = ", ".join(map(repr, ALLOWED[variable]))
        raise ValueError(
            f"the environment variable {variable} must be one of {allowed} (got {value!r})"
        )
    return value


def check() -> None:
    """Read all of them.

    Raises:
        ValueError: one is set to something that it may not be.
    """
    for variable in (*ALLOWED, *NUMBERS):
        read(variable)
