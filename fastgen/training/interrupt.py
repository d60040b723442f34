"""Ctrl-C and SIGTERM, answered between two steps."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import current_thread, main_thread
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(KeyboardInterrupt):
    """A signal stopped the training after a whole step.

    Attributes:
        signal: which one.
        step: how many steps are done.
        checkpoint: where they were saved; None without a run folder.
    """

    def __init__(self, number: int, step: int, checkpoint: Path | None) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name} after step {step}")
        self.signal, self.step, self.checkpoint = number, step, checkpoint

    @property
    def exit_code(self) -> int:
        """What a shell expects: 128 + the signal, 130 for Ctrl-C and 143 for SIGTERM."""
        return 128 + self.signal


class Stop:
    """Whether a signal has come."""

    signal: int | None = None


@contextmanager
def answering_signals() -> Iterator[Stop]:
    """Note the first SIGINT or SIGTERM instead of dying; the second one stops at once.

    Outside the main thread, where Python does not allow handlers, signals do what they always do. A
    signal that is ignored stays so, as Ctrl-C is by what a script runs in the background.
    """
    stop = Stop()
    if current_thread() is not main_thread():
        yield stop
        return
    before = {
        number: handler
        for number in SIGNALS
        # None: one that Python did not set and could not put back.
        if (handler := signal.getsignal(number)) not in (signal.SIG_IGN, None)
    }

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def note(number: int, frame: FrameType | None) -> None:
        stop.signal = number
        restore()

    for number in before:
        signal.signal(number, note)
    try:
        yield stop
    finally:
        restore()
