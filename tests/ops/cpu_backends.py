"""The backends by which this CPU computes every operation, for tests that run on all of them."""

from __future__ import annotations

from fastgen.ops import backend

# Triton's interpreter takes seconds a call; tests/kernels has its own cases.
BACKENDS = [
    "auto",
    *(
        name
        for name, entry in backend.BACKENDS.items()
        if name != "triton" and entry.runs_on("cpu", by_name=True) and entry.missing() is None
    ),
]
