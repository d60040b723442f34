"""The processes that train one model together, as the trainer sees them.

`Processes` is one process, for which nothing is to be done; :class:`.process_group.Group` is the
same interface over `torch.distributed`. Who asks `find_processes` gets the one that fits.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from fastgen.models import Losses

from .checkpoint import Checkpoint
from .finite import NonFiniteLoss

Gradients = Sequence[Tensor | None]


class BatchLike(Protocol):
    """Images, and labels where there are any: what a source of the caller's gives."""

    @property
    def images(self) -> Tensor:
        """Float, (N, ...)."""

    @property
    def labels(self) -> Tensor | None:
        """Int64, (N,)."""


@runtime_checkable
class BatchSource(Protocol):
    """Anything that gives batch number 0, 1, 2 ... as a function of the number alone."""

    def batch(self, index: int) -> BatchLike:
        """The batch of this number."""


class ProcessesError(RuntimeError):
    """Several processes cannot train together.

    They were not told of each other or were given different settings; the message says what.
    """


class OtherProcessFailed(RuntimeError):
    """Another process of this training has failed or has ended.

    Raised in those that are well, so that none waits in vain; why is the other's message.
    """


class Processes:
    """One process that trains alone.

    Attributes:
        rank: this process's number, 0 is the one that writes.
        count: how many there are.
    """

    rank = 0
    count = 1

    @property
    def is_first(self) -> bool:
        """Whether this process writes: files, lines on the console, pictures."""
        return self.rank == 0

    def together(self) -> AbstractContextManager[None]:
        """A context inside which the processes exchange things; all of them enter it.

        A process that leaves it by an error takes all others with it: their next exchange, or the
        one in which they wait, raises OtherProcessFailed.
        """
        return nullcontext()

    def gate(self) -> AbstractContextManager[None]:
        """A context whose end is reached by all or none; nothing is exchanged inside.

        Where several fail, one raises its error and the others OtherProcessFailed, so that what is
        wrong for all is told once.
        """
        return nullcontext()

    def wait(self) -> None:
        """Wait until every process is here."""

    def tell(self, value: Any) -> Any:
        """What the first process says: anything that JSON can hold."""
        return value

    def check_same(self, model: nn.Module, settings: Mapping[str, Any]) -> None:
        """Make sure that all processes have the same settings, and weights of the same shapes.

        Raises:
            ProcessesError: they were not; the message is a table of the differences.
        """

    def check_divides(self, batch_size: int) -> None:
        """Make sure that every process gets equally many images of a batch.

        Raises:
            ValueError: `batch_size` is no multiple of the number of processes.
        """

    def take(self, source: BatchSource, index: int) -> tuple[BatchLike, int]:
        """This process's part of batch `index`, and how many images the whole batch has."""
        batch = source.batch(index)
        return batch, len(batch.images)

    def average(
        self, losses: Losses, parameters: Sequence[Tensor], gradients: Gradients, images: int
    ) -> tuple[Losses, Gradients]:
        """Losses and gradients of the whole batch, from those of this process's part.

        Args:
            losses: detached, 0-dim.
            parameters: whose gradients these are, in the same order.
            gradients: None for a parameter on which this process's loss does not depend.
            images: how many this process computed its losses from.
        """
        return losses, gradients

    def equalize(self, tensors: Iterable[Tensor]) -> None:
        """Give all processes the first one's numbers, in place."""

    def same_checkpoint(self, checkpoint: Checkpoint | None) -> Checkpoint | None:
        """The first process's checkpoint; what the others hand in does not matter."""
        return checkpoint

    def agree(self, signal: int | None) -> int | None:
        """The signal that came to any process, if one came."""
        return signal

    def blame(
        self, explain: Callable[[int | None], NonFiniteLoss], is_source: Callable[[], bool]
    ) -> NonFiniteLoss:
        """The one error that all processes raise when numbers are no longer finite.

        Args:
            explain: makes this process's error; it is given the rank, None where there is no other.
            is_source: whether this process's own numbers are at fault.
        """
        return explain(None)


def find_processes() -> Processes:
    """Those that train together: of the caller's process group, or those that torchrun started.

    The latter are joined into a group, as ``torch.distributed.init_process_group`` does it.

    Raises:
        ProcessesError: there are several and they cannot be joined.
    """
    if processes_started() == 1:
        return Processes()
    from .process_group import Group, join

    join()
    return Group()


def processes_started() -> int:
    """How many processes there are, joined already or only started by torchrun."""
    distributed = torch.distributed
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_world_size()
    # Batch systems set one or the other for reasons of their own.
    return int(os.environ["WORLD_SIZE"]) if {"RANK", "WORLD_SIZE"} <= os.environ.keys() else 1


def is_first_process() -> bool:
    """Whether this process is the only one, or the first of those that torchrun started."""
    return processes_started() == 1 or int(os.environ.get("RANK", 0)) == 0


def own_gpu() -> int:
    """Which of the machine's GPUs is this process's where none is named."""
    if "LOCAL_RANK" in os.environ:
        return int(os.environ["LOCAL_RANK"])
    return torch.cuda.current_device() if processes_started() > 1 else 0
