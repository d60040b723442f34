"""What the tests of the data share: their own cache folder, and how an error must look."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from fastgen.data import DataError, Splits, load

Refused = Callable[..., str]
Whole = Callable[[Splits], tuple[np.ndarray, np.ndarray | None]]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that memory-mapped copies go to."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("FASTGEN_DATA_MEMORY", raising=False)
    return tmp_path / "cache" / "fastgen"


@pytest.fixture
def refused() -> Refused:
    """Load what cannot be loaded; the message is one line and contains the words."""

    def check(spec: str, *words: str, **options: int | None) -> str:
        with pytest.raises(DataError) as caught:
            load(spec, **options)
        message = str(caught.value)
        assert len(message.splitlines()) == 1
        assert message.isprintable()
        for word in words:
            assert word in message
        return message

    return check


@pytest.fixture
def whole() -> Whole:
    """Both sets of a source put together again in the source's order: images and labels."""

    def join(splits: Splits) -> tuple[np.ndarray, np.ndarray | None]:
        train, held_out = splits
        order = np.argsort(np.concatenate([train.indices, held_out.indices]))
        images = np.concatenate([train.images, held_out.images])[order]
        if train.labels is None or held_out.labels is None:
            return images, None
        return images, np.concatenate([train.labels, held_out.labels])[order]

    return join
