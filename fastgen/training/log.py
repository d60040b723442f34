"""The log of a run: a file of JSON lines and TensorBoard events."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from fastgen.files import naming, replace_file

from .pictures import Picture

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

Record = dict[str, float]
"""One log point: ``"step"``, ``"seconds"`` of training so far, ``"images_per_second"`` since the
last point, and every loss of that step as ``"phase/name"``."""

NOT_LOSSES = ("step", "seconds", "images_per_second")


def read_log(path: Path, say: Callable[[str], None] = lambda line: None) -> list[Record]:
    """The records of a log. A last line cut short by a kill is left out, and so is a damaged one,
    of which `say` is told.
    """
    if not path.exists():
        return []
    whole, _, _ = path.read_text(errors="replace").rpartition("\n")
    records, damaged = [], []
    for number, line in enumerate(whole.splitlines(), 1):
        if (record := _record_of(line)) is None:
            damaged.append(str(number))
        else:
            records.append(record)
    if damaged:
        say(f"left out of {path}, as no log points: line {', '.join(damaged)}")
    return records


def _record_of(line: str) -> Record | None:
    try:
        record = json.loads(line)
    except ValueError:
        return None
    whole = isinstance(record, dict) and set(NOT_LOSSES) <= record.keys()
    numbers = whole and all(type(value) in (int, float) for value in record.values())
    return record if numbers else None


def _lines(records: Iterable[Record]) -> bytes:
    return "".join(json.dumps(record) + "\n" for record in records).encode()


class RunLog:
    """Writes log points to ``log.jsonl`` and to TensorBoard.

    Args:
        path: the file of JSON lines; the events lie beside it.
        after: the step after which the training goes on. Lines beyond it are dropped, so that the
            log equals that of a training that was never stopped.
        every: how often there is a log point.
        goes_on: whether a step follows, to be logged in the place of a last one out of turn.
        went_back: whether the caller chose that step. Dropped lines are kept in a file beside the
            log then, ``log-after-<step>.jsonl``: nobody says that they will be written again.
        say: what to do with a line for the user.
    """

    def __init__(
        self,
        path: Path,
        *,
        after: int,
        every: int,
        goes_on: bool,
        say: Callable[[str], None],
        went_back: bool = False,
    ) -> None:
        # The last step of a training is a log point in any case; of a longer one only by its count.
        end = after - 1 if goes_on and after % every else after
        records = read_log(path, say)
        beyond = [record for record in records if record["step"] > after]
        if went_back and beyond:
            aside = path.with_name(f"{path.stem}-after-{after:06d}{path.suffix}")
            earlier = aside.read_bytes() if aside.exists() else b""
            replace_file(aside, earlier + _lines(beyond))
            say(f"the log points after step {after} are kept in {aside}")
        replace_file(path, _lines(record for record in records if record["step"] <= end))
        with ExitStack() as stack:
            stack.enter_context(_silent_writers())
            self._path, self._file = path, path.open("a")
            stack.callback(self._close)
            self._events = _events(path.parent, after + 1 if after else 0, say)
            stack.callback(self._close_events)
            self._stack = stack.pop_all()

    def record(self, record: Record) -> None:
        """Add one log point."""
        with naming(self._path):
            self._file.write(json.dumps(record) + "\n")
            self._file.flush()
        if self._events is not None:
            for name, value in record.items():
                if name != "step":
                    self._events.add_scalar(name, value, int(record["step"]))

    def picture(self, name: str, picture: Picture, step: int) -> None:
        """Add a picture to the events."""
        if self._events is not None and picture.shape[2] != 2:  # gray and alpha: not shown there
            self._events.add_image(name, picture, step, dataformats="HWC")

    def flush(self) -> None:
        """Return when the events are in their file: a thread of TensorBoard's writes them."""
        if self._events is not None:
            self._events.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()

    def _close(self) -> None:
        with naming(self._path):
            self._file.close()

    def _close_events(self) -> None:
        if self._events is None:
            return
        try:
            self._events.close()
        except OSError:  # it is left open then, and its thread may be about to end
            with suppress(OSError):
                self._events._get_file_writer().close()  # type: ignore[no-untyped-call]
            raise


def _events(folder: Path, start: int, say: Callable[[str], None]) -> SummaryWriter | None:
    if find_spec("tensorboard") is None:
        say("no TensorBoard events: pip install tensorboard writes them")
        return None
    from torch.utils.tensorboard import SummaryWriter

    # TensorBoard hides what an earlier process logged from this step on.
    return SummaryWriter(str(folder), purge_step=start)


@contextmanager
def _silent_writers() -> Iterator[None]:
    """Inside, a thread of TensorBoard's that cannot write prints no traceback: the next call of
    its writer raises the same error.
    """
    others = threading.excepthook

    def hook(failure: threading.ExceptHookArgs) -> None:
        if not type(failure.thread).__module__.startswith("tensorboard."):
            others(failure)

    threading.excepthook = hook
    try:
        yield
    finally:
        if threading.excepthook is hook:
            threading.excepthook = others
