"""Where the pixels lie: in memory, or above a limit in a memory-mapped file that is kept."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastgen.files import cache_folder

from .errors import DataError, reason

MEMORY_VARIABLE = "FASTGEN_DATA_MEMORY"
_DEFAULT_MEMORY = 4 * 2**30
_CHUNK_BYTES = 2**24
_VERSION = 2  # to be raised when the same key comes to mean other pixels

Shape = tuple[int, int, int, int]
Notes = dict[str, Any]


def fits_in_memory(nbytes: int) -> bool:
    """Whether a set of this many bytes is held in memory: at most 4 GiB, or FASTGEN_DATA_MEMORY.

    Raises:
        DataError: when the variable is no number of bytes.
    """
    text = os.environ.get(MEMORY_VARIABLE, str(_DEFAULT_MEMORY))
    if not text.isdecimal():
        raise DataError(
            f"{MEMORY_VARIABLE} must be a number of bytes such as 4294967296 (got {text!r})"
        )
    return nbytes <= int(text)


def images_per_chunk(bytes_per_image: int) -> int:
    """How many images to convert at a time: 16 MiB of them, at least one."""
    return max(1, _CHUNK_BYTES // max(bytes_per_image, 1))


def file_key(path: Path) -> tuple[str, int, int]:
    """What tells one version of a file from another: its path, size in bytes and time in ns.

    A file that cannot be asked has size and time -1.
    """
    try:
        status = path.stat()
    except OSError:
        return str(path), -1, -1
    return str(path), status.st_size, status.st_mtime_ns


def store(
    shape: Shape,
    chunks: Iterable[NDArray[np.uint8]],
    key: object,
    notes: Callable[[], Notes] = dict,
) -> tuple[NDArray[np.uint8], Notes]:
    """Draw the chunks into one array: in memory if it fits, else into a memory-mapped file.

    The file lies in the user's cache folder under a name made from `key`; when it is there already
    no chunk is drawn. It is written beside its place, flushed, then renamed: a run that is cut off
    leaves no half of one (a killed one leaves a folder `unfinished-*`). Nothing removes old files.

    Args:
        shape: (N, C, H, W) of the whole.
        chunks: uint8 arrays of shape (n, C, H, W) that together make the whole, drawn lazily.
        key: what the pixels depend on; its ``repr`` must tell different pixels apart.
        notes: called after the last chunk; what it returns (JSON) is kept with the file.

    Returns:
        the uint8 array, read-only when memory-mapped, and the notes.

    Raises:
        DataError: when the cache folder cannot be written or lacks the space.
    """
    if fits_in_memory(prod(shape)):
        images = np.empty(shape, np.uint8)
        filled = 0
        for chunk in chunks:
            images[filled : filled + len(chunk)] = chunk
            filled += len(chunk)
        return images, notes()

    folder = cache_folder()
    name = hashlib.blake2b(repr((_VERSION, shape, key)).encode(), digest_size=16).hexdigest()
    pixels = folder / f"{name}.npy"
    found = _open(pixels, shape)
    if found is None:
        try:
            _write(pixels, shape, chunks, notes)
        except OSError as error:
            raise DataError(
                f"cannot keep {prod(shape) / 2**30:.3g} GiB of images in {folder}: "
                f"{reason(error)}; set XDG_CACHE_HOME to a folder with space, or {MEMORY_VARIABLE} "
                "(bytes) to hold them in memory"
            ) from error
        found = _open(pixels, shape)
        if found is None:
            raise DataError(f"{pixels} changed while it was read: run again")
    return found


def _open(pixels: Path, shape: Shape) -> tuple[NDArray[np.uint8], Notes] | None:
    """The finished file and its notes; None when there is none or it is not what it should be."""
    try:
        images = np.load(pixels, mmap_mode="r", allow_pickle=False)
        notes = json.loads(pixels.with_suffix(".json").read_text("utf-8"))
    except (OSError, ValueError, EOFError):
        return None
    return (images, notes) if images.shape == shape and images.dtype == np.uint8 else None


def _write(
    pixels: Path,
    shape: Shape,
    chunks: Iterable[NDArray[np.uint8]],
    notes: Callable[[], Notes],
) -> None:
    pixels.parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(pixels.parent).free
    if free < prod(shape):
        raise OSError(f"only {free / 2**30:.3g} GiB are free")

    layout = {"descr": "|u1", "fortran_order": False, "shape": shape}
    # The notes come first in place: whoever finds the pixels finds both.
    with tempfile.TemporaryDirectory(prefix="unfinished-", dir=pixels.parent) as unfinished:
        written = Path(unfinished) / pixels.name
        with open(written, "wb") as file:
            np.lib.format.write_array_header_1_0(file, layout)
            for chunk in chunks:
                file.write(np.ascontiguousarray(chunk).data)
            file.flush()
            os.fsync(file.fileno())
        remarks = written.with_suffix(".json")
        remarks.write_text(json.dumps(notes()), "utf-8")
        os.replace(remarks, pixels.with_suffix(".json"))
        os.replace(written, pixels)
