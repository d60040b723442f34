"""Small data, small models, and folders that belong to one test."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from fastgen.data import Splits, load

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope="session")
def digits() -> Splits:
    """Real handwritten digits in their native size, 1x8x8."""
    return load("digits", image_size=8)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return tmp_path / "run"
