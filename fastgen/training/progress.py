"""How far a training is, on standard error."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from time import perf_counter
from types import TracebackType
from typing import Any, Self

from .log import NOT_LOSSES, Record

BAR = "{percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}{postfix}]"
LOSS = "/loss"


class Progress:
    """A bar on a terminal; elsewhere one line for each log point; nothing when off.

    The bar shows each phase's loss, a line everything that is logged; both images per second and
    the time left.
    """

    def __init__(self, done: int, steps: int, *, on: bool) -> None:
        self._on, self._steps, self._first, self._start = on, steps, done, perf_counter()
        self._bar: Any = None
        # None where it is closed, as for some services.
        if on and sys.stderr is not None and sys.stderr.isatty():
            from tqdm import tqdm

            self._bar = tqdm(total=steps, initial=done, dynamic_ncols=True, bar_format=BAR)

    def advance(self) -> None:
        """One more step is on its way."""
        if self._bar is not None:
            self._bar.update()

    def show(self, record: Record) -> None:
        """Show a log point."""
        if self._bar is not None:
            self._bar.set_postfix_str(_losses(record), refresh=False)
        else:
            step = int(record["step"])
            self.say(f"step {step}/{self._steps}  {_numbers(record)}  {self._left(step)} left")

    def say(self, line: str) -> None:
        """Print a line without disturbing the bar, if progress is on."""
        if self._on:
            self.warn(line)

    def warn(self, line: str) -> None:
        """Print a line without disturbing the bar, in any case."""
        if self._bar is not None:
            self._bar.write(line, file=sys.stderr)
        elif sys.stderr is not None:
            print(line, file=sys.stderr, flush=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.close()

    def _left(self, step: int) -> timedelta:
        pace = (perf_counter() - self._start) / max(1, step - self._first)
        # Who trains until Ctrl-C may give more steps than a timedelta has seconds for.
        most = timedelta.max // timedelta(seconds=1)
        return timedelta(seconds=min(round(pace * (self._steps - step)), most))


class Meter:
    """Seconds of training, without pictures and checkpoints, and images per second.

    Attributes:
        seconds_before: seconds up to the last stop.
    """

    def __init__(self) -> None:
        self.seconds_before = 0.0
        self._started: float | None = None
        self._images, self._last = 0, 0.0

    @property
    def seconds(self) -> float:
        """Seconds of training so far."""
        running = 0.0 if self._started is None else perf_counter() - self._started
        return self.seconds_before + running

    def add(self, images: int) -> None:
        """Count images that were trained on."""
        self._images += images

    def rate(self) -> float:
        """Images per second since the last call, or since the start."""
        seconds, images = self.seconds - self._last, self._images
        self._images, self._last = 0, self.seconds
        return images / max(seconds, 1e-9)

    @contextmanager
    def running(self) -> Iterator[None]:
        """Time runs inside."""
        self._images, self._last, self._started = 0, self.seconds_before, perf_counter()
        try:
            yield
        finally:
            self._stop()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Time stands still inside, if it was running."""
        was_running = self._started is not None
        self._stop()
        yield
        self._started = perf_counter() if was_running else None

    def _stop(self) -> None:
        self.seconds_before, self._started = self.seconds, None


def _numbers(record: Record) -> str:
    losses = [f"{name} {value:.4g}" for name, value in record.items() if name not in NOT_LOSSES]
    return "  ".join([*losses, _speed(record)])


def _losses(record: Record) -> str:
    """What every phase minimizes: as much as fits beside a bar."""
    losses = [
        f"{name.removesuffix(LOSS)} {value:.3g}"
        for name, value in record.items()
        if name.endswith(LOSS)
    ]
    return "  ".join([*losses, _speed(record)])


def _speed(record: Record) -> str:
    return f"{record['images_per_second']:.0f} images/s"
