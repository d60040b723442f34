"""NumPy files: FILE.npy and FILE.npz. No pickle is ever loaded."""

from __future__ import annotations

import os
import zipfile
from math import prod
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from .conversion import to_images
from .dataset import ImageDataset, Splits, hold_out
from .errors import DataError, reading
from .storage import MEMORY_VARIABLE, file_key, fits_in_memory

_IMAGES = ("images", "x")
_LABELS = ("labels", "y")


def load_array(argument: str, image_size: int | None, channels: int | None) -> Splits:
    """Images from a NumPy file.

    ``.npy``: one array, uint8 or floating point, of shape (N, H, W), (N, C, H, W) or (N, H, W, C)
    with C in 1..4. Where both the second and the last dimension lie in 1..4, the second is the
    channels. Floats lie in [0, 1], or in [-1, 1] when one is negative, and are rounded to 8 bits.
    Without image_size height and width stay. Above the memory limit a uint8 file that needs no
    conversion is memory-mapped, so it must not change while in use.

    ``.npz``: the array named ``images``, or ``x``, or the only one beside the labels; ``labels`` or
    ``y``, if there, are N whole numbers or strings. The classes are their distinct values in
    ascending order. An archive cannot be memory-mapped.
    """
    path = Path(argument)
    with reading(path):
        raw, labels = _read_npz(path) if path.suffix.lower() == ".npz" else (_read_npy(path), None)
    raw = _channels_first(raw, str(path))

    classes, indices = None, None
    if labels is not None:
        classes, indices = _class_indices(labels, len(raw), str(path))
    images = to_images(
        raw, image_size=image_size, channels=channels, key=file_key(path.resolve()), name=str(path)
    )
    return hold_out(
        ImageDataset(images, labels=indices, class_names=classes, description=str(path))
    )


def _read_npy(path: Path) -> NDArray[Any]:
    with open(path, "rb") as file:
        end = _check_header(file, str(path)) + file.tell()
        if (size := file.seek(0, os.SEEK_END)) > end:
            raise DataError(
                f"{path} must end with its array (its header stands for {end} bytes, got {size}): "
                "it is damaged or holds a second array"
            )
    array: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    return array


def _read_npz(path: Path) -> tuple[NDArray[Any], NDArray[Any] | None]:
    with zipfile.ZipFile(path) as archive:
        arrays = {name.removesuffix(".npy"): name for name in archive.namelist()}
        label_name = next((name for name in _LABELS if name in arrays), None)
        others = [name for name in arrays if name != label_name]
        image_name = next((name for name in _IMAGES if name in arrays), None)
        if image_name is None and len(others) == 1:
            image_name = others[0]
        if image_name is None:
            raise DataError(
                f"{path} has the arrays {', '.join(sorted(arrays)) or '(none)'}: name the images "
                f"'images' (or 'x') and their labels, if any, 'labels' (or 'y')"
            )
        images = _read_member(archive, arrays[image_name], f"{image_name} in {path}")
        if label_name is None:
            return images, None
        return images, _read_member(archive, arrays[label_name], f"{label_name} in {path}")


def _read_member(archive: zipfile.ZipFile, member: str, name: str) -> NDArray[Any]:
    # The header tells the size before a byte is unpacked: a small archive can hold a huge array.
    with archive.open(member) as file:
        nbytes = _check_header(file, name)
    if not fits_in_memory(nbytes):
        raise DataError(
            f"{name} unpacks to {nbytes} bytes, more than {MEMORY_VARIABLE} allows: save it as "
            ".npy, which is memory-mapped, or raise the limit"
        )
    with archive.open(member) as file:
        array: NDArray[Any] = np.lib.format.read_array(file, allow_pickle=False)
    return array


def _check_header(file: IO[bytes], name: str) -> int:
    """Number of bytes of the array whose file starts here, once it is one that may be read."""
    readers = {(1, 0): np.lib.format.read_array_header_1_0,
               (2, 0): np.lib.format.read_array_header_2_0}  # fmt: skip
    version = np.lib.format.read_magic(file)
    if version not in readers:  # 3.0 exists for the field names of tables
        raise DataError(f"{name} must be an array of pixels (got a table, npy version {version})")
    shape, _, dtype = readers[version](file)
    if dtype.hasobject:
        raise DataError(
            f"{name} holds Python objects (pickle), which are never loaded: save a plain array, "
            "uint8 or floating point, made by numpy.stack for images of one size"
        )
    return prod(shape) * dtype.itemsize


def _channels_first(raw: NDArray[Any], name: str) -> NDArray[Any]:
    """(N, H, W), (N, C, H, W) or (N, H, W, C) as a view of shape (N, C, H, W)."""
    if 0 not in raw.shape:
        if raw.ndim == 3:
            return raw[:, None]
        if raw.ndim == 4 and raw.shape[1] <= 4:
            return raw
        if raw.ndim == 4 and raw.shape[3] <= 4:
            return raw.transpose(0, 3, 1, 2)
    raise DataError(
        f"{name} must have shape (N, H, W), (N, C, H, W) or (N, H, W, C) with C in 1..4 and no "
        f"empty dimension (got {raw.shape})"
    )


def _class_indices(
    labels: NDArray[Any], count: int, name: str
) -> tuple[tuple[str, ...], NDArray[np.int64]]:
    """The names of the classes and the class of each image."""
    if labels.shape not in ((count,), (count, 1)) or labels.dtype.kind not in "iubU":
        raise DataError(
            f"labels of {name} must be whole numbers or strings of shape ({count},), one per image "
            f"(got {labels.dtype} of shape {labels.shape})"
        )
    values, indices = np.unique(labels.reshape(count), return_inverse=True)
    return tuple(str(value) for value in values), indices.astype(np.int64)
