"""The wheel holds what it should and works far from the source tree."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

SMOKE = """
import torch, fastgen
x = torch.randn(2, 3, 16, 16, requires_grad=True)
layer = fastgen.nn.ConvLeakyReLU2d(3, 8, 4, 2, 1)
(g,) = torch.autograd.grad(layer(x).sum(), x, create_graph=True)
g.square().sum().backward()
print(fastgen.__version__, fastgen.__file__, layer.weight.grad.abs().sum().item() > 0)
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel built from a copy of the tracked files, so that nothing is left in the tree."""
    source = tmp_path_factory.mktemp("source")
    names = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    for name in filter(None, names.split("\0")):
        origin, target = ROOT / name, source / name
        if origin.is_file():
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(origin.read_bytes())
    output = tmp_path_factory.mktemp("dist")
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", output, source],
        check=True, capture_output=True,
    )  # fmt: skip
    (built,) = output.glob("*.whl")
    return built


def test_wheel_holds_the_package_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    rooms = {name.split("/")[0] for name in names}
    assert {room for room in rooms if not room.endswith(".dist-info")} == {"fastgen"}
    expected = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "fastgen").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert expected <= set(names)
    assert "fastgen/py.typed" in names


def test_installed_wheel_works_from_another_folder(wheel: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", site, wheel],
        check=True, capture_output=True,
    )  # fmt: skip
    code = f"import sys; sys.path.insert(0, {str(site)!r})\n{SMOKE}"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    version, file, differentiated = done.stdout.split()
    assert Path(file).is_relative_to(site)
    assert differentiated == "True"
    assert version in wheel.name
