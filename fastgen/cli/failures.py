"""How a command fails: every failure that a user can mend is one line on standard error.

Exit code 2 for wrong input, 1 for what went wrong on the way, 130 and 143 for Ctrl-C and SIGTERM.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from signal import Signals
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from fastgen.training.run_folder import RunFolder


def warn(lines: Iterable[str]) -> None:
    """Lines on standard error, each with the program's name."""
    for line in lines:
        warn_line(line)


def warn_line(line: str) -> None:
    """One such line."""
    typer.echo(f"fastgen: {line}", err=True)


def fail(message: object, code: int, *, for_all: bool = False) -> typer.Exit:
    """The exit to raise; its line is printed, by the first process alone if it is for all."""
    if for_all:
        from fastgen.training.processes import is_first_process

        if not is_first_process():
            return typer.Exit(code)
    warn_line(str(message))
    return typer.Exit(code)


@contextmanager
def wrong_input() -> Iterator[None]:
    """Inside, a ValueError is about what the user gave; the environment's variables come first."""
    from fastgen.ops import variables
    from fastgen.ops.backend import default_backend

    try:
        default_backend()
        variables.check()
        yield
    except ValueError as error:
        raise fail(error, 2) from error


@contextmanager
def one_line_for_each_failure(to_take_less: str = "") -> Iterator[None]:
    """Everything that can go wrong without a bug ends in one line.

    Args:
        to_take_less: what to do where memory does not suffice.
    """
    from fastgen.ops.backend import BackendUnavailable
    from fastgen.training.checkpoint import CheckpointError, ForeignCheckpoint
    from fastgen.training.finite import NonFiniteLoss
    from fastgen.training.graphs import CaptureError
    from fastgen.training.interrupt import Interrupted
    from fastgen.training.processes import OtherProcessFailed, ProcessesError
    from fastgen.training.run_folder import FolderInUse

    try:
        yield
    except (BackendUnavailable, FolderInUse, ForeignCheckpoint) as error:
        raise fail(error, 2) from error
    except ProcessesError as error:
        raise fail(error, 2, for_all=True) from error
    except CheckpointError as error:
        raise fail(error, 1) from error
    except (CaptureError, NonFiniteLoss, OtherProcessFailed) as error:
        raise fail(error, 1, for_all=True) from error
    except Interrupted as stop:  # of a training that is a part of something else
        raise fail(f"stopped by {Signals(stop.signal).name}", stop.exit_code) from stop
    except ModuleNotFoundError as error:
        hint = 'pip install "fastgen-kernels[train]"'
        raise fail(f"{error.name} is not installed: {hint}", 1) from error
    except OSError as error:
        raise fail(_of_the_system(error), 1) from error
    except (MemoryError, RuntimeError) as error:
        if not _of_memory(error):
            raise
        remedy = f": {to_take_less}" if to_take_less else ""
        raise fail(f"not enough memory{remedy} ({_first_line(error)})", 1) from error


@contextmanager
def one_line_for_an_early_end(command: str, folder: RunFolder) -> Iterator[None]:
    """Ctrl-C, SIGTERM and a full disk end in one line, with the command that goes on."""
    from fastgen.training.checkpoint import CheckpointError, checkpoints
    from fastgen.training.interrupt import Interrupted

    def go_on() -> str:
        found = checkpoints(folder.checkpoints)
        return f". To go on from {found[-1]}:\n  {command}" if found else ""

    try:
        yield
    except Interrupted as stop:
        message = f"{stop}, saved in {stop.checkpoint}. To go on:\n  {command}"
        raise fail(message, stop.exit_code, for_all=True) from stop
    except KeyboardInterrupt as stop:
        raise fail(
            f"stopped at once. To go on from the last checkpoint:\n  {command}", 130
        ) from stop
    except CheckpointError as error:
        if not isinstance(error.__cause__, OSError):
            raise
        raise fail(f"{error}{go_on()}", 1) from error
    except OSError as error:
        raise fail(f"{_of_the_system(error, folder.path)}{go_on()}", 1) from error


def _of_memory(error: Exception) -> bool:
    """Whether memory has run out: of a GPU, of the host by torch's word or by Python's."""
    kinds = {kind.__name__ for kind in type(error).__mro__}
    return not kinds.isdisjoint(("OutOfMemoryError", "MemoryError")) or (
        "can't allocate memory" in str(error)
    )


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _of_the_system(error: OSError, place: Path | None = None) -> str:
    """What the system says, after the file or, where it names none, the place."""
    # TensorBoard's name is bytes.
    where = os.fsdecode(error.filename) if error.filename else place
    return f"{where}: {error.strerror or error}" if where else f"{error.strerror or error}"
