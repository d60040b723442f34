"""The IDX files."""

from __future__ import annotations

import gzip
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from fastgen.data import load

Refused = Callable[..., str]
TRAIN, TEST = 24, 5
RNG = np.random.default_rng(0)
ARRAYS = {
    "train-images-idx3-ubyte": RNG.integers(0, 256, (TRAIN, 28, 28), dtype=np.uint8),
    "train-labels-idx1-ubyte": np.arange(TRAIN, dtype=np.uint8) % 9,
    "t10k-images-idx3-ubyte": RNG.integers(0, 256, (TEST, 28, 28), dtype=np.uint8),
    "t10k-labels-idx1-ubyte": np.array([9, 0, 1, 2, 3], dtype=np.uint8),
}


def idx(array: np.ndarray) -> bytes:
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, array in ARRAYS.items():
        (tmp_path / name).write_bytes(idx(array))
    return tmp_path


def assert_is_the_data(folder: Path) -> None:
    train, held_out = load(f"mnist:{folder}")
    for dataset, prefix in ((train, "train"), (held_out, "t10k")):
        np.testing.assert_array_equal(dataset.images[:, 0], ARRAYS[f"{prefix}-images-idx3-ubyte"])
        np.testing.assert_array_equal(dataset.labels, ARRAYS[f"{prefix}-labels-idx1-ubyte"])
        assert dataset.class_names == tuple("0123456789")


def test_plain_files_are_read_and_the_test_set_is_held_out(folder: Path) -> None:
    assert_is_the_data(folder)


@pytest.mark.parametrize("spelling", ["{}-images.idx3-ubyte", "{}-images-idx3.ubyte"])
@pytest.mark.parametrize("ending", ["", ".gz"])
def test_every_spelling_is_found_gzipped_or_not(folder: Path, spelling: str, ending: str) -> None:
    for name, array in ARRAYS.items():
        (folder / name).unlink()
        prefix, kind, form, _ = name.split("-")
        respelled = spelling.replace("images", kind).replace("idx3", form).format(prefix)
        content = idx(array)
        (folder / (respelled + ending)).write_bytes(gzip.compress(content) if ending else content)
    assert_is_the_data(folder)


def test_the_content_tells_whether_it_is_gzipped(folder: Path) -> None:
    plain = folder / "t10k-images-idx3-ubyte"
    plain.rename(plain.with_name(plain.name + ".gz"))
    labels = folder / "t10k-labels-idx1-ubyte"
    labels.write_bytes(gzip.compress(labels.read_bytes()))
    assert_is_the_data(folder)


def test_image_size_resizes_both_sets(folder: Path) -> None:
    splits = load(f"mnist:{folder}", image_size=32, channels=3)
    assert splits.train.image_shape == splits.held_out.image_shape == (3, 32, 32)


@pytest.mark.parametrize("name", ARRAYS)
def test_a_missing_file_is_named(folder: Path, refused: Refused, name: str) -> None:
    (folder / name).unlink()
    refused(f"mnist:{folder}", f"lacks {name} (or {name}.gz)")


DAMAGE: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "short": (lambda content: content[:-1], "truncated"),
    "long": (lambda content: content + b"\0", "left over"),
    "header cut": (lambda content: content[:6], "truncated"),
    "empty": (lambda content: b"", "an empty file"),
    "type": (lambda content: b"\0\0\x0d" + content[3:], "00 00 0d"),
    "text": (lambda content: b"<html>not found</html>", "must start with the bytes 00 00 08"),
    "no images": (lambda content: content[:4] + bytes(12), "is empty"),
    "huge": (lambda content: content[:4] + b"\xff" * 12, "truncated"),
    "gzip cut": (lambda content: gzip.compress(content)[:-40], "cannot read"),
    "gzip damaged": (lambda content: gzip.compress(content)[:40] + b"\xff" * 40, "cannot read"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_file_is_named_with_its_damage(
    folder: Path, refused: Refused, damage: str
) -> None:
    harm, word = DAMAGE[damage]
    path = folder / "train-images-idx3-ubyte"
    path.write_bytes(harm(path.read_bytes()))
    refused(f"mnist:{folder}", path.name, word)


def test_labels_in_the_place_of_images_are_told_by_their_dimensions(
    folder: Path, refused: Refused
) -> None:
    labels = (folder / "t10k-labels-idx1-ubyte").read_bytes()
    (folder / "t10k-images-idx3-ubyte").write_bytes(labels)
    refused(f"mnist:{folder}", "t10k-images", "3 dimensions", "00 00 08 01")


def test_images_and_labels_must_be_equally_many(folder: Path, refused: Refused) -> None:
    (folder / "train-labels-idx1-ubyte").write_bytes(idx(np.zeros(TRAIN - 1, np.uint8)))
    refused(f"mnist:{folder}", "24 images", "23 labels")


def test_both_sets_must_have_images_of_one_size(folder: Path, refused: Refused) -> None:
    (folder / "t10k-images-idx3-ubyte").write_bytes(idx(np.zeros((TEST, 20, 28), np.uint8)))
    refused(f"mnist:{folder}", "(1, 28, 28)", "(1, 20, 28)")
