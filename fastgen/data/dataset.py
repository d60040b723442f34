"""A set of images, in memory or memory-mapped, and its division into train and held out."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .errors import DataError
from .shuffling import permutation

HELD_OUT_SHARE = 0.2
HELD_OUT_AT_MOST = 10_000
FEWEST_IMAGES = 10
_HELD_OUT_SEED = 20_170_618  # belongs to the data: the training seed must never move the split


@dataclass(frozen=True, eq=False, repr=False)
class ImageDataset:
    """N images of one shape, with or without labels.

    The pixels are never copied to make a part of a set: a part keeps the whole `base` array, which
    may be a memory-mapped file larger than the memory, and says by `indices` which of its images
    belong to it. `gather` reads some images, `images` all.

    Attributes:
        base: uint8 array of shape (M, C, H, W), C in 1..4, in memory or memory-mapped, any strides.
        labels: int64 array of shape (N,), the class of each image in 0 .. classes - 1, or None.
        indices: int64 array of shape (N,), image i of this set is ``base[indices[i]]``. None: all
            of `base` in order, N = M.
        class_names: one name per class, or None.
        description: where the images come from, for people.
        skipped: (path, reason) of every file that could not be read and is not among the images.
        left_out: a line about the files of other kinds beside the images; empty if there are none.

    Raises:
        DataError: when these do not fit together.
    """

    base: NDArray[np.uint8]
    labels: NDArray[np.int64] | None = None
    indices: NDArray[np.int64] | None = None
    class_names: tuple[str, ...] | None = None
    description: str = "images"
    skipped: tuple[tuple[str, str], ...] = ()
    left_out: str = ""

    def __post_init__(self) -> None:
        if self.base.dtype != np.uint8 or self.base.ndim != 4 or 0 in self.base.shape:
            raise DataError(
                "images must be a non-empty uint8 array of shape (N, C, H, W) "
                f"(got {self.base.dtype} of shape {self.base.shape})"
            )
        if self.base.shape[1] > 4:
            raise DataError(f"images must have 1 to 4 channels (got {self.base.shape[1]})")
        if self.indices is not None:
            _check_integers("indices", self.indices, len(self), len(self.base))
        if self.labels is not None:
            _check_integers("labels", self.labels, len(self), self.classes)

    def __len__(self) -> int:
        return len(self.base) if self.indices is None else len(self.indices)

    def __repr__(self) -> str:
        channels, height, width = self.image_shape
        labels = f", {self.classes} classes" if self.labels is not None else ""
        return f"<{self.description}: {len(self)} images {channels}x{height}x{width}{labels}>"

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        _, channels, height, width = self.base.shape
        return channels, height, width

    @property
    def classes(self) -> int:
        """Number of classes: of the names, or else of the labels; 0 without labels."""
        if self.labels is None:
            return 0
        if self.class_names is not None:
            return len(self.class_names)
        return int(self.labels.max(initial=-1)) + 1

    @property
    def images(self) -> NDArray[np.uint8]:
        """All images, uint8 of shape (N, C, H, W). For a part of a set a copy, made each time."""
        return self.base if self.indices is None else self.base[self.indices]

    def gather(self, positions: ArrayLike) -> NDArray[np.uint8]:
        """The images at these positions of the set: a new uint8 array of shape (n, C, H, W)."""
        rows = _positions(positions)
        return np.asarray(self.base[rows if self.indices is None else self.indices[rows]])

    def select(self, positions: ArrayLike) -> ImageDataset:
        """The part of the set at these positions, in their order, over the same pixels.

        ``select(np.flatnonzero(dataset.labels == 3))`` is one class.

        Raises:
            DataError: the positions are no whole numbers, but a mask for one.
        """
        rows = _positions(positions)
        return replace(
            self,
            indices=rows if self.indices is None else self.indices[rows],
            labels=None if self.labels is None else self.labels[rows],
        )


def _positions(given: ArrayLike) -> NDArray[np.int64]:
    positions = np.asarray(given)
    if positions.size and positions.dtype.kind not in "iu":
        remedy = "; numpy.flatnonzero(mask) makes them of a mask" * (positions.dtype == np.bool_)
        raise DataError(f"positions must be whole numbers (got {positions.dtype}{remedy})")
    return positions.astype(np.int64, copy=False)


def _check_integers(name: str, values: NDArray[np.int64], count: int, limit: int) -> None:
    if values.dtype != np.int64 or values.shape != (count,):
        raise DataError(
            f"{name} must be int64 of shape ({count},) (got {values.dtype} of shape {values.shape})"
        )
    if count and not 0 <= values.min() <= values.max() < limit:
        raise DataError(
            f"{name} must lie in 0 .. {limit - 1} (got {values.min()} .. {values.max()})"
        )


class Splits(NamedTuple):
    """A source's images: those to train on, and those that training never sees.

    Where a source has an official test set that is `held_out`; elsewhere `hold_out` divides it.
    """

    train: ImageDataset
    held_out: ImageDataset


def hold_out(dataset: ImageDataset) -> Splits:
    """Divide a set: 20 % held out (rounded, at most 10,000 images), the rest to train on.

    The division depends on nothing but the number of images and their labels. The images are put in
    random order, then sorted by class, and evenly spaced ones are held out, so that the share of
    each class is kept to within one image.

    Raises:
        DataError: for fewer than 10 images.
    """
    count = len(dataset)
    if count < FEWEST_IMAGES:
        unread = f" ({len(dataset.skipped)} more cannot be read)" if dataset.skipped else ""
        left_out = f"; {dataset.left_out}" if dataset.left_out else ""
        raise DataError(
            f"{dataset.description} has {count} images{unread}, at least {FEWEST_IMAGES} are "
            f"needed: {HELD_OUT_SHARE:.0%} of them are held out{left_out}"
        )
    held = min(round(count * HELD_OUT_SHARE), HELD_OUT_AT_MOST)

    order = permutation(count, _HELD_OUT_SEED)
    if dataset.labels is not None:
        order = order[np.argsort(dataset.labels[order], kind="stable")]
    chosen = np.zeros(count, dtype=bool)
    chosen[order[(2 * np.arange(held) + 1) * count // (2 * held)]] = True
    return Splits(dataset.select(np.flatnonzero(~chosen)), dataset.select(np.flatnonzero(chosen)))
