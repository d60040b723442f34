"""The versions of csrc/cpu: nothing leaks from one into another, and vectors are as wide as they
should be."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
from host import ROOT, compiler, cpu_flags, part_of_the_build

SOURCES = sorted((ROOT / "csrc/cpu").glob("*.cpp"))


def versions() -> list[str]:
    """Compiled, not run: of whatever machine this is."""
    discover = part_of_the_build("discover")
    return [*discover.cpu_versions(discover.Compiler((compiler(),), ""))]


def compiled(source: Path, version: str, *more: str, to: Path) -> str:
    command = [compiler(), "-std=c++17", f"-I{ROOT / 'csrc'}", *cpu_flags(version), *more]
    done = subprocess.run(
        [*command, "-Wall", "-Wextra", str(source), "-o", str(to)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stderr


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_every_symbol_has_its_version_in_its_name(source, tmp_path):
    """Without optimization, so that every inline function and template is there to be seen. One
    without a version would be one for all, and might be compiled for another CPU."""
    for version in versions():
        compiled(source, version, "-O0", "-c", to=tmp_path / "object.o")
        listed = subprocess.run(
            ["nm", "-C", "--defined-only", "--extern-only", str(tmp_path / "object.o")],
            capture_output=True, text=True, check=True,
        ).stdout.splitlines()  # fmt: skip
        assert listed
        names = [line.split(" ", 2)[2] for line in listed]
        leaked = [name for name in names if f"::{version}::" not in name.partition("(")[0]]
        assert not leaked


def test_a_leak_would_be_seen(tmp_path):
    source = tmp_path / "leak.cpp"
    source.write_text(
        "inline int shared(int x) { return 2 * x; }\n"
        "namespace fastgen::cpu::FASTGEN_CPU { int kernel(int x) { return shared(x); } }\n"
    )
    with pytest.raises(AssertionError, match="shared"):
        test_every_symbol_has_its_version_in_its_name(source, tmp_path)


REGISTERS = {"avx2": "ymm", "avx512": "zmm", "avx512bf16": "zmm"}


@pytest.mark.parametrize("version", REGISTERS)
@pytest.mark.parametrize(
    ("stem", "instructions"),
    [
        ("bias_leaky_relu", ("vmulps", "vaddps", "vmulpd", "vpmovzxwd")),
        # Philox, Box-Muller, exponentials.
        ("reparameterize", ("vpmuludq", "vsqrtps", "vfmadd", "vpmovzxwd")),
    ],
)
def test_loops_are_vectorized(stem, instructions, version, tmp_path):
    if version not in versions():
        pytest.skip(f"the compiler makes no {version} code")
    if "clang" in subprocess.run([compiler(), "--version"], capture_output=True, text=True).stdout:
        pytest.skip("held for GCC")
    assembly = tmp_path / "kernels.s"
    compiled(ROOT / f"csrc/cpu/{stem}.cpp", version, "-O3", "-S", to=assembly)
    text = assembly.read_text()
    for instruction in instructions:
        assert re.search(rf"\b{instruction}\w*\s.*%{REGISTERS[version]}", text), instruction
