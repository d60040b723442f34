"""Where a recorded step finds its batch: in memory that never moves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from fastgen.data import Batch, Batches
from fastgen.data.resident import ResidentImages


class Inputs(Protocol):
    """A batch in fixed memory."""

    def load(self, index: int) -> int | None:
        """Put batch `index` there, without waiting; returns its size, None if it does not fit."""

    def read(self) -> Batch:
        """The batch that is there; inside a recording."""


class GatheredInputs:
    """The whole dataset lies on the device, `read` gathers; only positions are copied."""

    def __init__(self, batches: Batches) -> None:
        self._batches, self._images = batches, ResidentImages(batches)
        self._positions = torch.zeros(batches.batch_size, dtype=torch.int64, device=batches.device)
        self._loaded: int | None = None

    def load(self, index: int) -> int:
        """Copy the positions of batch `index`."""
        if index != self._loaded:
            positions = torch.from_numpy(self._batches.positions(index))
            if self._positions.device.type == "cuda":
                # The allocator of pinned memory keeps it until the copy is done.
                positions = positions.pin_memory()
            self._positions.copy_(positions, non_blocking=True)
            self._loaded = index
        return self._batches.batch_size

    def read(self) -> Batch:
        """Gather the images."""
        return self._images.batch(self._positions)


class CopiedInputs:
    """Batches of any source are copied to where the first one was.

    Args:
        batch: gives batch number 0, 1, ... on the device.
        index: of a batch whose shape and layout the others have, or else do not fit.
    """

    def __init__(self, batch: Callable[[int], Batch], index: int) -> None:
        self._batch, self._loaded = batch, index
        images, labels = batch(index)
        self._static = Batch(images.detach().clone(), None if labels is None else labels.clone())

    def load(self, index: int) -> int | None:
        """Copy batch `index`."""
        if index != self._loaded:
            batch = self._batch(index)
            pairs = list(zip(self._static, batch, strict=True))
            if not all(map(_fits, *zip(*pairs, strict=True))):
                return None
            self._loaded = index
            for there, here in pairs:
                if there is not None and here is not None:
                    there.copy_(here, non_blocking=True)
        return len(self._static.images)

    def read(self) -> Batch:
        """The copy."""
        return self._static


def make_inputs(
    source: object,
    batch: Callable[[int], Batch],
    index: int,
    *,
    device: torch.device,
    room: int,
) -> Inputs:
    """The fastest way in for a source of batches.

    Args:
        source: of the batches.
        batch: gives them on the device.
        index: of the batch that is needed first.
        room: bytes of the device that the dataset may take.
    """
    # The same device, because bytes may become floats that differ in the last digit elsewhere.
    if (
        type(source) is Batches
        and source.device == device
        and ResidentImages.nbytes(source) <= room
    ):
        return GatheredInputs(source)
    return CopiedInputs(batch, index)


def _fits(one: Tensor | None, other: Tensor | None) -> bool:
    if one is None or other is None:
        return one is other
    return (one.shape, one.dtype, one.stride()) == (other.shape, other.dtype, other.stride())
