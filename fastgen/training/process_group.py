"""Several processes that train one model: everything that knows `torch.distributed`.

Gradients are averaged here and not by `DistributedDataParallel`, whose hooks see neither
`torch.autograd.grad` nor a second backward.
"""

from __future__ import annotations

import atexit
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from hashlib import blake2b
from itertools import chain
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from fastgen.data import Batch, Batches
from fastgen.models import Losses

from .checkpoint import Checkpoint
from .finite import NonFiniteLoss
from .processes import (
    BatchSource,
    Gradients,
    OtherProcessFailed,
    Processes,
    ProcessesError,
)
from .text import columns, without_addresses

T = TypeVar("T")

NEEDED = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""What torchrun tells every process, and what `init_process_group` reads."""


def join() -> None:
    """Join the processes that torchrun started into a group, unless the caller has done so.

    Raises:
        ProcessesError: this torch cannot, or it is not told how.
    """
    if not dist.is_available() or not dist.is_gloo_available():
        raise ProcessesError(
            "several processes were started and this build of torch lacks gloo, by which they "
            "would talk: start one, or install another build of torch"
        )
    if dist.is_initialized():
        return
    if lacking := [name for name in NEEDED if name not in os.environ]:
        raise ProcessesError(
            f"RANK and WORLD_SIZE={os.environ['WORLD_SIZE']} are set and {', '.join(lacking)} not: "
            "start several processes by torchrun, or unset the two to train in one"
        )
    nccl = torch.cuda.is_available() and dist.is_nccl_available()
    dist.init_process_group("cpu:gloo,cuda:nccl" if nccl else "gloo")
    atexit.register(_leave)
    # Through process 0 the others find each other: if it left first, because of settings that all
    # are about to refuse, they would report a lost connection instead.
    dist.all_reduce(torch.zeros(1))


def _leave() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


class Group(Processes):
    """The processes of torch's default group.

    What the hosts tell each other, and all of a training on CPUs, goes through connections of their
    own, which last as long as a `together`. Closing them is how a process that fails wakes up those
    that wait for it. Tensors on GPUs go through the default group where it has NCCL.
    """

    def __init__(self) -> None:
        self.rank, self.count = dist.get_rank(), dist.get_world_size()
        self._connections: dist.ProcessGroup | None = None

    @contextmanager
    def together(self) -> Iterator[None]:
        if self._connections is not None:
            yield
            return
        self._connections = dist.new_group(backend="gloo")
        try:
            yield
        finally:
            dist.destroy_process_group(self._connections)
            # The last reference: without one, torch closes the connections.
            self._connections = None

    @contextmanager
    def gate(self) -> Iterator[None]:
        with self.together():
            error = None
            try:
                yield
            except Exception as caught:
                error = caught
            failed = self._gather(error is not None)
            if True not in failed:
                return
            if error is not None and failed.index(True) == self.rank:
                raise error
            raise OtherProcessFailed(f"process {failed.index(True)} has failed")

    def wait(self) -> None:
        self._meet(lambda: dist.barrier(group=self._connections))

    def tell(self, value: Any) -> Any:
        said = _as_bytes(value)
        size = torch.tensor([len(said)])
        self._broadcast(size)
        if not self.is_first:
            said = torch.empty(int(size), dtype=torch.uint8)
        self._broadcast(said)
        return _as_value(said)

    def check_same(self, model: nn.Module, settings: Mapping[str, Any]) -> None:
        tensors = chain(model.named_parameters(), model.named_buffers())
        shapes = repr([(name, tensor.dtype, tensor.shape) for name, tensor in tensors])
        digest = blake2b(shapes.encode(), digest_size=4).hexdigest()
        text = json.dumps({**settings, "shapes of weights": digest}, default=str)
        plain = json.loads(without_addresses(text))
        first, *others = self._gather(plain)
        for rank, other in enumerate(others, 1):
            names = [name for name in first | other if first.get(name) != other.get(name)]
            if names:
                rows = [(name, first.get(name), other.get(name)) for name in names]
                table = columns([("setting", "process 0", f"process {rank}"), *rows])
                raise ProcessesError(f"the processes were given different settings:\n{table}")

    def check_divides(self, batch_size: int) -> None:
        if batch_size % self.count:
            below = batch_size // self.count * self.count
            near = [str(size) for size in (below, below + self.count) if size]
            raise ValueError(
                f"batch_size must be a multiple of the number of processes, {self.count}, which "
                f"share each batch (got {batch_size}): {' or '.join(near)} would do"
            )

    def take(self, source: BatchSource, index: int) -> tuple[Batch, int]:
        if type(source) is Batches:
            # Only this process's images are read.
            positions = source.positions(index)
            return source.at(positions[self._part(index, len(positions))]), len(positions)
        batch = source.batch(index)
        images, labels = batch.images, batch.labels
        part = self._part(index, len(images))
        return Batch(images[part], None if labels is None else labels[part]), len(images)

    def average(
        self,
        losses: Losses,
        parameters: Iterable[Tensor],
        gradients: Gradients,
        images: int,
    ) -> tuple[Losses, Gradients]:
        pairs = list(zip(parameters, gradients, strict=True))
        filled = [torch.zeros_like(p) if g is None else g for p, g in pairs]
        present = tuple(g is not None for _, g in pairs)
        means, shares = self._means([*losses.values(), *filled], present, images)

        named = dict(zip(losses, means, strict=False))
        found: list[Tensor | None] = [
            mean.to(parameter.dtype)
            for (parameter, _), mean in zip(pairs, means[len(losses) :], strict=True)
        ]
        # Only a process that lacks a gradient asks whether another has it: on a GPU it would wait.
        if not all(present):
            found = [g if share else None for g, share in zip(found, shares.tolist(), strict=True)]
        return named, found

    @torch.no_grad()
    def equalize(self, tensors: Iterable[Tensor]) -> None:
        by_device: dict[torch.device, list[Tensor]] = {}
        for tensor in tensors:
            by_device.setdefault(tensor.device, []).append(tensor)
        for some in by_device.values():
            pieces = [tensor.detach().reshape(-1).contiguous().view(torch.uint8) for tensor in some]
            data = torch.cat(pieces)
            self._broadcast(data)
            if self.is_first:
                continue
            for tensor, piece in zip(some, _split(data, pieces), strict=True):
                # Cloned, for its place among the bytes may suit no wider number.
                tensor.copy_(piece.clone().view(tensor.dtype).view(tensor.shape))

    def same_checkpoint(self, checkpoint: Checkpoint | None) -> Checkpoint | None:
        described = None if checkpoint is None else [_shapes(checkpoint), checkpoint.state]
        described = self.tell(described)
        if described is None:
            return None
        if not self.is_first:
            checkpoint = _empty_checkpoint(*described)
        assert checkpoint is not None
        self.equalize(t for tensors in checkpoint.tensors.values() for t in tensors.values())
        return checkpoint

    def agree(self, signal: int | None) -> int | None:
        number = torch.tensor([signal or 0])
        self._meet(lambda: dist.all_reduce(number, dist.ReduceOp.MAX, group=self._connections))
        return int(number) or None

    def blame(
        self, explain: Callable[[int | None], NonFiniteLoss], is_source: Callable[[], bool]
    ) -> NonFiniteLoss:
        # All run the model again, which may exchange things itself, as SyncBatchNorm does.
        error, here = explain(self.rank), is_source()
        every = self._gather([here, error.phase, error.step, error.module, str(error)])
        for rank, (at_fault, phase, step, module, message) in enumerate(every):
            if at_fault:
                return NonFiniteLoss(phase, step, module, message, rank)
        return NonFiniteLoss(
            error.phase,
            error.step,
            None,
            f"training stopped at step {error.step}: the gradients of phase {error.phase!r} are "
            "finite on every process, their mean is not. A lower learning rate may help.",
        )

    def _part(self, index: int, images: int) -> slice:
        if images < self.count:
            raise ValueError(
                f"batch {index} has {images} images, too few for {self.count} processes: give "
                "larger batches or start fewer processes"
            )
        return slice(images * self.rank // self.count, images * (self.rank + 1) // self.count)

    def _means(
        self, tensors: list[Tensor], present: tuple[bool, ...], images: int
    ) -> tuple[list[Tensor], Tensor]:
        """The means over all images, and for each gradient the share of them that have one.

        One exchange for each dtype; sums of half precision are float32.
        """
        means: dict[int, Tensor] = {}
        kinds = [torch.promote_types(tensor.dtype, torch.float32) for tensor in tensors]
        for kind in dict.fromkeys(kinds):
            places = [place for place, each in enumerate(kinds) if each == kind]
            flags = _flags(present, kind, tensors[0].device)
            some = [flags, *(tensors[place].detach().reshape(-1).to(kind) for place in places)]
            flat = torch.cat(some).mul_(images)
            self._meet(lambda flat=flat: dist.all_reduce(flat, group=self._route(flat)))  # type: ignore[misc]
            flat /= flat[0].clone()
            shares, *parts = _split(flat, some)
            for place, part in zip(places, parts, strict=True):
                means[place] = part.view(tensors[place].shape)
        return [means[place] for place in range(len(tensors))], shares[1:]

    def _gather(self, value: Any) -> list[Any]:
        """What every process says, in the order of their ranks."""
        said = _as_bytes(value)
        sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(self.count)]
        own = torch.tensor([len(said)])
        self._meet(lambda: dist.all_gather(sizes, own, group=self._connections))
        lengths = [int(size) for size in sizes]
        heard = [torch.empty(max(lengths), dtype=torch.uint8) for _ in lengths]
        padded = torch.cat([said, said.new_zeros(max(lengths) - len(said))])
        self._meet(lambda: dist.all_gather(heard, padded, group=self._connections))
        return [_as_value(each[:n]) for each, n in zip(heard, lengths, strict=True)]

    def _broadcast(self, tensor: Tensor) -> None:
        self._meet(lambda: dist.broadcast(tensor, 0, group=self._route(tensor)))

    def _route(self, tensor: Tensor) -> dist.ProcessGroup | None:
        nccl = tensor.device.type == "cuda" and "nccl" in dist.get_backend_config()
        return None if nccl else self._connections

    def _meet(self, exchange: Callable[[], T]) -> T:
        try:
            return exchange()
        except RuntimeError as error:
            # Between the place in gloo's source and its advice.
            reason = re.sub(r"^\[\S+\] ", "", str(error)).partition(". ")[0].partition("\n")[0]
        # Outside, for the caught error remembers frames that would keep the connections open.
        raise OtherProcessFailed(
            f"another process of this training has failed or ended, and says why itself ({reason})"
        )


@lru_cache
def _flags(present: tuple[bool, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    # Kept, for a copy to a GPU would wait for it. The 1 in front counts the images.
    return torch.tensor([True, *present]).to(device, dtype)


def _shapes(checkpoint: Checkpoint) -> dict[str, dict[str, Any]]:
    return {
        group: {name: [str(t.dtype).removeprefix("torch."), t.shape] for name, t in some.items()}
        for group, some in checkpoint.tensors.items()
    }


def _empty_checkpoint(shapes: dict[str, dict[str, Any]], state: dict[str, Any]) -> Checkpoint:
    tensors = {
        group: {
            name: torch.empty(shape, dtype=getattr(torch, dtype))
            for name, (dtype, shape) in some.items()
        }
        for group, some in shapes.items()
    }
    return Checkpoint(tensors, state)


def _as_bytes(value: Any) -> Tensor:
    return torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)


def _as_value(data: Tensor) -> Any:
    return json.loads(data.numpy().tobytes())


def _split(flat: Tensor, like: list[Tensor]) -> Sequence[Tensor]:
    return flat.split_with_sizes([len(each) for each in like])
