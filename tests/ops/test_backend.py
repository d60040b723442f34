from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

import fastgen
from fastgen.ops import backend as _  # noqa: F401
from fastgen.ops.backend import BACKENDS, automatic_names, default_backend, select
from fastgen.ops.bias_leaky_relu import bias_leaky_relu

X = torch.randn(2, 3)
MISSING = [name for name, entry in BACKENDS.items() if entry.missing() is not None]


def test_torch_is_always_there_and_auto_finds_a_backend_for_every_operation():
    assert BACKENDS["torch"].missing() is None
    for operation in (
        "bias_leaky_relu",
        "conv2d_bias_leaky_relu",
        "conv_transpose2d_bias_leaky_relu",
        "reparameterize",
    ):
        for device in ("cpu", "cuda", "mps"):
            assert "torch" in automatic_names(device)
            assert select(operation, "auto", torch.device(device)) is not None


@pytest.mark.parametrize("name", MISSING)
def test_a_missing_backend_is_refused_with_reason_and_remedy(name):
    with pytest.raises(
        fastgen.BackendUnavailable,
        match=rf"backend '{name}' is not available: .*; or use backend='torch'",
    ):
        bias_leaky_relu(X, backend=name)
    with pytest.raises(fastgen.BackendUnavailable), fastgen.backend(name):
        pass


def test_an_unknown_backend_lists_the_known_ones():
    with pytest.raises(
        ValueError, match=r"backend must be one of 'auto', .*'torch' \(got 'tensorflow'\)"
    ):
        bias_leaky_relu(X, backend="tensorflow")
    with pytest.raises(ValueError, match="backend must be one of"), fastgen.backend("tensorflow"):
        pass


def test_the_block_sets_the_default_and_restores_it_also_after_an_error():
    before = default_backend()
    with fastgen.backend("torch"):
        assert default_backend() == "torch"
        with fastgen.backend("auto"):
            assert default_backend() == "auto"
        assert default_backend() == "torch"
    with pytest.raises(KeyError), fastgen.backend("torch"):
        raise KeyError
    assert default_backend() == before


def run(code, **environment):
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_environment_variable_sets_the_default():
    code = "import torch, fastgen; print(fastgen.ops.bias_leaky_relu(torch.ones(1, 1)).item())"
    assert run(code, FASTGEN_BACKEND="torch").stdout.strip() == "1.0"
    assert "FASTGEN_BACKEND must be one of" in run(code, FASTGEN_BACKEND="tensorflow").stderr
    if MISSING:
        refused = run(code, FASTGEN_BACKEND=MISSING[0])
        assert refused.returncode
        assert "BackendUnavailable" in refused.stderr


def test_a_backend_that_is_named_is_not_replaced_where_torch_jit_trace_records():
    torch.jit.trace(lambda x: bias_leaky_relu(x, backend="torch"), X)
    for name in automatic_names("cpu") - {"torch"}:
        with pytest.raises(fastgen.BackendUnavailable, match=f"'{name}' cannot be recorded"):
            torch.jit.trace(lambda x, name=name: bias_leaky_relu(x, backend=name), X)
