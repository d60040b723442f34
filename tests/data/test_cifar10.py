"""The binary version of CIFAR-10."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from fastgen.data import load

Refused = Callable[..., str]
NAMES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (6, 4, 3, 32, 32), dtype=np.uint8)
LABELS = RNG.integers(0, 10, (6, 4), dtype=np.uint8)
FILES = [*(f"data_batch_{number}.bin" for number in range(1, 6)), "test_batch.bin"]


def write(folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    for name, images, labels in zip(FILES, IMAGES, LABELS, strict=True):
        rows = [
            bytes([label]) + image.tobytes() for image, label in zip(images, labels, strict=True)
        ]
        (folder / name).write_bytes(b"".join(rows))
    return folder


@pytest.mark.parametrize("inner", ["", "cifar-10-batches-bin"])
def test_the_five_batches_are_trained_on_and_the_test_batch_is_held_out(
    tmp_path: Path, inner: str
) -> None:
    folder = write(tmp_path / inner)
    (folder / "batches.meta.txt").write_text("\n".join(NAMES) + "\n\n")
    train, held_out = load(f"cifar10:{tmp_path}")
    np.testing.assert_array_equal(train.images, IMAGES[:5].reshape(-1, 3, 32, 32))
    np.testing.assert_array_equal(train.labels, LABELS[:5].flatten())
    np.testing.assert_array_equal(held_out.images, IMAGES[5])
    np.testing.assert_array_equal(held_out.labels, LABELS[5])
    assert train.class_names == held_out.class_names == tuple(NAMES)


def test_without_names_the_classes_are_numbered(tmp_path: Path) -> None:
    train = load(f"cifar10:{write(tmp_path)}", image_size=16, channels=1).train
    assert train.class_names == tuple("0123456789")
    assert train.image_shape == (1, 16, 16)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named(tmp_path: Path, refused: Refused, name: str) -> None:
    (write(tmp_path) / name).unlink()
    refused(f"cifar10:{tmp_path}", f"lacks {name}", "binary version")


def test_the_python_version_is_recognized(tmp_path: Path, refused: Refused) -> None:
    (tmp_path / "data_batch_1").write_bytes(b"\x80")
    refused(f"cifar10:{tmp_path}", "Python version", "never loaded")


@pytest.mark.parametrize("size", [0, 3072, 3074, 4 * 3073 - 1])
def test_a_truncated_file_is_named(tmp_path: Path, refused: Refused, size: int) -> None:
    path = write(tmp_path) / "data_batch_3.bin"
    path.write_bytes((path.read_bytes() * 2)[:size])
    refused(f"cifar10:{tmp_path}", "data_batch_3.bin", f"{size} bytes", "3073")


def test_a_label_above_nine_is_refused(tmp_path: Path, refused: Refused) -> None:
    path = write(tmp_path) / "test_batch.bin"
    path.write_bytes(b"\x0a" + path.read_bytes()[1:])
    refused(f"cifar10:{tmp_path}", "test_batch.bin", "label 10")


def test_a_wrong_number_of_names_is_refused(tmp_path: Path, refused: Refused) -> None:
    (write(tmp_path) / "batches.meta.txt").write_text("cat\ndog\n")
    refused(f"cifar10:{tmp_path}", "batches.meta.txt", "2 names")
