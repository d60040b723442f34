"""Tests share one thread each, fixed seeds, and helper modules beside them."""

from __future__ import annotations

import os
import sys

import pytest
import torch

# Without a GPU, Triton's kernels run in its interpreter. Triton reads this once, when it is
# imported, and so does fastgen.
os.environ.setdefault("TRITON_INTERPRET", "0" if torch.cuda.is_available() else "1")

torch.set_num_threads(1)

# `make sanitize` tests another build of the module than the one installed.
if wanted := os.environ.get("FASTGEN_REQUIRE_MODULE"):
    from fastgen.ops import compiled

    compiled.build_information()
    loaded = sys.modules["fastgen._C"].__file__ or ""
    assert loaded.startswith(wanted), f"fastgen._C is {loaded}, wanted from {wanted}"


@pytest.fixture(autouse=True)
def _fixed_seed() -> None:
    torch.manual_seed(0)
