"""From arrays of pixels as they come to uint8 images of the size and channels asked for."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import DataError, requires
from .storage import Shape, fits_in_memory, images_per_chunk, store

# Less than half of 1/255: within it of 0, 1 or -1 a float is the same byte as 0, 1 or -1.
_RANGE_SLACK = 1e-3


def to_images(
    raw: NDArray[Any], *, image_size: int | None, channels: int | None, key: object, name: str
) -> NDArray[np.uint8]:
    """Convert an array of images to uint8, to the channels and to the size asked for.

    Args:
        raw: (N, C, H, W), C in 1..4: uint8 as it is; floats in [0, 1] or, when one is negative,
            [-1, 1] are rounded to 8 bits. May be memory-mapped: it is read in parts.
        image_size: crop the central square and resize it (bicubic) to this many pixels a side;
            None keeps height and width.
        channels: 3 repeats a single channel, 1 takes the luma of three; None keeps them.
        key: what the pixels depend on, for the name of a memory-mapped copy.
        name: how messages call the array.

    Returns:
        uint8 array (N, C', H', W'): `raw` itself where nothing is to be done and it lies in memory
        or is a file too large for it, else a copy.

    Raises:
        DataError: for another dtype or range of values, or channels that cannot be made.
    """
    count, given_channels, height, width = raw.shape
    if raw.dtype != np.uint8 and raw.dtype.kind != "f":
        raise DataError(
            f"{name} must hold uint8 or floating-point pixels (got {raw.dtype}): convert it, "
            "for whole numbers in 0 .. 255 by array.astype(numpy.uint8)"
        )
    kept = channels in (None, given_channels)
    if not kept and (given_channels, channels) not in ((1, 3), (3, 1)):
        raise DataError(
            f"channels={channels} cannot be made of the {given_channels} channels of {name}: "
            f"only 1 and 3 become each other; leave it out to keep {given_channels}"
        )
    sized = image_size is None or (height, width) == (image_size, image_size)

    if raw.dtype == np.uint8 and kept and sized:
        mapped = isinstance(raw, np.memmap)
        return (
            np.array(raw, order="C", subok=False) if mapped and fits_in_memory(raw.nbytes) else raw
        )
    conversion = _Conversion(raw, channels or given_channels, None if sized else image_size, name)
    side = (height, width) if image_size is None else (image_size, image_size)
    shape: Shape = (count, channels or given_channels, *side)
    return store(shape, conversion.chunks(), (key, image_size, channels))[0]


@dataclass
class _Conversion:
    raw: NDArray[Any]
    channels: int
    image_size: int | None
    name: str

    def chunks(self) -> Iterator[NDArray[np.uint8]]:
        low = -1.0 if self.raw.dtype != np.uint8 and self._lowest() < -_RANGE_SLACK else 0.0
        for part in self._parts():
            images = part if part.dtype == np.uint8 else quantize(part, low)
            if images.shape[1] != self.channels:
                images = luma(images) if self.channels == 1 else images.repeat(3, axis=1)
            yield images if self.image_size is None else resize(images, self.image_size)

    def _parts(self) -> Iterator[NDArray[Any]]:
        step = images_per_chunk(self.raw[:1].nbytes)
        for start in range(0, len(self.raw), step):
            yield self.raw[start : start + step]

    def _lowest(self) -> float:
        """The smallest value, once all are known to be finite and in [-1, 1]."""
        extremes = np.array([(part.min(), part.max()) for part in self._parts()], dtype=np.float64)
        lowest, highest = extremes[:, 0].min(), extremes[:, 1].max()
        if not (np.isfinite(lowest) and np.isfinite(highest)):
            raise DataError(f"{self.name} contains NaN or infinity: pixels must be finite")
        if lowest < -1 - _RANGE_SLACK or highest > 1 + _RANGE_SLACK:
            raise DataError(
                f"{self.name} has floating-point pixels in [{lowest:g}, {highest:g}]; allowed are "
                "[0, 1] and [-1, 1]: rescale them, or save bytes 0 .. 255 as uint8"
            )
        return float(lowest)


def quantize(images: NDArray[Any], low: float) -> NDArray[np.uint8]:
    """Floats in [low, 1] to bytes, rounded: low becomes 0 and 1 becomes 255."""
    scaled = (images.astype(np.float64) - low) * (255.0 / (1.0 - low))
    return np.rint(scaled).clip(0, 255).astype(np.uint8)


def luma(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Gray of color, (N, 3, H, W) to (N, 1, H, W): 0.299 R + 0.587 G + 0.114 B (ITU-R BT.601).

    In 16-bit fixed point with Pillow's constants, so that arrays and files give the same bytes.
    """
    weights = np.array([19595, 38470, 7471], dtype=np.uint32).reshape(3, 1, 1)
    gray = (images * weights).sum(axis=1, keepdims=True, dtype=np.uint32)
    return np.asarray((gray + 2**15) >> 16, dtype=np.uint8)


def central_square(width: int, height: int) -> tuple[int, int, int, int]:
    """The largest square in the middle of a picture: left, top, right, bottom."""
    side = min(width, height)
    left, top = (width - side) // 2, (height - side) // 2
    return left, top, left + side, top + side


def resize(images: NDArray[np.uint8], image_size: int) -> NDArray[np.uint8]:
    """The central squares of (N, C, H, W), resized to image_size by Pillow's bicubic filter.

    Each channel by itself; when it shrinks, the filter is widened and so does not alias.
    """
    with requires("Pillow"):
        from PIL import Image

    left, top, right, bottom = central_square(images.shape[3], images.shape[2])
    planes = np.ascontiguousarray(images[:, :, top:bottom, left:right])
    planes = planes.reshape(-1, bottom - top, right - left)
    resized = np.empty((len(planes), image_size, image_size), np.uint8)
    for plane, target in zip(planes, resized, strict=True):
        picture = Image.fromarray(plane)
        target[:] = np.asarray(picture.resize(target.shape, Image.Resampling.BICUBIC))
    return resized.reshape(*images.shape[:2], image_size, image_size)
