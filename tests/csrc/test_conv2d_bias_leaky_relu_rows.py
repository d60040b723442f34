"""The CUDA bodies of the image-edge convolution that keeps its weights in registers, every thread
of every block, sanitized.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from host import build, run
from image_edge_conv import check

KINDS = ["tf32", "bfloat16", "float16"]

# (batch, channels, height, width, filters, kernel, stride, padding)
GEOMETRIES = [
    (2, 3, 16, 16, 64, (4, 4), (2, 2), (1, 1)),
    (1, 3, 20, 80, 64, (4, 4), (2, 2), (1, 1)),
    (2, 3, 17, 13, 16, (3, 3), (1, 1), (1, 1)),
    (1, 3, 11, 72, 64, (3, 3), (1, 1), (1, 1)),
    (2, 1, 28, 28, 40, (4, 4), (2, 2), (1, 1)),
    (2, 1, 32, 32, 64, (4, 4), (2, 2), (1, 1)),
    (1, 1, 9, 40, 8, (3, 3), (1, 1), (1, 1)),
    (1, 1, 1, 1, 8, (1, 1), (1, 1), (0, 0)),
    (1, 2, 9, 10, 24, (3, 2), (1, 3), (2, 1)),
    (3, 4, 5, 8, 72, (2, 3), (2, 1), (0, 2)),
    (1, 3, 12, 16, 136, (3, 1), (1, 1), (1, 0)),
    (1, 3, 30, 16, 32, (3, 2), (4, 4), (1, 0)),
    (1, 3, 30, 16, 32, (2, 2), (3, 2), (0, 1)),
    (5, 3, 4, 4, 8, (4, 4), (4, 4), (0, 0)),
    (2, 1, 8, 8, 560, (2, 2), (2, 2), (0, 0)),
]
DENSE, PADDED, ANY = range(3)  # how the picture is read


@pytest.fixture(scope="module")
def program() -> Path:
    return build("conv2d_bias_leaky_relu_rows", ["conv2d_bias_leaky_relu_rows_host.cpp"])


@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("kind", KINDS)
def test_forward(program, tmp_path, geometry, kind):
    check(program, tmp_path, geometry, kind)


@pytest.mark.parametrize("kind", KINDS)
def test_tangent_takes_its_mask_from_the_output(program, tmp_path, kind):
    for geometry in (GEOMETRIES[1], GEOMETRIES[2], GEOMETRIES[5], GEOMETRIES[10]):
        check(program, tmp_path, geometry, kind, mask=True)
        check(program, tmp_path, geometry, kind, mask=True, bias=False, slope=0.0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("slope", [0.0, 1.0])
def test_slopes(program, tmp_path, kind, slope):
    check(program, tmp_path, GEOMETRIES[0], kind, slope=slope)
    check(program, tmp_path, GEOMETRIES[3], kind, bias=False, slope=slope)


@pytest.mark.parametrize("kind", KINDS)
def test_an_infinite_pixel_spoils_its_own_windows_only(program, tmp_path, kind):
    for geometry in GEOMETRIES[:7]:
        check(program, tmp_path, geometry, kind, infinite=True)


@pytest.mark.parametrize("kind", KINDS)
def test_any_layout_of_input_and_weight(program, tmp_path, kind):
    for geometry in (GEOMETRIES[0], GEOMETRIES[3]):
        for weight_layout in ("contiguous", "channels_last"):
            check(program, tmp_path, geometry, kind, weight_layout=weight_layout)
            plan = check(
                program, tmp_path, geometry, kind, "channels_last", "contiguous", weight_layout
            )
            assert plan.way == ANY


def test_rows_that_allow_it_are_read_in_pieces(program, tmp_path):
    for kind in KINDS:
        assert check(program, tmp_path, GEOMETRIES[0], kind).way == DENSE
    for geometry in (GEOMETRIES[3], GEOMETRIES[6]):
        assert check(program, tmp_path, geometry, "bfloat16").way == PADDED
        assert check(program, tmp_path, geometry, "tf32").way == DENSE


@pytest.mark.parametrize("kind", KINDS)
def test_blocks_take_several_tiles(program, tmp_path, kind):
    for kernel in ((3, 3), (1, 1), (1, 1)), ((4, 4), (2, 2), (1, 1)), ((2, 2), (2, 2), (0, 0)):
        plan = check(program, tmp_path, (5, 3, 40, 48, 72, *kernel), kind)
        assert plan.tiles > 3 * plan.blocks > 0
    wide = (1, 1, 64, 80, 1032, (2, 2), (2, 2), (1, 1))
    assert check(program, tmp_path, wide, kind).chunks > 1


def test_a_patch_fits_the_shared_memory(program, tmp_path):
    wide = (1, 3, 60, 80, 16, (4, 4), (4, 4), (0, 0))
    large = check(program, tmp_path, wide, "tf32", shared_limit=200 * 1024)
    small = check(program, tmp_path, wide, "tf32", shared_limit=48 * 1024)
    assert small.shared_bytes <= 48 * 1024 < large.shared_bytes
    assert small.tile_width * small.tile_height < large.tile_width * large.tile_height == 256


@pytest.mark.parametrize(
    ("geometry", "options"),
    [
        ((1, 3, 16, 16, 60, (4, 4), (2, 2), (1, 1)), {}),  # filters that end within a run
        (GEOMETRIES[0], {"offset": 1}),  # a result that does not begin with one
        (GEOMETRIES[0], {"layout": "contiguous"}),
        ((1, 3, 16, 16, 64, (7, 7), (1, 1), (3, 3)), {}),  # more weights than registers hold
        ((1, 3, 80, 80, 8, (3, 3), (40, 40), (0, 0)), {}),
        ((1, 5, 8, 8, 8, (3, 3), (1, 1), (0, 0)), {}),
    ],
)
def test_what_it_leaves_to_the_general_kernel(program, tmp_path, geometry, options):
    with pytest.raises(AssertionError, match="not taken"):
        check(program, tmp_path, geometry, "bfloat16", **options)


def test_more_than_two_to_the_thirty_two_elements(program, tmp_path):
    run(program, ["large"], {}, tmp_path)
