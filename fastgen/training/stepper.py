"""One training step: seeds, gradients, updates, averages."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from fastgen.models import Losses, Model

from .averaging import WeightAverage
from .checkpoint import Checkpoint
from .finite import FiniteWatch, Moment, explain
from .packing import pack, unpack
from .seeds import seed_generators, step_seed

OptimizerFactory = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]
Gradients = list[Tensor | None]


class Batch(Protocol):
    """Images, and labels where there are any."""

    @property
    def images(self) -> Tensor:
        """Float, (N, ...)."""

    @property
    def labels(self) -> Tensor | None:
        """Int64, (N,)."""


@runtime_checkable
class BatchSource(Protocol):
    """Anything that gives batch number 0, 1, 2 ... as a function of the number alone."""

    def batch(self, index: int) -> Batch:
        """The batch of this number."""


class Stepper:
    """Runs the steps of a model's phases; see :class:`~fastgen.training.Trainer` for the rules.

    Attributes:
        losses: every loss of the last step as ``"phase/name"``, 0-dim tensors on the device.
    """

    def __init__(
        self,
        model: Model,
        batches: BatchSource,
        *,
        device: torch.device,
        seed: int,
        dtype: torch.dtype,
        optimizer: OptimizerFactory,
        augment: Callable[[Tensor], Tensor] | None,
        updates: str,
        average: WeightAverage | None,
    ) -> None:
        self._model, self._batches, self._device, self._seed = model, batches, device, seed
        self._dtype, self._run_phases, self._average = dtype, UPDATES[updates], average
        self._augment = augment
        self.phases = model.phases()
        self.optimizers = [optimizer(phase.parameters) for phase in self.phases]
        self.losses: dict[str, Tensor] = {}
        self._watch = FiniteWatch(device)
        self._batches_per_step = max(phase.repeats for phase in self.phases)
        self._drawn: dict[int, Batch] = {}
        if self._run_phases is _simultaneously and self._batches_per_step > 1:
            repeats = ", ".join(f"{phase.name} {phase.repeats}" for phase in self.phases)
            raise ValueError(
                f"simultaneous updates need phases that run once a step (got {repeats}): set the "
                "critic steps to 1 or use alternating updates"
            )

    def run(self, step: int) -> int:
        """Run step 0, 1, 2 ...; returns how many images it was trained on.

        Raises:
            NonFiniteLoss: on the CPU, before the bad update. Elsewhere see `check`.
        """
        self._drawn.clear()
        self._run_phases(self, step)
        if self._average is not None:
            self._average.update(step + 1)
        return sum(len(batch.images) for batch in self._drawn.values())

    def check(self) -> None:
        """Wait for the device; raise NonFiniteLoss if anything since the last check was bad."""
        moment = self._watch.first()
        if moment is not None:
            phase = self.phases[moment.phase].name
            raise explain(self._model, phase, moment, lambda: self._forward(moment))

    def gradients(self, moment: Moment) -> Gradients:
        """The gradients of one phase in its own parameters."""
        phase, losses = self.phases[moment.phase], self._forward(moment)
        gradients = torch.autograd.grad(losses["loss"], phase.parameters, allow_unused=True)
        for name, value in losses.items():
            self.losses[f"{phase.name}/{name}"] = value.detach()
        self._watch.record(moment, losses["loss"], gradients)
        if not self._watch.deferred:
            self.check()
        return list(map(_in_layout_of, phase.parameters, gradients))

    def update(self, phase: int, gradients: Gradients) -> None:
        """Let one phase's optimizer move its parameters."""
        parameters, after_step = self.phases[phase].parameters, self.phases[phase].after_step
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        self.optimizers[phase].step()
        for parameter in parameters:
            parameter.grad = None
        if after_step is not None:
            after_step()

    def state(self) -> Checkpoint:
        """Everything the next step depends on."""
        packed, optimizer = pack(
            {
                phase.name: optimizer.state_dict()
                for phase, optimizer in zip(self.phases, self.optimizers, strict=True)
            }
        )
        tensors: dict[str, Mapping[str, Tensor]] = {"model": self._model.state_dict()}
        if self._average is not None:
            tensors["ema"] = self._average.weights
        return Checkpoint({**tensors, "optimizer": optimizer}, {"optimizers": packed})

    def load(self, checkpoint: Checkpoint) -> None:
        """Take over the state of a checkpoint.

        Raises:
            ValueError: it belongs to another model or other phases.
        """
        optimizers: dict[str, Any] = unpack(
            checkpoint.state["optimizers"], checkpoint.tensors["optimizer"]
        )
        names = [phase.name for phase in self.phases]
        if list(optimizers) != names:
            raise ValueError(f"the checkpoint has phases {list(optimizers)}, the model {names}")
        if (self._average is not None) != ("ema" in checkpoint.tensors):
            raise ValueError("either the checkpoint or the trainer has no averaged weights")
        self._model.load_state_dict(checkpoint.tensors["model"])
        if self._average is not None:
            self._average.load(checkpoint.tensors["ema"])
        for name, optimizer in zip(names, self.optimizers, strict=True):
            optimizer.load_state_dict(optimizers[name])
            _lay_out_like_parameters(optimizer)

    def _forward(self, moment: Moment) -> Losses:
        """The losses of one moment, as often as asked the same."""
        batch = self._batch(moment)
        labels = None if batch.labels is None else batch.labels.to(self._device)
        seed_generators(step_seed(self._seed, *moment), self._device)
        images = batch.images.to(self._device)
        if self._augment is not None:
            images = self._augment(images)
        mixed = self._dtype != torch.float32
        with torch.autocast(self._device.type, dtype=self._dtype, enabled=mixed):
            return self.phases[moment.phase].loss(images, labels)

    def _batch(self, moment: Moment) -> Batch:
        # The phases of a step share its batches, so an epoch is as long for a GAN as for a VAE.
        if moment.repetition not in self._drawn:
            index = moment.step * self._batches_per_step + moment.repetition
            self._drawn[moment.repetition] = self._batches.batch(index)
        return self._drawn[moment.repetition]


def _alternate(stepper: Stepper, step: int) -> None:
    for place, phase in enumerate(stepper.phases):
        for repetition in range(phase.repeats):
            stepper.update(place, stepper.gradients(Moment(step, place, repetition)))


def _simultaneously(stepper: Stepper, step: int) -> None:
    places = range(len(stepper.phases))
    gradients = [stepper.gradients(Moment(step, place, 0)) for place in places]
    for place in places:
        stepper.update(place, gradients[place])


UPDATES = {"alternating": _alternate, "simultaneous": _simultaneously}
"""The order of gradients and updates within a step."""


def _in_layout_of(parameter: Tensor, gradient: Tensor | None) -> Tensor | None:
    # A fused optimizer walks through memory: on the CPU it silently mixes up the elements of a
    # weight and a gradient whose strides differ.
    if gradient is None or gradient.stride() == parameter.stride():
        return gradient
    return torch.empty_like(parameter).copy_(gradient)


def _lay_out_like_parameters(optimizer: torch.optim.Optimizer) -> None:
    # Files hold contiguous tensors; see _in_layout_of.
    for parameter, remembered in optimizer.state.items():
        for key, value in remembered.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                remembered[key] = torch.empty_like(parameter).copy_(value)
