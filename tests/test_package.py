"""Wheel and source distribution hold what they should, and what is installed works far from the
source tree: with compiled kernels, and without a compiler."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
REQUIRED = bool(os.environ.get("FASTGEN_REQUIRE_CUDA_BUILD"))

SMOKE = """
import json
import torch, fastgen
from fastgen.ops import compiled
x = torch.randn(2, 3, 16, 16, requires_grad=True)
layer = fastgen.nn.ConvLeakyReLU2d(3, 8, 4, 2, 1)
(g,) = torch.autograd.grad(layer(x).sum(), x, create_graph=True)
g.square().sum().backward()
print(json.dumps({
    "version": fastgen.__version__,
    "file": fastgen.__file__,
    "differentiated": layer.weight.grad.abs().sum().item() > 0,
    "built": compiled.build_information(),
    "kernels": len(compiled.cuda_kernels()),
    "operators": sorted(
        s.name for s in torch._C._jit_get_all_schemas() if s.name.startswith("fastgen::")
    ),
    "missing": {part: compiled.missing(part) for part in ("cpu", "cuda")},
}))
"""


def files(folder: Path, *endings: str) -> set[str]:
    """The files below a folder, by their paths in it."""
    found = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix() for path in found if path.name.endswith(endings)}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project's files, so that nothing is left in the tree."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    copy = tmp_path_factory.mktemp("source")
    for name in filter(None, listed.split("\0")):
        if os.path.lexists(ROOT / name):
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, copy / name, follow_symlinks=False)
    return copy


def build(source: Path, output: Path, *kinds: str, **variables: str) -> Path:
    """Run the build front end; what it made. Compiled objects come from the tree's own cache."""
    # The variables of the test run itself are no part of what is tested.
    kept = {k: v for k, v in os.environ.items() if not k.startswith("FASTGEN_") and k != "CXX"}
    kept["FASTGEN_BUILD_DIR"] = str(ROOT / "build")
    # What one build leaves behind must not reach the next.
    shutil.rmtree(source / "build", ignore_errors=True)
    done = subprocess.run(
        [sys.executable, "-m", "build", *kinds, "--no-isolation", "--outdir", output, source],
        env=kept | variables, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    if done.returncode != 0:
        raise RuntimeError(done.stdout)
    (output / "build.log").write_text(done.stdout)
    (built,) = (path for path in output.iterdir() if path.suffix in (".whl", ".gz"))
    return built


@pytest.fixture(scope="module")
def wheel(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(source, tmp_path_factory.mktemp("dist"), "--wheel")


def contents(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def record(wheel: Path) -> dict[str, object]:
    with zipfile.ZipFile(wheel) as archive:
        return dict(json.loads(archive.read("fastgen/_build.json")))


def smoke(wheel: Path, folder: Path) -> dict[str, object]:
    """Install into an empty folder and use it from another one."""
    site = folder / "site"
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", site, wheel],
        check=True, capture_output=True,
    )  # fmt: skip
    # The tree itself is installed editable here, and its finder would lend the wheel its module.
    code = (
        "import sys\n"
        "borrows = lambda finder: finder.__module__.startswith('__editable__')\n"
        "sys.meta_path = [finder for finder in sys.meta_path if not borrows(finder)]\n"
        f"sys.path.insert(0, {str(site)!r})\n{SMOKE}"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=True
    )
    told = dict(json.loads(done.stdout))
    assert Path(told["file"]).is_relative_to(site)
    assert told["differentiated"] is True
    assert told["version"] in wheel.name
    return told


def test_wheel_holds_the_package_and_nothing_else(source: Path, wheel: Path) -> None:
    names = contents(wheel)
    rooms = {name.split("/")[0] for name in names}
    assert {room for room in rooms if not room.endswith(".dist-info")} == {"fastgen"}
    expected = {f"fastgen/{name}" for name in files(source / "fastgen", ".py", ".pyi", ".typed")}
    expected |= {f"fastgen/kernels/{name}" for name in files(source / "kernels", ".py")}
    assert expected <= names
    assert {"fastgen/py.typed", "fastgen/_C.pyi", "fastgen/_build.json"} <= names


def test_source_distribution_holds_every_source(source: Path, tmp_path: Path) -> None:
    with tarfile.open(build(source, tmp_path, "--sdist")) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    expected = {f"csrc/{name}" for name in files(source / "csrc", "")}
    expected |= {f"fastgen/kernels/{name}" for name in files(source / "kernels", ".py")}
    expected |= {f"build_support/{name}" for name in files(source / "build_support", ".py")}
    expected |= {f"fastgen/{name}" for name in files(source / "fastgen", ".py", ".pyi", ".typed")}
    assert expected <= names
    assert not [name for name in names if name.endswith((".so", "_build.json"))]


def test_installed_wheel_works_from_another_folder(
    source: Path, wheel: Path, tmp_path: Path
) -> None:
    told = smoke(wheel, tmp_path)
    reason = dict(record(wheel)["missing"]).get("cpu")  # type: ignore[call-overload]
    if reason is not None:
        if REQUIRED:
            pytest.fail(reason)
        pytest.skip(f"the module was not built: {reason}")
    assert "linux" in wheel.name
    assert told["built"], told["missing"]
    assert any(name.startswith("fastgen/_C.") and name.endswith(".so") for name in contents(wheel))
    if files(source / "csrc/ops", ".cpp"):
        assert told["operators"]
    if REQUIRED:
        assert told["kernels"]


def test_a_broken_compiler_costs_the_kernels_and_nothing_else(source: Path, tmp_path: Path) -> None:
    wheel = build(source, tmp_path, "--wheel", CXX="/bin/false")
    assert not [name for name in contents(wheel) if name.endswith(".so")]
    told = smoke(wheel, tmp_path)
    log = (tmp_path / "build.log").read_text()
    reason = "the C++ compiler '/bin/false' does not run; set CXX to one that does, or install g++"
    assert log.count("pure Python") == 1
    assert log.count(reason) == 1
    assert told["missing"] == {"cpu": reason, "cuda": reason}
    assert told["built"] == {}


def test_a_compiler_that_cannot_compile_is_told_by_its_first_error(
    source: Path, tmp_path: Path
) -> None:
    compiler = tmp_path / "c++"
    compiler.write_text(
        '#!/bin/sh\n[ "$1" = --version ] && { echo "broken 1.0"; exit; }\n'
        'echo "In file included from x"\necho "error: no member named y"\nexit 1\n'
    )
    compiler.chmod(0o755)
    wheel = build(
        source, tmp_path / "dist", "--wheel", CXX=str(compiler), FASTGEN_CUDA_ARCHS="none"
    )
    assert not [name for name in contents(wheel) if name.endswith(".so")]
    assert "error: no member named y" in str(record(wheel)["missing"])


@pytest.mark.parametrize("mode", ["cpu", "cuda"])
def test_what_is_asked_for_by_name_fails_loudly(source: Path, tmp_path: Path, mode: str) -> None:
    with pytest.raises(RuntimeError, match=f"FASTGEN_BUILD={mode}: the C.. compiler '/bin/false'"):
        build(source, tmp_path, "--wheel", CXX="/bin/false", FASTGEN_BUILD=mode)


def test_cuda_asked_for_without_a_cuda_compiler_fails_loudly(source: Path, tmp_path: Path) -> None:
    broken = tmp_path / "bin/nvcc"
    broken.parent.mkdir()
    broken.write_text("#!/bin/sh\nexit 1\n")
    broken.chmod(0o755)
    variables = {"CUDA_HOME": str(tmp_path)}
    with pytest.raises(RuntimeError, match=r"FASTGEN_BUILD=cuda: .*nvcc does not run"):
        build(source, tmp_path / "loud", "--wheel", FASTGEN_BUILD="cuda", **variables)
    quiet = build(source, tmp_path / "quiet", "--wheel", **variables)
    missing = dict(record(quiet)["missing"])  # type: ignore[call-overload]
    assert "nvcc does not run; install the CUDA toolkit" in missing["cuda"]


def test_pure_python_asked_for_makes_a_wheel_for_every_machine(
    source: Path, tmp_path: Path
) -> None:
    wheel = build(source, tmp_path, "--wheel", FASTGEN_BUILD="none")
    assert wheel.name.endswith("-py3-none-any.whl")
    assert "FASTGEN_BUILD=none asked for pure Python" in str(record(wheel)["missing"])
