"""MNIST and its relatives (Fashion-MNIST, KMNIST, EMNIST): four files in the IDX format."""

from __future__ import annotations

import gzip
from io import BufferedIOBase
from math import prod
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .conversion import to_images
from .dataset import ImageDataset, Splits
from .errors import DataError, reading
from .storage import file_key

_UNSIGNED_BYTE = 0x08


def load_mnist(argument: str, image_size: int | None, channels: int | None) -> Splits:
    """The IDX files of a folder; the official test set is the held-out one.

    ``train-images-idx3-ubyte``, ``train-labels-idx1-ubyte``, ``t10k-images-idx3-ubyte`` and
    ``t10k-labels-idx1-ubyte``, gzipped (``.gz``) or not, also spelled ``train-images.idx3-ubyte``
    or ``train-images-idx3.ubyte``. The images keep their size (28) unless image_size is given.
    """
    folder = Path(argument)
    found = {prefix: _read_pair(folder, prefix) for prefix in ("train", "t10k")}
    classes = 1 + max(int(labels.max()) for _, labels, _ in found.values())

    def dataset(prefix: str) -> ImageDataset:
        pixels, labels, path = found[prefix]
        images = to_images(
            pixels[:, None],
            image_size=image_size,
            channels=channels,
            key=file_key(path.resolve()),
            name=str(path),
        )
        return ImageDataset(
            images,
            labels=labels.astype(np.int64),
            class_names=tuple(str(name) for name in range(classes)),
            description=f"mnist:{folder}",
        )

    splits = Splits(dataset("train"), dataset("t10k"))
    if splits.train.image_shape != splits.held_out.image_shape:
        raise DataError(
            f"mnist:{folder} has images (C, H, W) of {splits.train.image_shape} to train on and of "
            f"{splits.held_out.image_shape} held out: take four files of one data set"
        )
    return splits


def _read_pair(folder: Path, prefix: str) -> tuple[NDArray[np.uint8], NDArray[np.uint8], Path]:
    image_path = _find(folder, f"{prefix}-images-idx3-ubyte")
    images = read_idx(image_path, dimensions=3)
    label_path = _find(folder, f"{prefix}-labels-idx1-ubyte")
    labels = read_idx(label_path, dimensions=1)
    if len(images) != len(labels):
        raise DataError(
            f"{image_path} has {len(images)} images, {label_path} {len(labels)} labels: they must "
            "be of one data set"
        )
    return images, labels, image_path


def _find(folder: Path, name: str) -> Path:
    stem, format_, kind = name.rsplit("-", 2)
    spellings = (name, f"{stem}.{format_}-{kind}", f"{stem}-{format_}.{kind}")
    candidates = [folder / (name + ending) for name in spellings for ending in ("", ".gz")]
    path = next((path for path in candidates if path.is_file()), None)
    if path is None:
        raise DataError(
            f"mnist:{folder} lacks {name} (or {name}.gz): the folder must hold the four IDX files "
            "{train,t10k}-images-idx3-ubyte and {train,t10k}-labels-idx1-ubyte"
        )
    return path


def read_idx(path: Path, *, dimensions: int) -> NDArray[np.uint8]:
    """Read an IDX file of bytes, gzipped or not (its first bytes tell, not its name).

    The format: 0, 0, the type (8 for unsigned bytes), the number of dimensions, each dimension as
    a big-endian 32-bit number, the values row by row.

    Raises:
        DataError: for another type or number of dimensions, no values, missing or surplus bytes.
    """
    with reading(path), open(path, "rb") as file:
        zipped = file.read(2) == b"\x1f\x8b"
        file.seek(0)
        return _parse_idx(gzip.GzipFile(fileobj=file) if zipped else file, path, dimensions)


def _read_at_most(file: BufferedIOBase, size: int) -> bytes:
    # Not read(size): it sets aside what a damaged header asks for before it finds the file short.
    parts, missing = [], size
    while part := file.read(min(missing, 2**20)):
        parts.append(part)
        missing -= len(part)
    return b"".join(parts)


def _parse_idx(file: BufferedIOBase, path: Path, dimensions: int) -> NDArray[np.uint8]:
    magic = bytes((0, 0, _UNSIGNED_BYTE, dimensions))
    found = file.read(4)
    if found != magic:
        raise DataError(
            f"{path} must start with the bytes {magic.hex(' ')}, an IDX file of bytes in "
            f"{dimensions} dimensions (got {found.hex(' ') or 'an empty file'})"
        )
    header = file.read(4 * dimensions)
    if len(header) < 4 * dimensions:
        raise DataError(f"{path} ends within its header: the file is truncated, get it again")
    shape = tuple(int(size) for size in np.frombuffer(header, ">u4"))
    size = prod(shape)
    if size == 0:
        raise DataError(f"{path} is empty: its dimensions are {shape}")
    values = _read_at_most(file, size + 1)
    if len(values) != size:
        state = "is truncated" if len(values) < size else "has bytes left over"
        raise DataError(
            f"{path} {state}: {shape} makes {size} bytes of values, the file has "
            f"{len(values) if len(values) < size else 'more'}; get it again"
        )
    return np.frombuffer(values, np.uint8).reshape(shape)
