"""Shapes that the tests of both convolutions share, small and odd."""

from __future__ import annotations

import torch
from hypothesis import strategies as st
from torch import Tensor

LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
SLOPES = (0.0, 0.2, 1.0)

# (input channels, output channels, height, width, kernel, stride, padding, dilation, groups)
GEOMETRIES = [
    (3, 4, 7, 6, 3, 1, 1, 1, 1),
    (3, 4, 9, 9, 3, 2, 1, 1, 1),
    (4, 6, 8, 8, 4, 2, 1, 1, 2),
    (2, 3, 11, 7, 5, 2, 2, 1, 1),
    (3, 2, 9, 8, 3, 1, 2, 2, 1),
    (1, 1, 5, 5, 1, 1, 0, 1, 1),
    (4, 4, 6, 7, 3, 3, 0, 1, 4),
]


@st.composite
def geometries(draw: st.DrawFn, *, transposed: bool) -> dict[str, object]:
    """The "options" of a call and the "shapes" of its tensors."""
    groups = draw(st.sampled_from([1, 1, 2, 3]))
    inner, outer = draw(st.integers(1, 3)) * groups, draw(st.integers(1, 4)) * groups
    kernel = draw(st.tuples(st.integers(1, 5), st.integers(1, 5)))
    stride = draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
    dilation = draw(st.tuples(st.integers(1, 2), st.integers(1, 2)))
    padding = draw(st.tuples(st.integers(0, 2), st.integers(0, 2)))
    reach = [d * (k - 1) + 1 for d, k in zip(dilation, kernel, strict=True)]
    if transposed:
        least = [
            max(1, -(-(1 + 2 * p - r) // s) + 1)
            for p, r, s in zip(padding, reach, stride, strict=True)
        ]
    else:
        least = [max(1, r - 2 * p) for p, r in zip(padding, reach, strict=True)]
    size = [low + draw(st.integers(0, 6)) for low in least]
    weight = (inner, outer // groups, *kernel) if transposed else (outer, inner // groups, *kernel)
    options: dict[str, object] = {
        "stride": stride,
        "padding": padding,
        "dilation": dilation,
        "groups": groups,
    }
    if transposed:
        options["output_padding"] = tuple(
            draw(st.integers(0, max(s, d) - 1)) for s, d in zip(stride, dilation, strict=True)
        )
    options["negative_slope"] = draw(st.sampled_from(SLOPES))
    shapes = ((draw(st.integers(0, 3)), inner, *size), weight, (outer,))
    return {"shapes": shapes, "options": options}


def tensors(
    shapes: tuple[tuple[int, ...], ...],
    dtype: torch.dtype,
    layout: torch.memory_format,
    seed: int = 0,
) -> list[Tensor]:
    """Random input, weight and bias; the four-dimensional ones in `layout`."""
    generator = torch.Generator().manual_seed(seed)
    drawn = [
        torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes
    ]
    return [t.contiguous(memory_format=layout) if t.dim() == 4 else t for t in drawn]
