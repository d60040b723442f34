"""A folder of pictures, any depth: PNG, JPEG, WebP."""

from __future__ import annotations

import os
import warnings
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from .conversion import central_square
from .dataset import ImageDataset, Splits, hold_out
from .errors import DataError, one_line, reason, requires
from .storage import Notes, Shape, file_key, images_per_chunk, store

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

ENDINGS = (".png", ".jpg", ".jpeg", ".webp")
_FORMATS = ("PNG", "JPEG", "WEBP")  # no other decoder gets to see a file, whatever its name
_DEFAULT_SIZE = 64
RUN = {"config.json", "log.jsonl"}
"""What a folder of a run is known by; who trains in the folder of the pictures has it there."""

_SHOWN_ENDINGS = 6


def load_folder(argument: str, image_size: int | None, channels: int | None) -> Splits:
    """Every picture of a folder and its sub-folders, in the order of their paths.

    The central square of each is resized (bicubic) to image_size (default 64), after turning it the
    way its EXIF orientation says and laying transparent pixels on white. `channels` 3 is RGB, 1
    gray; None is gray if every picture is (all its pixels have R = G = B), else RGB.

    The sub-folders on the first level are the classes, if every picture lies in one and they are
    at least two. Files that cannot be read are listed in `skipped`, those of other kinds counted in
    `left_out`. Hidden files and folders (their names begin with a dot) are passed over, and so are
    folders of runs, whose pictures a model drew; a folder reachable on several paths is read once.

    Above the memory limit the decoded pictures lie in a memory-mapped file in the user's cache
    folder, and the next run finds them there unless a file, image_size or channels changed.
    """
    if channels not in (None, 1, 3):
        raise DataError(
            f"pictures of a folder become gray or RGB: channels must be 1 or 3 (got {channels})"
        )
    folder = Path(argument)
    paths, unlisted, left_out = _find(folder)
    reader = _Reader(folder, paths, image_size or _DEFAULT_SIZE, "L" if channels == 1 else "RGB")
    base, notes = store(reader.shape, reader.chunks(), reader.key(), reader.notes)
    skipped = (*unlisted, *((str(path), str(why)) for path, why in notes["skipped"]))
    rows = np.array(notes["rows"], dtype=np.int64)
    if len(rows) == 0:
        raise DataError(
            f"none of the {len(paths)} pictures in {folder} can be read; the first is "
            f"{skipped[0][0]}: {skipped[0][1]}"
        )

    if channels is None and notes["gray"]:
        base = base[:, :1] if isinstance(base, np.memmap) else base[:, :1].copy()
    labels, class_names = _classes([paths[row] for row in rows])
    return hold_out(
        ImageDataset(
            base,
            labels=labels,
            indices=rows,
            class_names=class_names,
            description=str(folder),
            skipped=skipped,
            left_out=left_out,
        )
    )


def _find(folder: Path) -> tuple[list[PurePosixPath], list[tuple[str, str]], str]:
    """The pictures, sorted, relative to the folder; the folders that cannot be listed; a line about
    the files of other kinds.
    """
    found: list[PurePosixPath] = []
    others: Counter[str] = Counter()
    unlisted: list[OSError] = []
    visited: set[tuple[int, int]] = set()
    for place, subfolders, names in os.walk(folder, followlinks=True, onerror=unlisted.append):
        status = os.stat(place)
        if (status.st_dev, status.st_ino) in visited:
            subfolders.clear()  # a link led back here
            continue
        visited.add((status.st_dev, status.st_ino))
        if place != str(folder) and RUN.issubset(names):
            subfolders.clear()
            continue
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        relative = PurePosixPath(Path(place).relative_to(folder).as_posix())
        for name in (name for name in names if not name.startswith(".")):
            if name.lower().endswith(ENDINGS):
                found.append(relative / name)
            else:
                others[PurePosixPath(name).suffix.lower() or "without ending"] += 1
    left_out = _left_out(others)
    if not found:
        raise DataError(
            f"{folder} holds no pictures: files ending in {', '.join(ENDINGS)} are read"
            + (f" ({len(unlisted)} folders cannot be listed)" if unlisted else "")
            + (f"; {left_out}" if left_out else "")
        )
    unread = [(one_line(str(error.filename)), reason(error)) for error in unlisted]
    return sorted(found), unread, left_out


def _left_out(others: Counter[str]) -> str:
    """A line about files that are not read, by their ending; empty if there are none."""
    if not (total := others.total()):
        return ""
    ordered = sorted(others.items(), key=lambda item: (-item[1], item[0]))
    shown = [f"{one_line(ending)} {count}" for ending, count in ordered[:_SHOWN_ENDINGS]]
    if rest := sum(count for _, count in ordered[_SHOWN_ENDINGS:]):
        shown.append(f"others {rest}")
    files = "file" if total == 1 else "files"
    return f"left out {total} {files}: {', '.join(shown)} (read are {', '.join(ENDINGS)})"


def _classes(
    paths: list[PurePosixPath],
) -> tuple[NDArray[np.int64] | None, tuple[str, ...] | None]:
    names = sorted({path.parts[0] for path in paths})
    if len(names) < 2 or any(len(path.parts) == 1 for path in paths):
        return None, None
    number = {name: index for index, name in enumerate(names)}
    labels = np.array([number[path.parts[0]] for path in paths], dtype=np.int64)
    return labels, tuple(one_line(name) for name in names)


class _Reader:
    """Decodes the pictures, several at a time (Pillow's decoders run outside Python's lock)."""

    def __init__(
        self, folder: Path, paths: list[PurePosixPath], image_size: int, mode: str
    ) -> None:
        self.folder, self.paths, self.image_size, self.mode = folder, paths, image_size, mode
        self.failures: dict[int, str] = {}
        self.gray = True

    @property
    def shape(self) -> Shape:
        channels = 1 if self.mode == "L" else 3
        return len(self.paths), channels, self.image_size, self.image_size

    def key(self) -> object:
        return (
            str(self.folder.resolve()),
            self.mode,
            [(str(path), *file_key(self.folder / path)[1:]) for path in self.paths],
        )

    def chunks(self) -> Iterator[NDArray[np.uint8]]:
        """All pictures in order; one that cannot be read leaves a black square and a failure."""
        with requires("Pillow"):
            from PIL import Image
        step = images_per_chunk(self.shape[1] * self.image_size**2)
        with ThreadPoolExecutor() as pool, warnings.catch_warnings():
            # Up to twice its limit of pixels Pillow warns, beyond it refuses: those are skipped.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            warnings.simplefilter("ignore", UserWarning)  # oddities of EXIF and palettes
            for start in range(0, len(self.paths), step):
                rows = range(start, min(start + step, len(self.paths)))
                yield np.stack(list(pool.map(self._read, rows)))

    def notes(self) -> Notes:
        """What must be known beside the pixels: which rows are pictures, and why others are not."""
        return {
            "gray": self.gray,
            "rows": [row for row in range(len(self.paths)) if row not in self.failures],
            "skipped": [
                (one_line(str(self.folder / self.paths[row])), self.failures[row])
                for row in sorted(self.failures)
            ],
        }

    def _read(self, row: int) -> NDArray[np.uint8]:
        try:
            image = decode(self.folder / self.paths[row], self.image_size, self.mode)
        # A damaged file makes decoders raise nearly anything: OSError, SyntaxError, struct.error,
        # TypeError, DecompressionBombError, which is an Exception and nothing more.
        except Exception as error:
            self.failures[row] = reason(error)
            return np.zeros(self.shape[1:], np.uint8)
        if self.gray and bool((image != image[:1]).any()):
            self.gray = False
        return image


def decode(path: Path, image_size: int, mode: str) -> NDArray[np.uint8]:
    """Read a picture: uint8 of shape (3, image_size, image_size) for "RGB", (1, ...) for "L"."""
    from PIL import Image, ImageOps

    with Image.open(path, formats=_FORMATS) as opened:
        upright = ImageOps.exif_transpose(opened)
        square = upright.crop(central_square(*upright.size))
    plain = _opaque(square).convert(mode)
    resized = np.asarray(plain.resize((image_size, image_size), Image.Resampling.BICUBIC))
    return resized[None] if mode == "L" else resized.transpose(2, 0, 1)


def _opaque(picture: Picture) -> Picture:
    """Eight bits a channel, transparent pixels on white."""
    from PIL import Image

    if picture.mode.startswith("I"):  # 16-bit gray; Pillow's own conversion would clip it at 255
        deep = np.asarray(picture)
        gray = np.rint(deep / 257.0).astype(np.uint8)
        if (transparent := picture.info.get("transparency")) is not None:
            gray[deep == transparent] = 255
        return Image.fromarray(gray)
    if picture.mode in ("LA", "PA", "RGBA") or "transparency" in picture.info:
        layer = picture.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)
    return picture
