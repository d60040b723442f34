"""The CUDA bodies of the image-edge weight gradient, every thread of every block, sanitized."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from host import INTEGERS, bits, build, result, round_to_tf32, run
from torch import Tensor

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}

# (batch, channels, height, width, filters, kernel, stride, padding)
GEOMETRIES = [
    (1, 1, 1, 1, 1, (1, 1), (1, 1), (0, 0)),
    (2, 3, 17, 13, 16, (3, 3), (1, 1), (1, 1)),
    (2, 3, 64, 64, 64, (4, 4), (2, 2), (1, 1)),
    (1, 3, 11, 40, 32, (3, 3), (1, 1), (1, 1)),
    (2, 1, 28, 28, 40, (5, 5), (2, 2), (2, 2)),
    (3, 1, 28, 28, 64, (4, 4), (2, 2), (1, 1)),
    (1, 2, 9, 10, 17, (7, 7), (1, 1), (3, 3)),
    (3, 4, 5, 7, 72, (2, 3), (2, 1), (0, 2)),
    (1, 4, 12, 3, 127, (1, 3), (1, 3), (0, 1)),
    (1, 3, 30, 9, 33, (6, 1), (4, 2), (3, 0)),
    (5, 3, 4, 4, 8, (4, 4), (1, 1), (0, 0)),
    (1, 4, 20, 21, 70, (7, 7), (4, 4), (3, 2)),
    (1, 3, 6, 300, 24, (3, 4), (1, 1), (1, 1)),
    (1, 2, 5, 1100, 64, (2, 2), (2, 2), (0, 1)),
    (1, 3, 20, 130, 64, (4, 4), (2, 2), (1, 1)),
]


@dataclass
class Plan:
    wide: bool
    patch_piece: int
    tile_width: int
    tile_height: int
    tiles: int
    blocks: int
    filter_chunks: int
    column_chunks: int
    stages: int


@pytest.fixture(scope="module")
def program() -> Path:
    return build("conv2d_bias_leaky_relu_weight", ["conv2d_bias_leaky_relu_weight_host.cpp"])


def rounded(tensor: Tensor) -> Tensor:
    """As the tensor cores take it."""
    if tensor.dtype != torch.float32:
        return tensor.double()
    return round_to_tf32(tensor.contiguous()).double()


def gradient(x: Tensor, g: Tensor, kernel, stride, padding) -> Tensor:
    shape = (g.shape[1], x.shape[1], *kernel)
    return torch.nn.grad.conv2d_weight(x, shape, g, stride, padding)


def check(
    program: Path,
    folder: Path,
    geometry: tuple,
    dtype_name: str = "float32",
    layout: str = "channels_last",
    result_layout: str = "contiguous",
    offset: int = 0,
    multiprocessors: int = 1,
    shared_limit: int = 99 * 1024,
    blocks: tuple[int, int] = (256, 1),
    x: Tensor | None = None,
) -> Plan:
    """One call against float64, from factors rounded as the kernel rounds them."""
    n, c, height, width, k, kernel, stride, padding = geometry
    dtype = DTYPES[dtype_name]
    if x is None:
        x = torch.randn(n, c, height, width)
    x = x.to(dtype).contiguous(memory_format=LAYOUTS[layout])
    low = [
        (size + 2 * p - r) // s + 1
        for size, p, r, s in zip((height, width), padding, kernel, stride, strict=True)
    ]
    g = torch.randn(n, k, *low).to(dtype).contiguous(memory_format=torch.channels_last)
    w = torch.empty(k, c, *kernel, dtype=dtype).contiguous(memory_format=LAYOUTS[result_layout])

    exact = gradient(rounded(x), rounded(g), kernel, stride, padding)
    absolute = gradient(rounded(x).abs(), rounded(g).abs(), kernel, stride, padding)
    arguments = [dtype_name, offset, multiprocessors, shared_limit, *blocks, n, c, height, width]
    arguments += [k, *kernel, *low, *stride, *padding, *x.stride(), *w.stride()]
    run(program, arguments, {"picture": bits(x), "map": bits(g)}, folder)

    flat = torch.from_numpy(result(folder, "result", INTEGERS[dtype.itemsize][1]))
    ours = flat.view(dtype).as_strided(w.shape, w.stride()).double()
    # One rounding of the result, and float32 roundings of the sum's terms.
    allowed = torch.finfo(dtype).eps / 2 * exact.abs() + 2e-6 * absolute + 1e-30
    finite = exact.isfinite()
    assert ours[finite].isfinite().all()
    assert not ours[~finite].isfinite().any()
    difference = (ours - exact).abs()[finite]
    assert (difference <= allowed[finite]).all(), (difference / allowed[finite]).max()
    facts = result(folder, "plan", np.int64).tolist()
    return Plan(bool(facts[0]), *facts[1:])


@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_weight_gradient(program, tmp_path, geometry, layout, dtype):
    check(program, tmp_path, geometry, dtype, layout)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_result_has_any_strides(program, tmp_path, layout, dtype):
    for geometry in GEOMETRIES[1:3]:
        check(program, tmp_path, geometry, dtype, result_layout=layout)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("blocks", [(256, 1), (256, 2), (512, 1)])
def test_many_blocks_share_the_tiles(program, tmp_path, dtype, blocks):
    geometry = (5, 3, 40, 64, 100, (4, 4), (2, 2), (1, 1))
    plan = check(program, tmp_path, geometry, dtype, multiprocessors=7, blocks=blocks)
    assert 1 < plan.blocks < plan.tiles
    assert plan.filter_chunks == 2
    large = (40, 3, 20, 24, 8, (7, 7), (1, 1), (3, 3))
    plan = check(program, tmp_path, large, dtype, multiprocessors=340, blocks=blocks)
    assert plan.blocks > 64  # a thread of the second kernel adds up several
    assert plan.column_chunks > 1


@pytest.mark.parametrize("dtype", DTYPES)
def test_pieces_of_sixteen_bytes_only_where_they_are_aligned(program, tmp_path, dtype):
    """And the same numbers where they are not."""
    geometry = (1, 3, 9, 16, 24, (3, 3), (1, 1), (1, 1))
    run_of_16 = 16 // DTYPES[dtype].itemsize
    plan = check(program, tmp_path, geometry, dtype)
    assert (plan.wide, plan.patch_piece) == (True, run_of_16)
    plan = check(program, tmp_path, geometry, dtype, offset=1)
    assert (plan.wide, plan.patch_piece) == (False, 1)
    plan = check(program, tmp_path, geometry, dtype, layout="contiguous")
    assert (plan.wide, plan.patch_piece) == (True, 1)
    gray = (2, 1, 28, 28, 23, (4, 4), (2, 2), (1, 1))
    plan = check(program, tmp_path, gray, dtype)
    assert (plan.wide, plan.patch_piece) == (False, 4)
    odd = (2, 2, 9, 13, 8, (3, 3), (1, 1), (1, 1))
    assert check(program, tmp_path, odd, dtype).patch_piece == 2


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_no_pixel_looks_at_spoils_nothing(program, tmp_path, dtype):
    """Rows and columns of a picture behind the last window, where tiles reach out of the map."""
    x = torch.randn(1, 3, 38, 19)
    x[:, :, -1], x[..., -1] = float("inf"), float("nan")
    geometry = (1, 3, 38, 19, 16, (3, 3), (2, 3), (0, 0))
    check(program, tmp_path, geometry, dtype, x=x)
    x = torch.randn(1, 3, 38, 19)
    x[:, :, 12, 6] = float("inf")
    check(program, tmp_path, (1, 3, 38, 19, 16, (3, 3), (2, 2), (0, 0)), dtype, x=x)


def test_tiles_fit_the_map(program, tmp_path):
    plan = check(
        program, tmp_path, GEOMETRIES[2], "bfloat16", multiprocessors=4, shared_limit=227 * 1024
    )
    assert plan.tile_width == 32
    assert plan.tiles * plan.tile_width * plan.tile_height == 2 * 32 * 32
    wide = check(program, tmp_path, GEOMETRIES[13], "bfloat16")
    assert wide.tile_height == 1


def test_what_does_not_fit_is_refused(program, tmp_path):
    with pytest.raises(AssertionError, match="too large for image_edge_conv2d_weight"):
        check(program, tmp_path, (1, 3, 800, 800, 8, (3, 3), (400, 400), (0, 0)),
              shared_limit=4096)  # fmt: skip
    with pytest.raises(AssertionError, match="takes 1 to 4 channels"):
        check(program, tmp_path, (1, 5, 8, 8, 8, (3, 3), (1, 1), (0, 0)))


def test_more_than_two_to_the_thirty_two_elements(program, tmp_path):
    run(program, ["large"], {}, tmp_path)
