"""Tests share one thread each, fixed seeds, and helper modules beside them."""

from __future__ import annotations

import os
import signal
import sys

import pytest
import torch

torch.set_num_threads(1)


def pytest_configure(config: pytest.Config) -> None:
    """Tests run on the CPU whatever the machine has; those marked `gpu` run under ``-m gpu``."""
    if config.option.markexpr.split()[:1] != ["gpu"]:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    # Without a GPU, Triton's kernels run in its interpreter. Triton reads this once, when it is
    # imported, and so does fastgen.
    os.environ.setdefault("TRITON_INTERPRET", "0" if torch.cuda.is_available() else "1")
    _check_module()
    # What a script runs in the background ignores Ctrl-C, and so would what the tests send it to.
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _check_module() -> None:
    """`make sanitize` tests another build of the module than the one installed."""
    if wanted := os.environ.get("FASTGEN_REQUIRE_MODULE"):
        from fastgen.ops import compiled

        compiled.build_information()
        loaded = sys.modules["fastgen._C"].__file__ or ""
        assert loaded.startswith(wanted), f"fastgen._C is {loaded}, wanted from {wanted}"


@pytest.fixture(autouse=True)
def _fixed_seed() -> None:
    torch.manual_seed(0)
