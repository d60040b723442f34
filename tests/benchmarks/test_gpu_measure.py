"""What a file of a GPU's measurements may hold together."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from gpu import measure
from gpu.session import FORMAT

MACHINE = {
    "device": "NVIDIA H200",
    "sources": "0123",
    "torch": "2.11.0",
    "driver": "580",
    "jax": "1",
}


@pytest.mark.parametrize("changed", [None, *MACHINE])
def test_rows_stay_beside_others_of_the_same_machine_and_versions(
    tmp_path: Path, changed: str | None
) -> None:
    path, groups = tmp_path / "gpu.json", {"steps": {"rows": []}}
    path.write_text(
        json.dumps({"format": FORMAT, "tiny": False, "machine": MACHINE, "groups": groups})
    )
    now = MACHINE if changed is None else {**MACHINE, changed: "another"}
    assert measure.kept(path, now, tiny=False) == (groups if changed is None else {})
