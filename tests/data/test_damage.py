"""Whatever bytes a file holds: it is read, or refused in one line, and nothing else happens."""

from __future__ import annotations

import gzip
import io
import struct
from collections.abc import Callable
from math import prod
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fastgen.data import DataError, load

PIXELS = np.random.default_rng(0).integers(0, 256, (12, 4, 4), dtype=np.uint8)


def saved(writer: Callable[..., None], *arrays: np.ndarray, **named: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    writer(buffer, *arrays, **named)
    return buffer.getvalue()


IDX = struct.pack(">BBBB3I", 0, 0, 8, 3, 12, 4, 4) + PIXELS.tobytes()
FILES = {
    "a.npy": saved(np.save, PIXELS),
    "f.npy": saved(np.save, PIXELS / np.float32(255)),
    "a.npz": saved(np.savez, images=PIXELS, labels=np.arange(12)),
    "b.npz": saved(np.savez_compressed, images=PIXELS, labels=np.arange(12)),
    "train-images-idx3-ubyte": IDX,
    "train-images-idx3-ubyte.gz": gzip.compress(IDX),
}
LABELS = struct.pack(">BBBBI", 0, 0, 8, 1, 12) + bytes(12)


@pytest.mark.parametrize("name", FILES)
@settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
@pytest.mark.filterwarnings("ignore")
def test_damaged_files_never_cause_another_error(
    tmp_path: Path, name: str, data: st.DataObject
) -> None:
    content = bytearray(FILES[name])
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, len(content) - 1))
        content[place] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, 2 * len(content)))
    spec = tmp_path / name
    spec.unlink(missing_ok=True)
    spec.write_bytes(content[:cut])
    if "idx" in name:
        for other in ("train-labels-idx1-ubyte", "t10k-labels-idx1-ubyte"):
            (tmp_path / other).write_bytes(LABELS)
        (tmp_path / "t10k-images-idx3-ubyte").write_bytes(IDX)

    outcome: object
    try:
        outcome = load(f"mnist:{tmp_path}" if "idx" in name else str(spec)).train.image_shape
    except DataError as error:
        outcome = str(error).splitlines()
    # Another shape in the header and as much cut off behind it make a whole file.
    another = name == "f.npy" and isinstance(outcome, tuple) and np.load(spec)[0].size
    assert outcome in ((1, 4, 4), (4, 4, 1)) or len(outcome) == 1 or prod(outcome) == another
