"""Environment variables are what they may be, or an error says which one is not."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from fastgen.ops import variables

WRONG = [
    ("FASTGEN_WINOGRAD", "OFF", "one of 'on', 'off'"),
    ("FASTGEN_WINOGRAD", "0", "one of 'on', 'off'"),
    ("FASTGEN_ROUTES", "foo", "one of 'measure', 'off'"),
    ("FASTGEN_CPU", "avx", "one of 'portable', 'avx2', 'avx512', 'avx512bf16'"),
    ("FASTGEN_KEEP_MB", "1G", "a whole number from 0"),
    ("FASTGEN_KEEP_MB", "-1", "a whole number from 0"),
]


@pytest.mark.parametrize(("variable", "value", "allowed"), WRONG)
def test_a_wrong_value_is_told_with_the_allowed_ones(variable, value, allowed, monkeypatch):
    monkeypatch.setenv(variable, value)
    message = rf"variable {variable} must be {allowed} \(got '{value}'\)"
    with pytest.raises(ValueError, match=message):
        variables.read(variable)
    with pytest.raises(ValueError, match=message):
        variables.check()


def test_a_right_value_is_read_and_none_where_there_is_none(monkeypatch):
    for variable, allowed in {**variables.ALLOWED, "FASTGEN_KEEP_MB": ("0", "64")}.items():
        for value in allowed:
            monkeypatch.setenv(variable, value)
            assert variables.read(variable) == value
        monkeypatch.delenv(variable)
        assert variables.read(variable) is None
    variables.check()


@pytest.mark.parametrize(("variable", "value"), [("FASTGEN_CPU", "avx"), ("FASTGEN_KEEP_MB", "1G")])
def test_the_compiled_module_is_not_loaded_with_a_wrong_value(variable, value):
    code = "import torch, fastgen; fastgen.ops.bias_leaky_relu(torch.ones(1, 1))"
    environment = {**os.environ, variable: value}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )
    assert done.stderr.splitlines()[-1].startswith(
        f"ValueError: the environment variable {variable} must be"
    )
