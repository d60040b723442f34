"""The CUDA bodies of the image-edge transposed convolution, every thread of every block,
sanitized.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from host import bits, build, result, round_to_tf32, run

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
KINDS = ["float32", "tf32", "bfloat16", "float16"]

# (batch, channels, height, width, output channels, kernel, stride, padding, output padding)
GEOMETRIES = [
    (1, 1, 1, 1, 1, (1, 1), (1, 1), (0, 0), (0, 0)),
    (2, 32, 16, 16, 3, (4, 4), (2, 2), (1, 1), (0, 0)),
    (2, 64, 9, 20, 3, (3, 3), (1, 1), (1, 1), (0, 0)),
    (1, 40, 7, 11, 1, (5, 5), (2, 2), (2, 2), (1, 1)),
    (3, 17, 5, 3, 2, (2, 3), (2, 1), (0, 2), (1, 0)),
    (1, 127, 6, 33, 4, (3, 3), (1, 2), (0, 1), (0, 1)),
    (2, 24, 13, 12, 3, (7, 7), (1, 1), (3, 3), (0, 0)),
    (1, 72, 4, 40, 3, (5, 5), (2, 2), (2, 2), (1, 1)),
    (1, 3, 8, 5, 2, (1, 2), (3, 4), (0, 0), (2, 1)),
    (1, 16, 4, 300, 3, (4, 4), (2, 2), (1, 1), (0, 0)),
]


@dataclass
class Plan:
    wide_input: bool
    wide_result: bool
    group: int
    columns: int
    column_tiles: int
    strips: int
    shared_bytes: int


@pytest.fixture(scope="module")
def program() -> Path:
    return build("conv_transpose2d_bias_leaky_relu", ["conv_transpose2d_bias_leaky_relu_host.cpp"])


def check(
    program: Path,
    folder: Path,
    geometry: tuple,
    kind: str = "float32",
    layout: str = "channels_last",
    result_layout: str | None = None,
    weight_layout: str = "contiguous",
    slope: float = 0.2,
    tanh: bool = False,
    bias: bool = True,
    offsets: tuple[int, int] = (0, 0),
    multiprocessors: int = 1,
    shared_limit: int = 160 * 1024,
    march: bool = False,
) -> list[Plan]:
    """One call against float64, from inputs rounded as the kernel rounds them."""
    n, c, height, width, k, kernel, stride, padding, output_padding = geometry
    dtype = DTYPES["float32" if kind == "tf32" else kind]
    x = torch.randn(n, c, height, width).to(dtype)
    w = (torch.randn(c, k, *kernel) / c**0.5).to(dtype)
    x = x.contiguous(memory_format=LAYOUTS[layout])
    w = w.contiguous(memory_format=LAYOUTS[weight_layout])
    b = torch.randn(k).to(dtype)

    factors = [round_to_tf32(t).double() if kind == "tf32" else t.double() for t in (x, w)]
    options = (stride, padding, output_padding)
    exact = F.conv_transpose2d(*factors, b.double() if bias else None, *options)
    absolute = F.conv_transpose2d(*(t.abs() for t in factors), None, *options) + b.abs().max()
    if tanh:
        exact = exact.tanh()
    else:
        exact = torch.where(exact > 0, exact, exact * float(np.float32(slope)))
    template = torch.empty(exact.shape, memory_format=LAYOUTS[result_layout or layout])

    inputs = {"input": bits(x), "weight": bits(w)}
    inputs |= {"bias": bits(b)} if bias else {}
    arguments = ["float32" if kind == "tf32" else kind, int(kind != "float32")]
    arguments += [int(layout == "channels_last"), int((result_layout or layout) == "channels_last")]
    arguments += [slope, int(tanh), int(march), int(bias), *offsets, multiprocessors, shared_limit]
    arguments += [n, c, height, width, k, *kernel, *exact.shape[2:], *stride, *padding, *w.stride()]
    run(program, arguments, inputs, folder)

    integer = np.int32 if dtype == torch.float32 else np.int16
    ours = torch.from_numpy(result(folder, "result", integer)).view(dtype)
    ours = ours.as_strided(exact.shape, template.stride()).double()
    # One rounding of the result, and float32 roundings of the sum's terms.
    allowed = torch.finfo(dtype).eps / 2 * exact.abs() + 2e-6 * absolute
    assert ((ours - exact).abs() <= allowed).all(), ((ours - exact).abs() / allowed).max()
    facts = result(folder, "plan", np.int64).reshape(-1, 7).tolist()
    return [Plan(bool(f[0]), bool(f[1]), *f[2:]) for f in facts]


@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", KINDS)
def test_forward(program, tmp_path, geometry, layout, kind):
    check(program, tmp_path, geometry, kind, layout)


@pytest.mark.parametrize("kind", KINDS)
def test_other_layouts_of_result_and_weight(program, tmp_path, kind):
    for layout, other in (("contiguous", "channels_last"), ("channels_last", "contiguous")):
        for geometry in (GEOMETRIES[1], GEOMETRIES[6]):
            check(program, tmp_path, geometry, kind, layout, other, "channels_last")


@pytest.mark.parametrize("kind", KINDS)
def test_epilogues(program, tmp_path, kind):
    for geometry in (GEOMETRIES[1], GEOMETRIES[2]):
        check(program, tmp_path, geometry, kind, tanh=True)
        check(program, tmp_path, geometry, kind, bias=False, slope=0.0)
        check(program, tmp_path, geometry, kind, slope=1.0)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", KINDS)
def test_wide_accesses_only_where_they_are_aligned(program, tmp_path, layout, kind):
    """And the same numbers where they are not."""
    (plan,) = check(program, tmp_path, GEOMETRIES[1], kind, layout)
    assert (plan.wide_input, plan.wide_result) == (True, True)
    (plan,) = check(program, tmp_path, GEOMETRIES[1], kind, layout, offsets=(1, 1))
    assert (plan.wide_input, plan.wide_result) == (False, False)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", ["float32", "tf32", "bfloat16"])
def test_strips_and_column_tiles(program, tmp_path, layout, kind):
    """Blocks below and beside each other, each with the borders it needs of its neighbours."""
    for kernel, stride, padding in ((3, 1, 1), (4, 2, 1), (5, 2, 2)):
        geometry = (1, 16, 12, 200, 3, (kernel,) * 2, (stride,) * 2, (padding,) * 2, (0, 0))
        (plan,) = check(program, tmp_path, geometry, kind, layout, multiprocessors=2)
        assert plan.strips > 1
        assert plan.column_tiles > 1


def test_large_kernels_take_the_output_channels_one_after_the_other(program, tmp_path):
    plans = check(program, tmp_path, GEOMETRIES[6], "bfloat16")
    assert [plan.group for plan in plans] == [1, 1, 1]
    five = (1, 32, 8, 8, 4, (5, 5), (1, 1), (2, 2), (0, 0))
    assert [plan.group for plan in check(program, tmp_path, five, "float32")] == [3, 1]


def test_shared_memory_bounds_the_width_of_a_block(program, tmp_path):
    geometry = (1, 64, 5, 120, 3, (4, 4), (2, 2), (1, 1), (0, 0))
    (whole,) = check(program, tmp_path, geometry, "bfloat16")
    (split,) = check(program, tmp_path, geometry, "bfloat16", shared_limit=32 * 1024)
    assert whole.column_tiles < split.column_tiles
    assert split.shared_bytes <= 32 * 1024


def test_what_does_not_fit_is_refused(program, tmp_path):
    with pytest.raises(AssertionError, match="takes 1 to 4 output channels"):
        check(program, tmp_path, (1, 8, 4, 4, 5, (3, 3), (1, 1), (1, 1), (0, 0)))
    with pytest.raises(AssertionError, match="kernel too large"):
        check(program, tmp_path, (1, 8, 9, 9, 1, (9, 9), (1, 1), (4, 4), (0, 0)))
    with pytest.raises(AssertionError, match="too many channels"):
        check(program, tmp_path, (1, 4096, 2, 2, 3, (4, 4), (2, 2), (1, 1), (0, 0)))


# Like GEOMETRIES: each width of a tile, pictures of one channel, kernels that are smaller.
MARCHES = [
    (2, 64, 8, 8, 3, (4, 4), (2, 2), (1, 1), (0, 0)),
    (3, 64, 5, 32, 3, (4, 4), (2, 2), (1, 1), (0, 0)),
    (1, 40, 6, 64, 1, (4, 4), (2, 2), (1, 1), (0, 0)),
    (1, 64, 4, 128, 2, (4, 4), (2, 2), (1, 1), (0, 0)),
    (1, 8, 3, 232, 3, (4, 4), (2, 2), (1, 1), (0, 0)),
    (2, 64, 5, 40, 3, (3, 3), (1, 1), (1, 1), (0, 0)),
    (1, 24, 7, 80, 1, (3, 3), (1, 1), (1, 1), (0, 0)),
    (1, 64, 5, 256, 4, (3, 3), (1, 1), (1, 1), (0, 0)),
    (2, 64, 9, 48, 3, (3, 3), (2, 2), (1, 1), (1, 1)),
    (2, 16, 9, 32, 3, (2, 2), (2, 2), (0, 0), (0, 0)),
    (1, 64, 4, 64, 2, (1, 1), (1, 1), (0, 0), (0, 0)),
    (1, 16, 1, 16, 3, (3, 3), (1, 1), (1, 1), (0, 0)),
]
MARCHING = ["tf32", "bfloat16", "float16"]


@pytest.mark.parametrize("geometry", MARCHES)
@pytest.mark.parametrize("kind", MARCHING)
def test_march(program, tmp_path, geometry, kind):
    check(program, tmp_path, geometry, kind, march=True)
    check(program, tmp_path, geometry, kind, march=True, multiprocessors=20, tanh=True, bias=False)


@pytest.mark.parametrize("kind", MARCHING)
def test_march_with_epilogues_and_other_weights(program, tmp_path, kind):
    for geometry in (MARCHES[0], MARCHES[5]):
        check(program, tmp_path, geometry, kind, march=True, weight_layout="channels_last")
        check(program, tmp_path, geometry, kind, march=True, bias=False, slope=0.0)
        check(program, tmp_path, geometry, kind, march=True, slope=1.0)


def test_march_in_strips_and_tiles(program, tmp_path):
    geometry = (2, 64, 9, 256, 3, (3, 3), (1, 1), (1, 1), (0, 0))
    (plan,) = check(program, tmp_path, geometry, "bfloat16", march=True, multiprocessors=8)
    assert (plan.columns, plan.column_tiles) == (3, 3)
    assert plan.strips > 1


def test_march_of_more_channels_takes_less_shared_memory_where_there_is_less(program, tmp_path):
    geometry = (1, 128, 5, 128, 3, (4, 4), (2, 2), (1, 1), (0, 0))
    (plan,) = check(program, tmp_path, geometry, "bfloat16", march=True)
    assert plan.columns == 4
    (plan,) = check(program, tmp_path, geometry, "bfloat16", march=True, shared_limit=99 * 1024)
    assert plan.columns < 4


@pytest.mark.parametrize(
    ("geometry", "kind", "offsets"),
    [
        ((1, 64, 4, 8, 3, (5, 5), (2, 2), (2, 2), (1, 1)), "bfloat16", (0, 0)),
        ((1, 64, 4, 8, 3, (4, 4), (2, 2), (0, 0), (0, 0)), "bfloat16", (0, 0)),
        ((1, 64, 4, 8, 4, (4, 4), (2, 2), (1, 1), (0, 0)), "bfloat16", (0, 0)),
        ((1, 64, 4, 8, 3, (3, 3), (1, 1), (0, 0), (0, 0)), "bfloat16", (0, 0)),
        ((1, 64, 4, 9, 3, (3, 3), (1, 1), (1, 1), (0, 0)), "bfloat16", (0, 0)),
        ((1, 60, 4, 8, 3, (3, 3), (1, 1), (1, 1), (0, 0)), "bfloat16", (0, 0)),
        ((1, 80, 4, 8, 3, (3, 3), (1, 1), (1, 1), (0, 0)), "tf32", (0, 0)),
        ((1, 64, 4, 8, 3, (4, 4), (2, 2), (1, 1), (0, 0)), "bfloat16", (1, 0)),
        ((1, 64, 4, 8, 3, (4, 4), (2, 2), (1, 1), (0, 0)), "bfloat16", (0, 1)),
        ((1, 64, 4, 8, 3, (4, 4), (2, 1), (1, 1), (0, 0)), "bfloat16", (0, 0)),
    ],
)  # fmt: skip
def test_march_leaves_the_rest_alone(program, tmp_path, geometry, kind, offsets):
    with pytest.raises(AssertionError, match="not for the march"):
        check(program, tmp_path, geometry, kind, march=True, offsets=offsets)


def test_more_than_two_to_the_thirty_two_elements(program, tmp_path):
    run(program, ["large"], {}, tmp_path)
