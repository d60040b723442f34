"""The one error of the data sources, and what turns other libraries' errors into it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class DataError(ValueError):
    """The data cannot be used: what was given, what is allowed and what to do, in one line.

    Raised by every source for wrong paths, wrong shapes and damaged files; the command line prints
    it and exits with code 2. Its text never holds a line break or an unprintable character.
    """

    def __init__(self, message: str) -> None:
        super().__init__(one_line(message))


def one_line(text: str) -> str:
    """`text` with spaces for line breaks and escapes for characters that cannot be printed.

    File names and other libraries' messages may hold either.
    """
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode()
        for character in " ".join(text.split())
    )


def reason(error: BaseException) -> str:
    """Why something failed, in one line, without the path that the caller names anyway."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return one_line(text) or type(error).__name__


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn whatever goes wrong while a file is read into a DataError that names the file."""
    try:
        yield
    except DataError:
        raise
    # Damaged bytes make parsers raise nearly anything: OSError, EOFError, BadZipFile, zlib.error,
    # OverflowError, and for the header of an array SyntaxError, TypeError, tokenize.TokenError.
    except Exception as error:
        raise DataError(f"cannot read {path}: {reason(error)}") from error


@contextmanager
def requires(package: str) -> Iterator[None]:
    """Turn a failed import of an optional dependency into a DataError that says how to get it."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise DataError(
            f'this data needs {package}: pip install "fastgen-kernels[train]" ({error})'
        ) from error
