"""The stages of a convolutional network: which sizes and channel counts an image passes through."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral

KERNEL, STRIDE, PADDING = 4, 2, 1
"""Every stage halves (or doubles) the sides exactly: a 4x4 window, moved by 2, over a border of 1.
As the stride divides the window, each pixel is seen equally often and transposed convolutions leave
no checkerboard."""

MAX_WIDENING = 8
SHORT_SIDE = range(3, 9)
LONG_SIDE = range(3, 17)
IMAGE_CHANNELS = range(1, 5)


@dataclass(frozen=True)
class Pyramid:
    """Channels of each stage from the image to the top, and the height and width of the top map."""

    channels: tuple[int, ...]
    top: tuple[int, int]


def pyramid(image_shape: Sequence[int], width: int) -> Pyramid:
    """Plan the stages for images of shape (C, H, W).

    Both sides are halved while they are even and the shorter one is above 4. The first stage has
    `width` channels, each further one twice as many, at most 8 * width.

    Raises:
        ValueError: no stage is possible, or the top map is not 3 to 8 on its shorter side and at
            most 16 on its longer one (where it is larger, a top feature sees only a sliver of the
            image). The message names the nearest sizes that work.
    """
    if len(image_shape) != 3 or not all(
        isinstance(size, Integral) and size >= 1 for size in image_shape
    ):
        raise ValueError(
            f"image_shape must be three positive integers (C, H, W) (got {image_shape!r})"
        )
    if width < 1:
        raise ValueError(f"width must be a positive number of channels (got {width})")
    image_channels, height, image_width = image_shape
    if image_channels not in IMAGE_CHANNELS:
        raise ValueError(
            f"images must have {IMAGE_CHANNELS[0]} to {IMAGE_CHANNELS[-1]} channels "
            f"(got {image_channels} in {tuple(image_shape)})"
        )

    stages, top = _halve(height, image_width)
    if not _fits(stages, top):
        raise ValueError(
            f"images of {height}x{image_width} do not halve evenly to a top map of "
            f"{SHORT_SIDE[0]} to {SHORT_SIDE[-1]} pixels (longer side: at most {LONG_SIDE[-1]}): "
            f"resize or crop them, for example to {_nearest(height, image_width)}. Square sizes "
            "that work are 3, 4, 5 or 7 times a power of two: 6, 8, 10, 12, 14, 16, 20, 24, 28 ..."
        )
    channels = tuple(min(2**stage, MAX_WIDENING) * width for stage in range(stages))
    return Pyramid(channels, top)


def _halve(height: int, width: int) -> tuple[int, tuple[int, int]]:
    stages = 0
    while height % 2 == width % 2 == 0 and min(height, width) > 4:
        height, width, stages = height // 2, width // 2, stages + 1
    return stages, (height, width)


def _fits(stages: int, top: tuple[int, int]) -> bool:
    return stages >= 1 and min(top) in SHORT_SIDE and max(top) in LONG_SIDE


def _nearest(height: int, width: int) -> str:
    """The nearest sizes no larger and no smaller that work; square ones for a square."""
    tops = [(h, w) for h in LONG_SIDE for w in LONG_SIDE if height != width or h == w]
    doublings = range(1, max(height, width).bit_length() + 1)
    sizes = {(h << d, w << d) for h, w in tops for d in doublings if _fits(*_halve(h << d, w << d))}
    smaller = [(h, w) for h, w in sizes if h <= height and w <= width]
    larger = [(h, w) for h, w in sizes if h >= height and w >= width]

    def distance(size: tuple[int, int]) -> tuple[int, int]:
        return abs(size[0] - height) + abs(size[1] - width), abs(size[0] - height)

    nearest = [min(side, key=distance) for side in (smaller, larger) if side]
    return " or ".join(f"{h}x{w}" for h, w in nearest)
