"""The CUDA bodies of the image-edge convolution, every thread of every block, sanitized."""

from __future__ import annotations

from pathlib import Path

import pytest
from host import build, run
from image_edge_conv import LAYOUTS, check

KINDS = ["float32", "tf32", "bfloat16", "float16"]

# (batch, channels, height, width, filters, kernel, stride, padding)
GEOMETRIES = [
    (1, 1, 1, 1, 1, (1, 1), (1, 1), (0, 0)),
    (2, 3, 17, 13, 16, (3, 3), (1, 1), (1, 1)),
    (1, 3, 16, 16, 64, (4, 4), (2, 2), (1, 1)),
    (1, 3, 11, 40, 32, (3, 3), (1, 1), (1, 1)),
    (2, 1, 28, 28, 40, (5, 5), (2, 2), (2, 2)),
    (1, 2, 9, 10, 17, (7, 7), (1, 1), (3, 3)),
    (3, 4, 5, 7, 72, (2, 3), (2, 1), (0, 2)),
    (1, 4, 12, 3, 127, (1, 3), (1, 3), (0, 1)),
    (1, 3, 30, 9, 33, (6, 1), (4, 2), (3, 0)),
    (5, 3, 4, 4, 8, (4, 4), (1, 1), (0, 0)),
]


@pytest.fixture(scope="module")
def program() -> Path:
    return build("conv2d_bias_leaky_relu", ["conv2d_bias_leaky_relu_host.cpp"])


@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", KINDS)
def test_forward(program, tmp_path, geometry, layout, kind):
    check(program, tmp_path, geometry, kind, layout)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", KINDS)
def test_tangent_takes_its_mask_from_the_output(program, tmp_path, layout, kind):
    for geometry in (GEOMETRIES[1], GEOMETRIES[3]):
        check(program, tmp_path, geometry, kind, layout, mask=True)
        check(program, tmp_path, geometry, kind, layout, mask=True, bias=False, slope=0.0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("slope", [0.0, 1.0])
def test_slopes(program, tmp_path, kind, slope):
    check(program, tmp_path, GEOMETRIES[2], kind, slope=slope)
    check(program, tmp_path, GEOMETRIES[2], kind, bias=False, slope=slope)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", KINDS)
def test_runs_of_sixteen_bytes_only_where_they_are_aligned(program, tmp_path, layout, kind):
    """And the same numbers where they are not."""
    geometry = (1, 3, 9, 16, 24, (3, 3), (1, 1), (1, 1))
    assert check(program, tmp_path, geometry, kind, layout, mask=True).way
    assert not check(program, tmp_path, geometry, kind, layout, mask=True, offset=1).way
    odd = (1, 3, 9, 15, 23, (3, 3), (1, 1), (1, 1))
    assert not check(program, tmp_path, odd, kind, layout, mask=True).way


@pytest.mark.parametrize("kind", ["float32", "bfloat16"])
def test_any_layout_of_input_and_weight(program, tmp_path, kind):
    geometry = GEOMETRIES[1]
    for layout, other in (("contiguous", "channels_last"), ("channels_last", "contiguous")):
        check(program, tmp_path, geometry, kind, layout, other, "channels_last")


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", ["float32", "tf32", "bfloat16"])
def test_blocks_take_several_tiles(program, tmp_path, layout, kind):
    plan = check(program, tmp_path, (5, 3, 20, 40, 130, (3, 3), (1, 1), (1, 1)), kind, layout)
    assert plan.tiles > 3 * plan.blocks > 0
    assert plan.chunks > 1


def test_tiles_fit_the_picture_and_the_shared_memory(program, tmp_path):
    small = check(program, tmp_path, (1, 3, 32, 32, 64, (4, 4), (2, 2), (1, 1)), "bfloat16")
    assert (small.tile_width, small.tile_height) == (16, 8)
    assert small.tiles == 2
    wide = (1, 3, 30, 70, 16, (5, 5), (4, 4), (0, 0))
    assert check(program, tmp_path, wide, "tf32", shared_limit=48 * 1024).shared_bytes <= 48 * 1024


def test_a_stride_that_does_not_fit_is_refused(program, tmp_path):
    with pytest.raises(AssertionError, match="too large for image_edge_conv2d"):
        check(program, tmp_path, (1, 3, 80, 80, 8, (3, 3), (40, 40), (0, 0)))
    with pytest.raises(AssertionError, match="takes 1 to 4 input channels"):
        check(program, tmp_path, (1, 5, 8, 8, 8, (3, 3), (1, 1), (0, 0)))


def test_more_than_two_to_the_thirty_two_elements(program, tmp_path):
    run(program, ["large"], {}, tmp_path)
