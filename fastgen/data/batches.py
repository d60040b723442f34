"""Shuffled batches as a pure function of (seed, index)."""

from __future__ import annotations

from functools import lru_cache, partial
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .dataset import ImageDataset, Splits
from .pixels import to_float
from .shuffling import permutation


class Batch(NamedTuple):
    """Images and, where the data has them, labels.

    Attributes:
        images: float32 tensor of shape (B, C, H, W) in [-1, 1].
        labels: int64 tensor of shape (B,), or None.
    """

    images: Tensor
    labels: Tensor | None


class Batches:
    """An endless stream of shuffled batches, of which any can be had without those before it.

    Position q of the stream belongs to epoch q // N; the epoch's order is a permutation of the N
    images, a function of (seed, epoch). Batch k takes positions k B .. (k + 1) B - 1. So each epoch
    visits every image exactly once, a batch may straddle epochs (and may be larger than the set),
    and a resumed run sees the same batches as an uninterrupted one. Of P processes that train
    together, process r takes the r-th of P equal parts of every batch.

    Bytes travel to the device and become floats there. To CUDA they go from pinned memory, without
    waiting for the device.

    Args:
        dataset: the images.
        batch_size: B >= 1.
        seed: any integer >= 0.
        device: where the batches lie.
        channels_last: memory layout of the images: ``torch.channels_last`` (also for one channel,
            where the strides alone tell the layout), else contiguous (N, C, H, W).

    Raises:
        ValueError: for an empty dataset, or a batch_size, seed or index out of range.
        TypeError: for what is no `ImageDataset`.
    """

    def __init__(
        self,
        dataset: ImageDataset,
        batch_size: int,
        *,
        seed: int,
        device: torch.device | str = "cpu",
        channels_last: bool = True,
    ) -> None:
        if not isinstance(dataset, ImageDataset):
            hint = "; take its .train or .held_out" if isinstance(dataset, Splits) else ""
            kind = type(dataset).__name__
            raise TypeError(f"dataset must be a fastgen.data.ImageDataset (got {kind}{hint})")
        if len(dataset) == 0:
            raise ValueError("the dataset is empty: there is nothing to draw batches from")
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1 (got {batch_size})")
        if seed < 0:
            raise ValueError(f"seed must not be negative (got {seed})")
        self.dataset = dataset
        self.batch_size = batch_size
        self.seed = seed
        self.device = torch.device(device)
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        # Two: the current epoch's order, and the next one's for the batches that straddle.
        self._permutation = lru_cache(maxsize=2)(partial(permutation, len(dataset), seed))

    def positions(self, index: int) -> NDArray[np.int64]:
        """Which images of the dataset batch `index` holds: int64 of shape (B,)."""
        if index < 0:
            raise ValueError(f"index of a batch must not be negative (got {index})")
        count = len(self.dataset)
        start, stop = index * self.batch_size, (index + 1) * self.batch_size
        return np.concatenate(
            [
                self._permutation(epoch)[max(start - epoch * count, 0) : stop - epoch * count]
                for epoch in range(start // count, (stop - 1) // count + 1)
            ]
        )

    def batch(self, index: int) -> Batch:
        """Batch `index` >= 0 of the stream, on the device."""
        return self.at(self.positions(index))

    def at(self, positions: NDArray[np.int64]) -> Batch:
        """The images at these positions of the dataset as a batch, on the device."""
        # While they are bytes; and not by `contiguous`, which leaves one channel the strides of
        # NCHW: a convolution whose weight is not channels_last would go on in that layout.
        pixels = self._move(self.dataset.gather(positions)).to(memory_format=self.memory_format)
        labels = self.dataset.labels
        return Batch(to_float(pixels), None if labels is None else self._move(labels[positions]))

    def _move(self, array: NDArray[Any]) -> Tensor:
        tensor = torch.from_numpy(array)
        if self.device.type == "cuda":
            tensor = tensor.pin_memory()
        return tensor.to(self.device, non_blocking=True)
