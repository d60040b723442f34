"""The Hopper convolution: what its compiled launchers ask of the GPU, and what its kernels are.

Without a GPU the launchers run on a runtime of our own that writes down the tensor maps and the
grid; a convolution computed from those maps alone is then compared with PyTorch's.
"""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import astuple, replace
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hopper import DCGAN, GEOMETRIES, TILES, Geometry
from host import ROOT, build, result, run

REQUIRED = bool(os.environ.get("FASTGEN_REQUIRE_CUDA_BUILD"))
DTYPES = ("bfloat16", "float16")
INPUT, WEIGHT, OUTPUT = 1, 2, 3


# --------------------------------------------------------------------- the launchers, on the host


def part(name: str) -> ModuleType:
    """A module of the build, which is not installed."""
    sys.path.insert(0, str(ROOT))
    try:
        return importlib.import_module(f"build_support.{name}")
    finally:
        sys.path.remove(str(ROOT))


@pytest.fixture(scope="module")
def built() -> Any:
    """The package's build, from the cache of objects that the installation filled."""
    chosen = part("settings").read_settings({**os.environ, "FASTGEN_BUILD": "auto"})
    outcome = part("module").build(ROOT, chosen)
    left_out = outcome.missing.get("cuda") or outcome.missing.get("cutlass")
    if left_out is None:
        return outcome
    if REQUIRED:
        pytest.fail(f"FASTGEN_REQUIRE_CUDA_BUILD is set and a part was not built: {left_out}")
    pytest.skip(left_out)


@pytest.fixture(scope="module")
def cubins(built: Any) -> list[Path]:
    return [path for path in built.cubins if "conv2d_bias_leaky_relu_sm90" in path.name]


class Map(NamedTuple):
    """A tensor map as the driver was asked for it, innermost dimension first."""

    im2col: bool
    extents: tuple[int, ...]
    strides: tuple[int, ...]  # in elements
    steps: tuple[int, ...]
    lower: tuple[int, ...]
    upper: tuple[int, ...]
    box: tuple[int, ...]


class Launch(NamedTuple):
    error: str
    maps: dict[int, Map]
    tile: tuple[int, int]
    asked: dict[str, int]  # empty where nothing was launched


Launcher = Callable[..., Launch]


@pytest.fixture(scope="module")
def launcher(cubins: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Launcher:
    objects = [path.parent / "object.o" for path in cubins]
    include = part("discover").find_cuda().library.parent / "include"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CPLUS_INCLUDE_PATH", str(include))
        source = "conv2d_bias_leaky_relu_sm90_host.cpp"
        program = build("conv2d_bias_leaky_relu_sm90", [source, *objects])
    folder = tmp_path_factory.mktemp("sm90")

    def launch(
        geometry: Geometry, tile: int = 0, dtype: str = "bfloat16", mode: str = "launch"
    ) -> Launch:
        how = [mode] if mode == "obstacle" else [mode, tile, dtype]
        run(program, [*how, *astuple(geometry)], {}, folder)
        error = (folder / "obstacle.txt").read_text()
        numbers = [int(n) for n in result(folder, "launch", np.int64)]
        maps = result(folder, "maps", np.int64).reshape(-1, 29)
        names = ("attribute", "x", "y", "z", "threads", "shared", "cluster", "stream")
        return Launch(
            error,
            {int(row[1]): map_of(row) for row in maps},
            (numbers[-2], numbers[-1]) if mode != "obstacle" else (0, 0),
            dict(zip(names, numbers, strict=False)) if len(numbers) == 10 else {},
        )

    return launch


def map_of(row: np.ndarray) -> Map:
    def numbers(first: int, count: int) -> tuple[int, ...]:
        return tuple(int(value) for value in row[first : first + count])

    rank = int(row[2])
    strides = numbers(8, rank)
    assert all(stride % 16 == 0 for stride in strides[1:])
    return Map(
        bool(row[0]), numbers(3, rank), tuple(stride // 2 for stride in strides),
        numbers(13, rank), numbers(18, 3), numbers(21, 3), numbers(24, 5),
    )  # fmt: skip


def pixels(extent: int, step: int, lower: int, upper: int) -> np.ndarray:
    """The coordinates that im2col mode visits: from `lower` to `extent - 1 + upper`, by `step`."""
    return np.arange(lower, extent + upper, step)


def convolved_by_maps(
    launch: Launch, geometry: Geometry, input: np.ndarray, weight: np.ndarray
) -> np.ndarray:
    """The output's memory, from the input's and the weight's memory and the three tensor maps.

    A kernel offset moves every visited pixel; what falls outside the picture counts as zero.
    """
    source, filters, target = (launch.maps[tensor] for tensor in (INPUT, WEIGHT, OUTPUT))
    assert (source.im2col, filters.im2col, target.im2col) == (True, False, True)
    channels, width, height, batch = source.extents
    across = pixels(width, source.steps[1], source.lower[0], source.upper[0])
    down = pixels(height, source.steps[2], source.lower[1], source.upper[1])

    count, offsets_across, offsets_down = filters.extents[1:]
    total = np.zeros((batch, len(down), len(across), count))
    for r in range(offsets_down):
        for s in range(offsets_across):
            h = down + r * geometry.dilation_height
            w = across + s * geometry.dilation_width
            inside = ((h >= 0) & (h < height))[:, None] & ((w >= 0) & (w < width))
            where = (
                np.arange(batch)[:, None, None, None] * source.strides[3]
                + h.clip(0, height - 1)[:, None, None] * source.strides[2]
                + w.clip(0, width - 1)[:, None] * source.strides[1]
                + np.arange(channels)
            )
            gathered = input[where] * inside[:, :, None]
            slab = (
                np.arange(channels)[:, None]
                + np.arange(count) * filters.strides[1]
                + s * filters.strides[2]
                + r * filters.strides[3]
            )
            total += gathered @ weight[slab]

    assert target.extents == (count, len(across), len(down), batch)
    assert target.lower == target.upper == (0, 0, 0)
    assert set(target.steps) == set(filters.steps) == {1}
    memory = np.full(total.size, np.nan)
    where = (
        np.arange(batch)[:, None, None, None] * target.strides[3]
        + np.arange(len(down))[:, None, None] * target.strides[2]
        + np.arange(len(across))[:, None] * target.strides[1]
        + np.arange(count)
    )
    memory[where] = total
    return memory


@pytest.mark.parametrize("index", range(len(GEOMETRIES)))
def test_the_convolution_in_the_tensor_maps_is_pytorchs(launcher: Launcher, index: int) -> None:
    geometry = GEOMETRIES[index]
    numbers = np.random.default_rng(index)
    g = geometry
    input = numbers.integers(-3, 4, (g.batch, g.height, g.width, g.channels)).astype(float)
    weight = numbers.integers(
        -3, 4, (g.filters, g.kernel_height, g.kernel_width, g.channels)
    ).astype(float)
    launch = launcher(geometry, tile=index % 3, dtype=DTYPES[index // 3 % 2])
    assert launch.error == ""

    ours = convolved_by_maps(launch, geometry, input.ravel(), weight.ravel())
    theirs = geometry.convolved(
        torch.from_numpy(input).permute(0, 3, 1, 2), torch.from_numpy(weight).permute(0, 3, 1, 2)
    )
    theirs = theirs.permute(0, 2, 3, 1).contiguous()
    np.testing.assert_array_equal(ours.reshape(theirs.shape), theirs.numpy())

    # The blocks cover every pixel and filter, in whole clusters.
    asked, (tile_pixels, tile_filters) = launch.asked, launch.tile
    assert (asked["x"] - asked["cluster"]) * tile_pixels < theirs[..., 0].numel()
    assert asked["x"] * tile_pixels >= theirs[..., 0].numel()
    assert asked["x"] % asked["cluster"] == 0
    assert (asked["y"] - 1) * tile_filters < geometry.filters <= asked["y"] * tile_filters
    assert (asked["z"], asked["threads"], asked["stream"]) == (1, 256, 77)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_tiles_are_the_ones_named(launcher: Launcher, dtype: str) -> None:
    for index, tile in enumerate(TILES):
        launch = launcher(DCGAN, index, dtype)
        assert launch.tile == tile
        assert launch.maps[INPUT].box[:2] == (64, tile[0])
        # A cluster shares the weight's tile: each block loads its part.
        assert launch.maps[WEIGHT].box[:2] == (64, tile[1] // launch.asked["cluster"])
        assert launch.asked["shared"] == launch.asked["attribute"] <= 227 * 1024


def test_tensors_of_more_than_two_to_the_31_elements_have_64_bit_strides(
    launcher: Launcher,
) -> None:
    large = Geometry(3, 64, 20_000, 20_000, 128, padding_height=1, padding_width=1)
    launch = launcher(large)
    assert launch.error == ""
    assert launch.maps[INPUT].extents == (64, 20_000, 20_000, 3)
    assert launch.maps[INPUT].strides == (1, 64, 64 * 20_000, 64 * 20_000**2)
    assert launch.maps[OUTPUT].strides == (1, 128, 128 * 20_000, 128 * 20_000**2)
    assert launch.maps[OUTPUT].extents == (128, 20_000, 20_000, 3)
    assert launch.asked["x"] == -(-3 * 20_000**2 // 256) * 2
    assert launch.asked["y"] == 1


@pytest.mark.parametrize(
    ("changed", "obstacle"),
    [
        ({"channels": 12}, "multiples of 8"),
        ({"filters": 12}, "multiples of 8"),
        ({"batch": 0}, r"extent must lie in \[1, 2\^30\)"),
        ({"width": 1 << 30}, r"extent must lie in \[1, 2\^30\)"),
        ({"stride_width": 9, "width": 99}, r"strides must lie in \[1, 8\]"),
        ({"stride_height": 0}, r"strides must lie in \[1, 8\]"),
        ({"padding_height": 129}, r"paddings must lie in \[0, 128\]"),
        ({"padding_width": -1}, r"paddings must lie in \[0, 128\]"),
        ({"dilation_width": 0}, r"dilations must lie in \[1, 254\]"),
        ({"height": 999, "dilation_height": 65}, r"must lie in \[-128, 127\]"),
        ({"padding_height": 128, "kernel_height": 1}, r"must lie in \[-128, 127\]"),
        ({"height": 999, "padding_height": 128, "dilation_height": 128}, "must be below 255"),
        ({"kernel_height": 8}, "larger than the padded input"),
        ({"batch": 1 << 20, "height": 64, "width": 64}, r"output must be below 2\^31"),
        ({"channels": 1 << 28}, r"kernel must be below 2\^31"),
        ({"batch": 1, "height": 1 << 15, "width": 1 << 15, "filters": 520}, r"less than 2\^39"),
        ({"filters": 65536 * 64}, "at most 4194240"),
    ],
)
def test_what_the_hardware_cannot_do_is_refused(
    launcher: Launcher, changed: dict[str, int], obstacle: str
) -> None:
    found = launcher(replace(Geometry(), **changed), mode="obstacle")
    assert re.search(obstacle, found.error), found.error
    assert launcher(Geometry(), mode="obstacle").error == ""


@pytest.mark.parametrize(
    ("mode", "error"),
    [
        ("refuse", "the CUDA driver refused to encode a tensor map"),
        ("old-driver", "it is older than 12.0"),
        ("no-device", "no kernel image for this device"),
    ],
)
def test_a_failure_is_reported_and_nothing_launched(
    launcher: Launcher, mode: str, error: str
) -> None:
    """CUTLASS itself would launch with a tensor map that the driver refused to make."""
    launch = launcher(DCGAN, mode=mode)
    assert error in launch.error
    assert launch.asked == {}
    assert launcher(DCGAN).error == ""


# ---------------------------------------------------------------------------- the compiled kernels


def test_as_many_blocks_as_planned_share_a_multiprocessor(built: Any, launcher: Launcher) -> None:
    kernels = [k for k in built.kernels if "conv2d_bias_leaky_relu_sm90" in k.source]
    assert len(kernels) == len(TILES) * len(DTYPES)
    for kernel in kernels:
        assert (kernel.stack_bytes, kernel.spill_stores, kernel.spill_loads) == (0, 0, 0)
        found = re.search(r"Tile<(\d+), (\d+), (\d+), (\d+), (\d+)>", kernel.name)
        assert found is not None
        *tile, _, blocks, _ = map(int, found.groups())
        dtype = "bfloat16" if "bfloat16" in kernel.name else "float16"
        shared = launcher(DCGAN, TILES.index(tuple(tile)), dtype).asked["shared"]
        # Registers are given out to a warp in units of 256.
        registers = -(-kernel.registers // 8) * 8
        assert blocks * 256 * registers <= 65536, kernel
        assert blocks * (shared + kernel.shared_bytes + 1024) <= 228 * 1024, kernel


def test_the_kernels_gather_by_im2col_and_multiply_on_the_tensor_cores(
    cubins: list[Path],
) -> None:
    try:
        nvdisasm = part("disassembly").find_nvdisasm()
    except part("settings").BuildError as problem:
        pytest.skip(str(problem))
    kernels = []
    for cubin in cubins:
        done = subprocess.run(
            [nvdisasm, "-c", "-ndf", cubin], capture_output=True, text=True, check=True
        )
        names, bodies = part("disassembly").by_kernel(done.stdout)
        kernels += zip(names, bodies, strict=True)
    assert len(kernels) == len(TILES) * len(DTYPES)
    for name, body in kernels:
        found = re.search(r"(bfloat16|half)_t, .*Tile<(\d+), (\d+)", name)
        assert found is not None
        dtype, pixels, filters = found.groups()
        multiplied = f"HGMMA.64x{filters}x16.F32" + (".BF16" if dtype == "bfloat16" else "")
        assert re.search(rf"{re.escape(multiplied)}\s", body), multiplied
        assert re.search(r"UTMALDG\.4D\.IM2COL", body)
        assert re.search(r"UTMASTG\.4D\.IM2COL", body)
        assert ("MULTICAST" in body) == ((pixels, filters) == ("128", "128"))
        assert not re.search(r"\b(LDL|STL)\b", body)
