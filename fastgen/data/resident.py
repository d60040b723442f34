"""A dataset that lies on the device as a whole, so that a batch is one gather there."""

from __future__ import annotations

import torch
from torch import Tensor

from .batches import Batch, Batches
from .pixels import to_float
from .storage import images_per_chunk


class ResidentImages:
    """The bytes and labels of a stream's dataset on its device.

    A batch costs the host nothing but its positions: 8 bytes an image travel instead of the image.

    Args:
        batches: whose dataset, device and memory layout are taken.
    """

    def __init__(self, batches: Batches) -> None:
        dataset, self._format = batches.dataset, batches.memory_format
        self._last = self._format is torch.channels_last
        channels, height, width = dataset.image_shape
        self._shape = (channels, height, width)
        images = torch.empty(
            (len(dataset), channels, height, width),
            dtype=torch.uint8,
            device=batches.device,
            memory_format=self._format,
        )
        at_once = images_per_chunk(channels * height * width)
        for start in range(0, len(dataset), at_once):
            stop = min(start + at_once, len(dataset))
            images[start:stop] = torch.from_numpy(dataset.gather(range(start, stop)))
        # One row of bytes per image, in the order in which a batch has them.
        self._rows = images.permute(0, 2, 3, 1).flatten(1) if self._last else images.flatten(1)
        self._labels = (
            None if dataset.labels is None else torch.from_numpy(dataset.labels).to(batches.device)
        )

    @staticmethod
    def nbytes(batches: Batches) -> int:
        """How many bytes of the device the pixels take."""
        channels, height, width = batches.dataset.image_shape
        return len(batches.dataset) * channels * height * width

    def batch(self, positions: Tensor) -> Batch:
        """The images at int64 positions (n,) on the device, as `Batches.batch` gives them."""
        rows = self._rows.index_select(0, positions)
        channels, height, width = self._shape
        if self._last:
            pixels = rows.view(-1, height, width, channels).permute(0, 3, 1, 2)
        else:
            pixels = rows.view(-1, channels, height, width)
        labels = None if self._labels is None else self._labels.index_select(0, positions)
        return Batch(to_float(pixels), labels)
