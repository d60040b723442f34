"""Tests share one thread each, fixed seeds, and helper modules beside them."""

from __future__ import annotations

import os

import pytest
import torch

# Without a GPU, Triton's kernels run in its interpreter. Triton reads this once, when it is
# imported, and so does fastgen.
os.environ.setdefault("TRITON_INTERPRET", "0" if torch.cuda.is_available() else "1")

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _fixed_seed() -> None:
    torch.manual_seed(0)
