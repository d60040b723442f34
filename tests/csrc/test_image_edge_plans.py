"""Every image-edge layer that the routing rule lets in has a plan on every GPU since Ampere."""

from __future__ import annotations

import itertools
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from host import build, result, run

from fastgen.ops import image_edge
from fastgen.ops.geometry import Geometry

LEAST_SHARED = 99 * 1024  # bytes a block, of compute capability 8.6 and 8.9; 8.0 and 9.0 have more
KINDS = {0: torch.float32, 1: torch.float32, 2: torch.bfloat16}


@pytest.fixture(scope="module")
def program() -> Path:
    return build("image_edge_plans", ["image_edge_plans_host.cpp"], sanitize=False)


def layers() -> list[tuple[int, ...]]:
    """(picture channels, others, height, width, kernels, strides, paddings): every kernel and
    stride that fits, and sizes from one pixel to a large picture."""
    draw = random.Random(0)
    found = []
    for kernel_h, kernel_w in itertools.product(range(1, image_edge.KERNEL + 1), repeat=2):
        for stride in range(1, image_edge.STRIDE + 1):
            for picture in range(1, image_edge.CHANNELS + 1):
                others = draw.choice((1, 8, 33, 64, 128, 130, 192, 256, 320))
                height, width = draw.choice((1, 7, 28, 64)), draw.choice((2, 32, 129, 1024))
                padding = draw.randrange(kernel_h), draw.randrange(kernel_w)
                across = stride if draw.random() < 0.8 else draw.randint(1, image_edge.STRIDE)
                found.append((picture, others, height, width, kernel_h, kernel_w, stride, across,
                              *padding))  # fmt: skip
    return found


def test_what_the_rule_lets_in_has_a_plan(program: Path, tmp_path: Path) -> None:
    rows = []
    for picture, others, height, width, *rest in layers():
        kernel, stride, padding = rest[:2], rest[2:4], rest[4:]
        low = [
            (n + 2 * p - k) // s + 1
            for n, k, s, p in zip((height, width), kernel, stride, padding, strict=True)
        ]
        if min(low) < 1:
            continue
        geometry = Geometry(tuple(stride), tuple(padding), (1, 1), 1, False, (0, 0))
        for kind, dtype in KINDS.items():
            one = torch.empty(1, dtype=dtype)
            x, w = one.expand(2, picture, height, width), one.expand(others, picture, *kernel)
            grad = torch.empty(2, others, *low, dtype=dtype, device="meta")
            map = grad.to(memory_format=torch.channels_last)
            takes = (
                image_edge.takes_convolution(x, w, geometry),
                image_edge.takes_transposed(grad, w, (height, width), geometry),
                kind != 0 and image_edge.takes_weight_gradient(x, map, w, geometry),
            )
            for which, last in itertools.product(range(3), range(2)):
                if takes[which]:
                    rows.append((which, kind, last, LEAST_SHARED, picture, others, height,
                                 width, *kernel, *low, *stride, *padding))  # fmt: skip
    assert {row[0] for row in rows} == {0, 1, 2}
    run(program, [], {"calls": np.array(rows, dtype=np.int64)}, tmp_path)
    *problems, calls = result(tmp_path, "problems", np.int64).tolist()
    assert calls == len(rows) > 5000
    assert not problems, [rows[index] for index in problems[:5]]


def test_a_plan_that_does_not_fit_is_seen(program: Path, tmp_path: Path) -> None:
    """The test above would notice: with a third of the shared memory some have none."""
    large = (1, 0, 1, 24 * 1024, 3, 128, 64, 64, 7, 7, 64, 64, 1, 1, 3, 3)
    run(program, [], {"calls": np.array([large], dtype=np.int64)}, tmp_path)
    assert result(tmp_path, "problems", np.int64).tolist() == [0, 1]
