"""Writes what a training leaves behind: log, pictures, checkpoints, report."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

from torch import Tensor, nn

from fastgen.models import evaluation

from .checkpoint import (
    Checkpoint,
    checkpoints,
    discard_damaged,
    discard_partial,
    keep_newest,
    write_checkpoint,
)
from .log import Record, RunLog
from .pictures import COLUMNS, PATHS, ROWS, pictures_of, save_png, tiles
from .report import write_report
from .run_folder import RunFolder


class Recorder:
    """What happens in the run folder of one training.

    Args:
        folder: where.
        log: the open log.
        model: what draws the pictures.
        averaged_weights: a context inside which the model computes with its averaged weights.
        reals: real images, float in [-1, 1].
        originals: real images to be shown beside their reconstructions.
        state: gives the whole training state.
        keep: how many checkpoints stay.
    """

    def __init__(
        self,
        folder: RunFolder,
        log: RunLog,
        *,
        model: nn.Module,
        averaged_weights: Callable[[], AbstractContextManager[None]],
        reals: Tensor,
        originals: Tensor,
        state: Callable[[], Checkpoint],
        keep: int,
    ) -> None:
        self.folder, self._log, self._model = folder, log, model
        self._averaged_weights, self._state, self._keep = averaged_weights, state, keep
        self._examined = False
        self._drawable = reals.dim() == 4
        self._originals = originals[: COLUMNS * (ROWS + PATHS) // 2]
        if self._drawable and not folder.reals.exists():
            save_png(folder.reals, tiles(reals[: ROWS * COLUMNS]))

    def record(self, record: Record) -> None:
        """Add a log point."""
        self._log.record(record)

    def draw(self, step: int) -> None:
        """Write the pictures of this moment, drawn with the averaged weights."""
        if not self._drawable:
            return
        with self._averaged_weights(), evaluation(self._model):
            pictures = pictures_of(self._model, self._originals)
        for name, picture in pictures.items():
            save_png(self.folder.sample(step, name), picture)
            self._log.picture(name, picture, step)

    def save(self, step: int) -> None:
        """Write a checkpoint, forget the oldest, and bring the report up to date."""
        path = self.folder.checkpoint(step)
        discard_partial(self.folder.checkpoints)
        if not self._examined:
            # Of those that an earlier training left, a damaged one would be kept for a whole one.
            for each in checkpoints(self.folder.checkpoints):
                discard_damaged(each)
            self._examined = True
        # The state after a step is a function of (seed, step): what is there already is this one.
        if not path.exists():
            # A training that goes on from here after a kill does not log its steps again.
            self._log.flush()
            write_checkpoint(path, self._state())
        # Who went back by `load` may have newer ones there than the one just written.
        keep_newest(self.folder.checkpoints, self._keep, spared=path)
        write_report(self.folder)
