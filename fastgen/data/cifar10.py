"""CIFAR-10, the binary version."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .conversion import to_images
from .dataset import ImageDataset, Splits
from .errors import DataError, reading
from .storage import file_key

_CLASSES = 10
_SHAPE = (3, 32, 32)
_RECORD = 1 + 3 * 32 * 32  # the label, then the red, green and blue planes
_TRAIN = tuple(f"data_batch_{number}.bin" for number in range(1, 6))
_HELD_OUT = ("test_batch.bin",)


def load_cifar10(argument: str, image_size: int | None, channels: int | None) -> Splits:
    """``data_batch_1.bin`` .. ``data_batch_5.bin`` to train on, ``test_batch.bin`` held out.

    They lie in the folder itself or in its ``cifar-10-batches-bin``. ``batches.meta.txt``, if
    there, names the classes. The images keep their 32 x 32 pixels unless image_size is given.
    """
    folder = Path(argument)
    inner = folder / "cifar-10-batches-bin"
    if inner.is_dir():
        folder = inner
    class_names = _class_names(folder / "batches.meta.txt")

    def dataset(names: tuple[str, ...]) -> ImageDataset:
        paths = [folder / name for name in names]
        records = np.concatenate([_read_records(path) for path in paths])
        images = to_images(
            records[:, 1:].reshape(-1, *_SHAPE),
            image_size=image_size,
            channels=channels,
            key=[file_key(path.resolve()) for path in paths],
            name=str(folder),
        )
        return ImageDataset(
            images,
            labels=records[:, 0].astype(np.int64),
            class_names=class_names,
            description=f"cifar10:{argument}",
        )

    return Splits(dataset(_TRAIN), dataset(_HELD_OUT))


def _read_records(path: Path) -> NDArray[np.uint8]:
    """(N, 3073): the label and the pixels of each image."""
    if not path.is_file():
        python_version = path.with_suffix("").is_file()
        raise DataError(
            f"cifar10:{path.parent} lacks {path.name}: the folder must hold the binary version, "
            f"{_TRAIN[0]} .. {_TRAIN[-1]} and {_HELD_OUT[0]}"
            + (
                " (this is the Python version, pickle files, which are never loaded)"
                * python_version
            )
        )
    with reading(path):
        content = np.fromfile(path, np.uint8)
    if len(content) == 0 or len(content) % _RECORD:
        raise DataError(
            f"{path} has {len(content)} bytes, which is no multiple of {_RECORD} (one label and "
            "3 x 32 x 32 pixels): the file is truncated or another kind, get it again"
        )
    records = content.reshape(-1, _RECORD)
    if records[:, 0].max() >= _CLASSES:
        raise DataError(
            f"{path} has the label {records[:, 0].max()}, CIFAR-10 has 0 .. 9: it is another kind "
            "of file"
        )
    return records


def _class_names(path: Path) -> tuple[str, ...]:
    if not path.is_file():
        return tuple(str(number) for number in range(_CLASSES))
    with reading(path):
        names = tuple(path.read_text("utf-8", errors="replace").split())
    if len(names) != _CLASSES:
        raise DataError(f"{path} must name {_CLASSES} classes, one a line (got {len(names)} names)")
    return names
