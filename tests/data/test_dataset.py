"""Sets of images, their parts, their division and their fingerprints."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastgen.data import DataError, ImageDataset, fingerprint, hold_out

HELD_OUT_OF_40 = [0, 1, 5, 17, 25, 27, 28, 30]
FINGERPRINT = "90df1d1c33907a63"


def images(count: int, channels: int = 1, height: int = 3, width: int = 5) -> np.ndarray:
    shape = (count, channels, height, width)
    return np.random.default_rng(count).integers(0, 256, shape, dtype=np.uint8)


def labeled(count: int, classes: int) -> ImageDataset:
    labels = np.random.default_rng(classes).integers(0, classes, count)
    return ImageDataset(images(count), labels, class_names=tuple(map(str, range(classes))))


def test_a_part_of_a_part_holds_the_right_images_and_labels_without_copying_the_pixels() -> None:
    dataset = labeled(20, 4)
    part = dataset.select([3, 17, 5, 5]).select(np.array([2, 0]))
    assert part.base is dataset.base
    assert part.labels is not None
    assert dataset.labels is not None
    np.testing.assert_array_equal(part.images, dataset.base[[5, 3]])
    np.testing.assert_array_equal(part.gather([1, 1]), dataset.base[[3, 3]])
    np.testing.assert_array_equal(part.labels, dataset.labels[[5, 3]])
    assert (len(part), part.image_shape, part.classes) == (2, (1, 3, 5), 4)


@pytest.mark.parametrize("read", ["select", "gather"])
def test_positions_are_whole_numbers_and_no_mask(read: str) -> None:
    dataset = labeled(20, 4)
    at = getattr(dataset, read)
    with pytest.raises(DataError, match=r"positions .* bool; numpy.flatnonzero\(mask\) makes them"):
        at(dataset.labels == 2)
    with pytest.raises(DataError, match=r"positions must be whole numbers \(got float64\)"):
        at([0.5])
    assert len(at([])) == 0
    assert len(at(np.array([3, 1], np.uint8))) == 2


def test_gathered_images_can_be_changed_without_changing_the_set() -> None:
    dataset = ImageDataset(images(4))
    before = dataset.base.copy()
    gathered = dataset.gather([0, 1])
    gathered += 1
    np.testing.assert_array_equal(dataset.base, before)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"base": images(3).astype(np.float32)}, "uint8"),
        ({"base": images(3)[0]}, "shape"),
        ({"base": images(3)[:0]}, "non-empty"),
        ({"base": images(3, channels=5)}, "1 to 4 channels"),
        ({"base": images(3), "labels": np.zeros(2, np.int64)}, r"labels must be int64 of shape"),
        ({"base": images(3), "labels": np.zeros(3, np.int32)}, "int64"),
        ({"base": images(3), "labels": np.array([0, -1, 0])}, "labels must lie in"),
        (
            {"base": images(3), "labels": np.array([0, 2, 0]), "class_names": ("a", "b")},
            r"0 \.\. 1",
        ),
        ({"base": images(3), "indices": np.array([0, 3])}, "indices must lie in"),
    ],
)
def test_what_does_not_fit_together_is_refused(
    arguments: dict[str, np.ndarray], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        ImageDataset(**arguments)


@settings(deadline=None)
@given(st.integers(10, 300), st.integers(1, 12))
def test_the_division_is_complete_disjoint_and_keeps_the_share_of_every_class(
    count: int, classes: int
) -> None:
    dataset = labeled(count, classes)
    train, held_out = hold_out(dataset)
    assert train.indices is not None
    assert held_out.indices is not None
    assert held_out.labels is not None
    together = np.concatenate([train.indices, held_out.indices])
    np.testing.assert_array_equal(np.sort(together), np.arange(count))
    assert len(held_out) == round(0.2 * count)

    of_each = np.bincount(dataset.labels, minlength=classes)
    held_of_each = np.bincount(held_out.labels, minlength=classes)
    np.testing.assert_array_less(abs(held_of_each - of_each * len(held_out) / count), 1 + 1e-9)


def test_the_division_never_changes() -> None:
    # A changed division would let a resumed run train on what it is evaluated on.
    held_out = hold_out(ImageDataset(images(40))).held_out
    assert held_out.indices is not None
    assert held_out.indices.tolist() == HELD_OUT_OF_40
    for _ in range(2):
        np.random.seed(0)
        assert hold_out(ImageDataset(images(40))).held_out.indices.tolist() == HELD_OUT_OF_40


def test_the_held_out_images_look_like_a_random_choice() -> None:
    held_out = hold_out(ImageDataset(np.zeros((5000, 1, 1, 1), np.uint8))).held_out
    assert held_out.indices is not None
    tenths = np.bincount(held_out.indices // 500, minlength=10)
    assert 70 < tenths.min() <= tenths.max() < 130  # expected 100 +- 9
    assert len(set(np.diff(np.sort(held_out.indices)))) > 10


def test_at_most_ten_thousand_images_are_held_out() -> None:
    splits = hold_out(ImageDataset(np.zeros((60_000, 1, 1, 1), np.uint8)))
    assert (len(splits.train), len(splits.held_out)) == (50_000, 10_000)


def test_fewer_than_ten_images_are_refused() -> None:
    assert len(hold_out(ImageDataset(images(10))).held_out) == 2
    with pytest.raises(DataError, match="9 images, at least 10"):
        hold_out(ImageDataset(images(9)))


def test_the_fingerprint_tells_every_difference_in_a_small_set() -> None:
    dataset = labeled(20, 3)
    assert dataset.labels is not None
    pixels, labels = dataset.base.copy(), dataset.labels.copy()
    pixels[13, 0, 2, 4] ^= 1
    labels[7] = (labels[7] + 1) % 3
    others = [
        replace(dataset, base=pixels),
        replace(dataset, labels=labels),
        replace(dataset, labels=None),
        replace(dataset, class_names=("a", "b", "c")),
        replace(dataset, base=dataset.base.reshape(20, 1, 5, 3)),
        dataset.select(range(19)),
        dataset.select(range(19, -1, -1)),
    ]
    digests = {fingerprint(other) for other in [dataset, *others]}
    assert len(digests) == 1 + len(others)


def test_the_fingerprint_does_not_depend_on_where_the_pixels_lie() -> None:
    dataset = labeled(20, 3)
    assert dataset.labels is not None
    shuffled = np.random.default_rng(0).permutation(20)
    elsewhere = ImageDataset(
        np.asfortranarray(dataset.base[shuffled]),
        dataset.labels,
        np.argsort(shuffled),
        dataset.class_names,
        description="other",
    )
    assert fingerprint(elsewhere) == fingerprint(dataset)


def test_the_fingerprint_never_changes() -> None:
    # A checkpoint keeps it: another way to compute it would look like other data.
    base = np.arange(120, dtype=np.uint8).reshape(10, 3, 2, 2)
    assert fingerprint(ImageDataset(base, np.arange(10) % 2, class_names=("a", "b"))) == FINGERPRINT


def test_the_fingerprint_of_a_large_set_covers_evenly_spaced_images() -> None:
    dataset = ImageDataset(np.zeros((20, 1, 1024, 2048), np.uint8))
    before = fingerprint(dataset)
    seen = []
    for row in range(20):
        dataset.base[row, 0, 511, 3] = 1
        seen.append(fingerprint(dataset) != before)
        dataset.base[row, 0, 511, 3] = 0
    assert sum(seen) == 16
    assert max(np.diff(np.flatnonzero(seen))) <= 2
