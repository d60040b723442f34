"""scikit-learn's digits."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from fastgen.data import Splits, load

Whole = Callable[[Splits], tuple[np.ndarray, np.ndarray]]
SCANS = load_digits()


def test_native_size_is_scikit_learns_scans_as_bytes(whole: Whole) -> None:
    images, labels = whole(load("digits", image_size=8))
    assert images.dtype == np.uint8
    np.testing.assert_allclose(images[:, 0] * (16 / 255), SCANS.images, atol=0.5 * 16 / 255)
    assert (images[:, 0][SCANS.images == 16] == 255).all()
    np.testing.assert_array_equal(labels, SCANS.target)


def test_the_default_is_sixteen_pixels_by_pillows_bicubic(whole: Whole) -> None:
    images, _ = whole(load())
    assert images.shape == (1797, 1, 16, 16)
    native = np.rint(SCANS.images * 255 / 16).astype(np.uint8)
    for row in (0, 17, 1796):
        expected = Image.fromarray(native[row]).resize((16, 16), Image.Resampling.BICUBIC)
        np.testing.assert_array_equal(images[row, 0], np.asarray(expected))


def test_ten_classes_are_stratified() -> None:
    train, held_out = load()
    assert train.class_names == held_out.class_names == tuple("0123456789")
    assert (len(train), len(held_out)) == (1438, 359)
    assert held_out.labels is not None
    shares = np.bincount(held_out.labels) / np.bincount(SCANS.target)
    np.testing.assert_allclose(shares, 0.2, atol=0.007)


def test_every_load_gives_the_same() -> None:
    for once, again in zip(load("digits"), load("digits"), strict=True):
        np.testing.assert_array_equal(once.images, again.images)
        np.testing.assert_array_equal(once.labels, again.labels)


@pytest.mark.parametrize("size", [7, 28, 33])
def test_any_size_and_three_channels(size: int) -> None:
    train = load("digits", image_size=size, channels=3).train
    assert train.image_shape == (3, size, size)
    images = train.gather(range(20))
    assert (images == images[:, :1]).all()
    assert images.max() > 200
