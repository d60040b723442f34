"""The table of sources, and `load`, which chooses among them."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass

from .arrays import load_array
from .cifar10 import load_cifar10
from .dataset import Splits
from .digits import load_digits
from .errors import DataError
from .folder import load_folder
from .mnist import load_mnist

Loader = Callable[[str, int | None, int | None], Splits]
"""From (argument, image_size, channels) to the two sets."""


@dataclass(frozen=True)
class Source:
    """A source with a name of its own.

    Attributes:
        load: makes the two sets.
        summary: what it is, in a few words.
        folder: whether a folder follows the name, as in ``mnist:DIR``.
    """

    load: Loader
    summary: str
    folder: bool = False


SOURCES: dict[str, Source] = {
    "digits": Source(load_digits, "scikit-learn's handwritten digits"),
    "mnist": Source(load_mnist, "four IDX files, gzipped or not", folder=True),
    "cifar10": Source(load_cifar10, "CIFAR-10, the binary version", folder=True),
}
"""The named sources. A new one is a new entry."""

_FILES: dict[str, Loader] = {".npy": load_array, ".npz": load_array}


def load(
    spec: str | os.PathLike[str] = "digits",
    *,
    image_size: int | None = None,
    channels: int | None = None,
) -> Splits:
    """Load images and divide them into those to train on and those held out.

    ===================  =========================================================================
    ``digits``           scikit-learn's 1797 scans, 10 classes; image_size 16 (8 is native)
    ``mnist:DIR``        the four IDX files, gzipped or not; official test set held out; native size
    ``cifar10:DIR``      the binary version; official test set held out; native size
    ``DIR``              PNG, JPEG and WebP, any depth, cropped to squares; image_size 64
    ``FILE.npy``         (N, H, W), (N, C, H, W) or (N, H, W, C), uint8 or floats; native size
    ``FILE.npz``         the same, ``images`` and optionally ``labels``
    ===================  =========================================================================

    A name wins over a path: a folder called digits is ``./digits``. Without an official division
    the same 20 % (at most 10,000 images, by class where there are labels) are always held out.
    Images are bytes in memory; sets above 4 GiB, or FASTGEN_DATA_MEMORY bytes, are memory-mapped.

    Args:
        spec: which images, as above.
        image_size: height and width after cropping the central square; None: as in the table.
        channels: 1 for gray, 3 for RGB; None: as they come.

    Raises:
        DataError: one line that says what was given, what is allowed and what to do.
    """
    for name, value, most in (("image_size", image_size, 2**14), ("channels", channels, 4)):
        if value is not None and not 1 <= value <= most:
            raise DataError(f"{name} must lie in 1 .. {most} (got {value})")

    spec = os.fspath(spec)
    name, colon, argument = spec.partition(":")
    source = SOURCES.get(name)
    if source is None:
        loader, argument = _loader_of_path(spec)
        return loader(argument, image_size, channels)

    argument = os.path.expanduser(argument)
    if source.folder and not os.path.isdir(argument):
        raise DataError(f"{name} needs a folder, {name}:DIR with {source.summary} (got {spec!r})")
    if colon and not source.folder:
        raise DataError(f"{name} takes nothing after its name (got {spec!r}); write {name}")
    return source.load(argument, image_size, channels)


def _loader_of_path(spec: str) -> tuple[Loader, str]:
    path = os.path.expanduser(spec)
    if os.path.isdir(path):
        return load_folder, path
    loader = _FILES.get(os.path.splitext(path)[1].lower())
    if loader is not None and os.path.isfile(path):
        return loader, path
    known = [f"{name}:DIR" if source.folder else name for name, source in SOURCES.items()]
    problem = "is no kind of file that is read" if os.path.exists(path) else "does not exist"
    raise DataError(
        f"data {spec!r} {problem}; use {', '.join(known)}, a folder of pictures, "
        f"{' or '.join(f'FILE{ending}' for ending in _FILES)}"
    )
