"""Convolutions for the tests of the Hopper kernels: odd sizes, strides, paddings and dilations."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch.nn.functional as F
from torch import Tensor

TILES = ((128, 128), (128, 64), (64, 64))


@dataclass(frozen=True)
class Geometry:
    batch: int = 2
    channels: int = 16
    height: int = 7
    width: int = 5
    filters: int = 24
    kernel_height: int = 3
    kernel_width: int = 3
    stride_height: int = 1
    stride_width: int = 1
    padding_height: int = 0
    padding_width: int = 0
    dilation_height: int = 1
    dilation_width: int = 1

    def convolved(self, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        return F.conv2d(
            input,
            weight,
            bias,
            (self.stride_height, self.stride_width),
            (self.padding_height, self.padding_width),
            (self.dilation_height, self.dilation_width),
        )

    @property
    def fits(self) -> bool:
        """Whether the dilated kernel fits into the padded picture."""
        return self.height + 2 * self.padding_height > self.dilation_height * (
            self.kernel_height - 1
        ) and self.width + 2 * self.padding_width > self.dilation_width * (self.kernel_width - 1)


def drawn_geometries(count: int) -> list[Geometry]:
    """Odd sizes: most leave a remainder that the division by the stride drops."""
    numbers = np.random.default_rng(0)

    def one(*choices: int) -> int:
        return int(numbers.choice(choices))

    found: list[Geometry] = []
    while len(found) < count:
        drawn = Geometry(
            one(1, 2, 3), one(8, 16, 72), one(*range(1, 18)), one(*range(1, 18)), one(8, 24, 136),
            one(1, 2, 3, 4, 5), one(1, 2, 3, 4, 5), one(1, 2, 3, 8), one(1, 2, 3), one(0, 1, 2, 3),
            one(0, 1, 2, 3), one(1, 2, 3), one(1, 2, 3),
        )  # fmt: skip
        if drawn.fits:
            found.append(drawn)
    return found


DCGAN = Geometry(height=7, width=7, kernel_height=4, kernel_width=4, stride_height=2,
                 stride_width=2, padding_height=1, padding_width=1)  # fmt: skip
GEOMETRIES = [
    DCGAN,
    replace(DCGAN, height=8, width=9),
    Geometry(kernel_height=1, kernel_width=1),
    Geometry(padding_height=1, padding_width=1),
    Geometry(height=1, width=1, kernel_height=1, kernel_width=1, batch=1),
    Geometry(height=1, width=300, kernel_height=1, kernel_width=129, padding_width=128),
    Geometry(padding_height=128, padding_width=1),
    *drawn_geometries(40),
]
