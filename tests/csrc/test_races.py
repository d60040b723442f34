"""Every kernel of csrc/cuda but those for Hopper, on the emulated device that watches for races.

What compute-sanitizer's racecheck finds on a GPU in shared memory, the same in the tensors, and
reads of what an asynchronous copy has yet to bring; see tests/emulation/races.cpp.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import sanitize_cases
from host import ROOT
from watched import CALLS, EMULATION, KERNELS, kernel_names, said, watched

DTYPES = ("float32", "bfloat16", "float16")

# And one wide enough for several warps side by side, and for several tiles of a block.
EDGES = (*sanitize_cases.EDGES, (3, 16, 24, 96, 3, 1, 1))


@pytest.fixture(scope="module")
def program() -> Path:
    return watched("races", KERNELS, CALLS, EMULATION / "races.cpp")


@pytest.fixture(scope="module")
def planted() -> Path:
    return watched("planted_races", [EMULATION / "planted_races.cu"], EMULATION / "races.cpp")


@pytest.mark.parametrize("right", ["barrier", "rounds", "one block", "copies"])
def test_what_waits_is_no_race(planted: Path, right: str) -> None:
    subprocess.run([planted, right], check=True)


@pytest.mark.parametrize(
    ("wrong", "found"),
    [
        ("no barrier", "read after write"),
        ("a warp's barrier alone", "write after read"),
        ("rounds that overlap", "write after read"),
        ("two blocks", "write after write"),
        ("copies that nobody waits for", "read before its copy arrives"),
    ],
)
def test_a_planted_race_is_found(planted: Path, wrong: str, found: str) -> None:
    done = subprocess.run([planted, wrong], capture_output=True, text=True)
    assert done.returncode == 3
    assert f"race: {found}" in done.stderr


def bias_calls() -> Iterator[tuple[int, ...]]:
    """outer, channels, inner; whether there are a shift, a mask, sums; whether in place."""
    for n, c, h, w in sanitize_cases.MAPS:
        for extents in ((n, c, h * w), (n * h * w, c, 1)):
            for parts in ((0, 0, 0), (1, 0, 0), (0, 1, 0), (1, 1, 0), (0, 1, 1)):
                yield *extents, *parts, 0
                yield *extents, *parts, 1


def noise_calls() -> Iterator[tuple[int, ...]]:
    """Kind, samples, channels, positions, whether channels_last."""
    for kind in range(4):
        for samples, channels, *picture in sanitize_cases.LATENTS:
            positions = picture[0] * picture[1] if picture else 1
            yield kind, samples, channels, positions, 0
            if positions != 1:
                yield kind, samples, channels, positions, 1


def edge_calls(operation: str, dtype: str) -> Iterator[tuple[int, ...]]:
    """Batch, geometry, whether channels_last; whether there is a bias, and a mask or a tanh;
    whether float32 may be rounded to TF32.
    """
    for geometry in EDGES:
        for last in (0, 1):
            if operation == "weight":
                if last:
                    yield 2, *geometry, last
                continue
            for tf32 in (0, 1) if dtype == "float32" else (0,):
                for parts in ((0, 0), (1, 1)):
                    yield 2, *geometry, last, *parts, tf32


def calls(operation: str) -> Iterator[str]:
    for dtype in DTYPES:
        of = {"bias": bias_calls, "noise": noise_calls}.get(operation)
        for numbers in of() if of else edge_calls(operation, dtype):
            yield " ".join(map(str, (operation, dtype, *numbers)))


def launched(program: Path, operation: str) -> set[str]:
    """The kernels that ran."""
    # So few multiprocessors that blocks have several tiles each to go through.
    addresses = re.findall(r"kernel 0x([0-9a-f]+)", said(program, calls(operation), 1))
    assert addresses
    names = kernel_names(program)
    return {names[address] for address in addresses}


@pytest.mark.parametrize(
    ("operation", "files"),
    [
        ("bias", "bias_leaky_relu partial_sums"),
        ("noise", "reparameterize partial_sums"),
        ("forward", "conv2d_bias_leaky_relu conv2d_bias_leaky_relu_rows"),
        ("weight", "conv2d_bias_leaky_relu_weight"),
        ("transposed", "conv_transpose2d_bias_leaky_relu conv_transpose2d_bias_leaky_relu_march"),
    ],
)
def test_no_kernel_has_a_race(program: Path, operation: str, files: str) -> None:
    sources = [(ROOT / f"csrc/cuda/{name}.cu").read_text() for name in files.split()]
    kernels = {
        name
        for source in sources
        for name in re.findall(
            r"__global__ void\s+(?:__launch_bounds__\([^{]*?\)\s+)?(\w+)\(", source
        )
    }
    assert kernels
    assert launched(program, operation) == kernels
