"""The parts of a training step: run eagerly at first, then recorded and replayed."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, TypeVar

from .graphs import CaptureError, Graphs, Recording, record

T = TypeVar("T")
WARM_UP = 3
"""Steps done eagerly before any is recorded: they choose kernels and fill the optimizers' state."""

CHANGES = 5
"""How often what a recording takes for constant may change before recording is given up."""


class StepGraphs:
    """Records each part of a step once and replays it from then on.

    Args:
        graphs: what records; None: everything runs eagerly.
        required: whether to raise where something stands in the way, instead of going on eagerly.
        obstacle: says, when asked between steps, what stands in the way.
        constants: what recordings take for constant and a user can change at any step.
        addresses: what recordings take for constant and is changed only between steps by somebody
            who knows: where tensors lie, numbers kept in Python.

    Attributes:
        reason: why nothing is recorded any more.
        say: where the line goes that says so.
    """

    def __init__(
        self,
        graphs: Graphs | None,
        *,
        required: bool,
        obstacle: Callable[[], str | None],
        constants: Callable[[], object],
        addresses: Callable[[], object],
    ) -> None:
        self._graphs, self._required, self._obstacle = graphs, required, obstacle
        self._constants, self._addresses = constants, addresses
        self._recordings: dict[str, Recording[Any]] = {}
        self._recorded_with: tuple[object, object] | None = None
        self._steps, self._changes = 0, 0
        self.reason: str | None = None
        self.say: Callable[[str], None] = lambda line: None

    @property
    def steps(self) -> int:
        """How many steps have begun."""
        return self._steps

    def begin(self) -> Graphs | None:
        """A step begins. Returns what its parts are recorded with, None if they run eagerly."""
        self._steps += 1
        if self._graphs is None or self._steps <= WARM_UP:
            return None
        if self._recorded_with is None:
            self.review()
        elif self._recorded_with[0] != self._constants():
            self._change()
        return self._graphs

    def review(self) -> None:
        """Look at everything that recordings take for constant; between steps only."""
        if self._graphs is None or self._steps <= WARM_UP:
            return
        reason = self._obstacle()
        if reason is not None:
            self.give_up(reason)
            return
        present = self._constants(), self._addresses()
        if self._recorded_with is None:
            self._recorded_with = present
        elif self._recorded_with != present:
            self._change()

    def forget(self) -> None:
        """Drop the recordings; the next step makes new ones."""
        if self._graphs is not None and self._recordings:
            self._graphs.finish()
        self._recordings.clear()
        self._recorded_with = None

    def give_up(self, reason: str) -> None:
        """Run everything eagerly from now on.

        Raises:
            CaptureError: when recording was required.
        """
        self.forget()
        self._graphs, self.reason = None, reason
        if self._required:
            raise CaptureError(f"the training step cannot be captured: {reason}")
        self.say(f"not captured: {reason}; training without a CUDA graph")

    def eagerly(self, work: Callable[[], T]) -> T:
        """Run a part without recording it."""
        warming = self._graphs is not None and self._steps <= WARM_UP
        with self._graphs.apart() if self._graphs and warming else nullcontext():
            return work()

    def replay(self, name: str, work: Callable[[], T], prepare: Callable[[], None]) -> T:
        """Run a part from its recording, which is made if there is none.

        Args:
            name: of the part.
            work: reads and writes memory that stays where it is.
            prepare: is run before each replay, and before the work where it cannot be recorded.
        """
        recording = self._recordings.get(name)
        if recording is None and self._graphs is not None:
            try:
                recording = self._recordings[name] = record(self._graphs, work)
            except CaptureError as error:
                self.give_up(str(error))
        prepare()
        if recording is None:
            return work()
        recording.replay()
        results: T = recording.results
        return results

    def _change(self) -> None:
        self._changes += 1
        self.forget()
        if self._changes > CHANGES:
            self.give_up("settings of an optimizer or of the model keep changing")
        else:
            self._recorded_with = self._constants(), self._addresses()
