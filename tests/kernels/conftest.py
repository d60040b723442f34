"""The Triton kernels run on the CPU, in Triton's interpreter."""

from __future__ import annotations

import os

import pytest


@pytest.fixture(autouse=True)
def _interpreted() -> None:
    if os.environ["TRITON_INTERPRET"] != "1":
        pytest.skip("these run in Triton's interpreter: TRITON_INTERPRET=1 pytest tests/kernels")
