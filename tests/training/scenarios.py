"""What the processes of a team do; see test_processes.py."""

from __future__ import annotations

import io
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from test_resume import trainer as resumable
from torch import Tensor, nn
from toys import Batch, Constant, Noise, Regression, TwoNumbers, models, sgd

from fastgen.data import load
from fastgen.models import Autoencoder, Losses, Model, Phase
from fastgen.training import NonFiniteLoss, Trainer
from fastgen.training.processes import find_processes

State = dict[str, Tensor]


def state(model: nn.Module) -> State:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


class Uneven:
    """Vectors in float64, an odd number of them."""

    def batch(self, index: int) -> Batch:
        generator = torch.Generator().manual_seed(index)
        return Batch(torch.randn(7, 6, dtype=torch.float64, generator=generator), None)


class Numbered:
    """Batch k holds the numbers 4 k ... 4 k + 3; some are replaced, something may happen."""

    def __init__(
        self, replaced: dict[int, float] | None = None, happens: Callable[[int], None] | None = None
    ) -> None:
        self.replaced, self.happens = replaced or {}, happens

    def batch(self, index: int) -> Batch:
        if self.happens is not None:
            self.happens(index)
        numbers = range(4 * index, 4 * index + 4)
        return Batch(torch.tensor([self.replaced.get(n, float(n)) for n in numbers]), None)


def linear_autoencoder() -> Model:
    torch.manual_seed(0)
    encoder, decoder = nn.Linear(6, 2), nn.Linear(2, 6)
    return Autoencoder(encoder, decoder, latent_dim=2).double()


def uneven_batches(rank: int, **more: Any) -> State:
    """Weights after five steps of Adam."""
    model = linear_autoencoder()
    Trainer(model, Uneven(), lr=0.01, progress=False, **more).fit(5)
    return state(model)


def counted(rank: int) -> list[int]:
    """How many images each step of `uneven_batches` counts."""
    trainer = Trainer(linear_autoencoder(), Uneven(), progress=False)
    counts: list[int] = []
    trainer._meter.add = counts.append  # type: ignore[method-assign]
    trainer.fit(5)
    return counts


def digits(rank: int, kind: str, steps: int = 3, start: int = 0, **more: Any) -> State:
    """Weights after some steps on real digits."""
    torch.manual_seed(start)
    splits = load("digits", image_size=8)
    model = Regression() if kind == "dropout" else models(splits)[kind]()
    data = Noise(8, 6) if kind == "dropout" else splits.train
    options = {"batch_size": 8, "lr": 0.01, "progress": False, **more}
    trainer = Trainer(model, data, **options)
    trainer.fit(steps)
    average = trainer._average.weights if trainer._average is not None else {}
    return {**state(model), **{f"average of {name}": each for name, each in average.items()}}


def every_kind(rank: int, kinds: list[str]) -> dict[str, State]:
    """Each process builds other weights, as without a seed."""
    return {kind: digits(rank, kind, start=rank) for kind in kinds}


def resumed(rank: int, folder: Path, kinds: list[str]) -> None:
    """Six steps in one run, and three and three in another."""
    splits = load("digits", image_size=8)
    for kind in kinds:
        resumable(kind, splits, folder / kind / "whole", start=rank).fit(6)
        resumable(kind, splits, folder / kind / "parts", start=rank).fit(3)
        resumable(kind, splits, folder / kind / "parts", start=5 + rank).fit(6)


def saved_and_loaded(rank: int, folder: Path) -> tuple[State, State]:
    """Weights after 2 + 1 steps, and after 1 step behind a checkpoint that the first one saved."""
    splits = load("digits", image_size=8)
    first, second = (resumable("gan", splits, None, start) for start in (rank, 5 + rank))
    first.fit(2)
    first.save(folder / "two")
    first.fit(3)
    second.load(folder / "two" if rank == 0 else folder / "unseen")
    second.fit(3)
    return state(first.model), state(second.model)


def noise(rank: int) -> tuple[list[float], list[float]]:
    """What losses and what updates draw."""
    drawn: list[float] = []
    updates: list[float] = []

    def loss(a: Tensor, b: Tensor, x: Tensor) -> Tensor:
        drawn.append(torch.rand(()).item())
        return a + b

    model = TwoNumbers({"a": loss}, after_step=lambda: updates.append(torch.rand(()).item()))
    Trainer(model, Constant(torch.zeros(2)), progress=False).fit(3)
    return drawn, updates


def written(rank: int, run: Path) -> tuple[list[str], str, dict[str, float]]:
    """What a process writes to the run folder and to the console, and its last log point."""
    sys.stderr = console = io.StringIO()
    touched: list[str] = []

    def note(event: str, arguments: tuple[Any, ...]) -> None:
        if event in ("open", "os.mkdir", "os.rename") and str(arguments[0]).startswith(str(run)):
            reads = event == "open" and not arguments[2] & (os.O_WRONLY | os.O_RDWR)
            touched.extend([] if reads else [str(arguments[0])])

    sys.addaudithook(note)
    model = TwoNumbers({"a": lambda a, b, x: (a * x).mean(), "b": lambda a, b, x: (b - x).mean()})
    trainer = Trainer(
        model, Numbered(), optimizer=sgd(0.0), run=run, log_every=1, checkpoint_every=1
    )
    record = trainer.fit(3)
    return touched, console.getvalue(), record


def gone_bad(rank: int) -> tuple[State, State, dict[str, Any]]:
    """Weights before step 3 and at the error, and what the error says."""
    before: list[State] = []
    model = TwoNumbers({"a": lambda a, b, x: (a * x).mean(), "b": lambda a, b, x: (b * a).mean()})

    def happens(index: int) -> None:
        if index == 2:
            before.append(state(model))

    data = Numbered({11: float("nan")}, happens)  # in the second half of batch 2
    try:
        Trainer(model, data, optimizer=sgd(0.01), progress=False).fit(5)
    except NonFiniteLoss as error:
        return before[0], state(model), {**vars(error), "message": str(error)}
    raise AssertionError("nothing was noticed")


def signalled(rank: int, run: Path) -> None:
    """A signal comes to the second process during step 3 of many."""

    def happens(index: int) -> None:
        if index == 2 and rank == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    model = TwoNumbers({"a": lambda a, b, x: (a - x).square().mean()})
    options = {"optimizer": sgd(1e-3), "run": run, "progress": False}
    Trainer(model, Numbered(happens=happens), **options).fit(10_000)


def failing(rank: int, culprit: int, run: Path) -> None:
    """One process's data cannot be read in the third step; it lives on for a while."""

    def happens(index: int) -> None:
        if index == 2 and rank == culprit:
            raise FileNotFoundError("batch 2 is gone")

    model = TwoNumbers({"a": lambda a, b, x: (a - x).square().mean()})
    options = {"optimizer": sgd(1e-3), "run": run, "progress": False}
    trainer = Trainer(model, Numbered(happens=happens), **options)
    try:
        trainer.fit(10_000)
    except FileNotFoundError:
        time.sleep(2)
        raise


def run_of(rank: int, run: Path, **more: Any) -> None:
    """Two steps in a run folder."""
    model = TwoNumbers({"a": lambda a, b, x: (a - x).square().mean()})
    Trainer(model, Numbered(), optimizer=sgd(1e-3), run=run, progress=False, **more).fit(2)


class Gaps(Model):
    """`common` has a gradient everywhere, `some` where x is large, `none` nowhere."""

    def __init__(self) -> None:
        super().__init__()
        for name in ("common", "some", "none"):
            self.register_parameter(name, nn.Parameter(torch.tensor(1.0)))

    def phases(self) -> list[Phase]:
        return [Phase("gaps", tuple(self.parameters()), self._loss)]

    def _loss(self, images: Tensor, labels: Tensor | None) -> Losses:
        loss = (self.common * images).mean()
        return {"loss": loss + self.some if images.max() > 2 else loss}


def gaps(rank: int) -> State:
    """One step with weight decay, which would move a weight whose gradient is 0."""

    def optimizer(parameters: Any) -> torch.optim.Optimizer:
        return torch.optim.SGD(parameters, lr=1.0, weight_decay=0.5)

    model = Gaps()
    Trainer(model, Numbered(), optimizer=optimizer, progress=False).fit(1)
    return state(model)


def images_read(rank: int) -> list[int]:
    """How many images of a dataset a process reads at once, in three steps."""
    splits, read = load("digits", image_size=8), []
    train = splits.train
    gather = type(train).gather

    def counted(dataset: Any, positions: Any) -> Any:
        read.append(len(positions))
        return gather(dataset, positions)

    type(train).gather = counted  # type: ignore[method-assign]
    Trainer(models(splits)["autoencoder"](), train, batch_size=8, progress=False).fit(3)
    return read


def equalized(rank: int) -> list[list[float]]:
    """The first process's numbers, behind others of one byte."""
    tensors = [torch.tensor([rank == 0]), torch.arange(3.0).double() + rank]
    tensors += [torch.tensor(rank - 5), torch.full((2, 2), 0.5 + rank).T[1]]
    processes = find_processes()
    with processes.together():
        processes.equalize(tensors)
    return [tensor.flatten().tolist() for tensor in tensors]


def half_precision(rank: int) -> tuple[torch.dtype, float, float]:
    """The mean of a bfloat16 gradient over three images of each process, and of a loss."""
    weight = torch.zeros(1, dtype=torch.bfloat16)
    gradient = torch.tensor([2**-8 if rank else 1.0], dtype=torch.bfloat16)
    processes = find_processes()
    with processes.together():
        losses, (mean,) = processes.average(
            {"loss": torch.tensor(float(rank))}, [weight], [gradient], 3
        )
    assert mean is not None
    return mean.dtype, mean.item(), losses["loss"].item()


def batch_size(rank: int, size: int) -> None:
    Trainer(Regression(), load("digits", image_size=8).train, batch_size=size)


def one_image(rank: int) -> None:
    """A source of one's own whose batches two processes cannot share."""

    class Single:
        def batch(self, index: int) -> Batch:
            return Batch(torch.ones(1), None)

    Trainer(Gaps(), Single(), progress=False).fit(1)


def different(rank: int, differing: dict[str, list[Any]]) -> None:
    options = {name: values[rank] for name, values in differing.items()}
    Trainer(Regression(), Noise(8, 6), progress=False, **options).fit(2)


def own_group(rank: int, folder: Path) -> tuple[bool, float, State]:
    """The caller's group, made through a file and without torchrun's variables."""
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        del os.environ[name]
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    weights = uneven_batches(rank)
    total = torch.tensor(float(rank + 1))
    dist.all_reduce(total)
    return dist.is_initialized(), total.item(), weights


def alone_in_a_team(rank: int) -> bool:
    """The first process trains something by itself; whether there is a group then."""
    if rank == 0:
        uneven_batches(rank, processes="one")
    return dist.is_initialized()
