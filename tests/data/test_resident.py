"""A dataset on the device gives the batches that the host would have sent."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fastgen.data import Batches, ImageDataset
from fastgen.data import resident as resident_module
from fastgen.data.resident import ResidentImages


@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("part", [True, False])
def test_batches_are_equal_in_every_bit_and_stride(
    part: bool, channels: int, channels_last: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resident_module, "images_per_chunk", lambda nbytes: 4)
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (17, channels, 5, 3), dtype=np.uint8)
    labels = rng.integers(0, 4, 17)
    dataset = ImageDataset(pixels, labels)
    if part:
        dataset = dataset.select([3, 3, 16, 0, 7, 9, 11])
    batches = Batches(dataset, 6, seed=1, channels_last=channels_last)
    resident = ResidentImages(batches)
    assert ResidentImages.nbytes(batches) == dataset.images.nbytes
    for index in range(5):
        expected = batches.batch(index)
        found = resident.batch(torch.from_numpy(batches.positions(index)))
        assert torch.equal(found.images, expected.images)
        assert found.images.stride() == expected.images.stride()
        assert torch.equal(found.labels, expected.labels)  # type: ignore[arg-type]


def test_a_set_without_labels_has_none() -> None:
    batches = Batches(ImageDataset(np.zeros((3, 1, 2, 2), np.uint8)), 2, seed=0)
    assert ResidentImages(batches).batch(torch.tensor([0, 2])).labels is None
