"""Writing files so that a kill, a full disk or a power cut leaves the old ones whole.

And so that processes do not write what another one is writing.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Inside, an OSError names this file where it names none, as those of a full disk."""
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno is not None:
            error.filename = str(path)
        raise


def write_flushed(path: Path, data: bytes) -> None:
    """Write a file and return when it is on the disk."""
    with naming(path):
        _write_flushed(path, data)


def flush_folder(path: Path) -> None:
    """Return when the names in a folder are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def replace_file(path: Path, data: bytes) -> None:
    """Write a file at once: a reader sees the old content or the new one, never a part."""
    # A name for each process: two may write the same file, and then the later one stays.
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with naming(path):
            _write_flushed(partial, data)
            partial.replace(path)
    except OSError:
        partial.unlink(missing_ok=True)
        raise


def _write_flushed(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def cache_folder() -> Path:
    """Where fastgen keeps things for later: in ``XDG_CACHE_HOME``, by default ``~/.cache``.

    Where neither is known, as to a user without a home folder, it is a path that nobody can make:
    to write there is the OSError that it is in a folder which cannot be written.
    """
    configured, home = os.environ.get("XDG_CACHE_HOME", ""), os.path.expanduser("~")
    # The XDG specification asks to ignore a relative path.
    if os.path.isabs(configured):
        return Path(configured) / "fastgen"
    return Path(home if os.path.isabs(home) else os.devnull) / ".cache" / "fastgen"


@contextmanager
def locked(path: Path, busy: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Hold the lock of a file, which is made if need be; it dies with the process.

    Args:
        path: its folder is made too. The file stays. On Windows nobody is kept out.
        busy: called where somebody else holds the lock, before waiting for it; may raise instead.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        if sys.platform != "win32":
            import fcntl

            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                busy()
                fcntl.flock(file, fcntl.LOCK_EX)
        yield
