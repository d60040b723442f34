"""One training step: seeds, gradients, updates, averages."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from functools import partial
from itertools import chain
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from fastgen.acceleration.layouts import lay_out_state
from fastgen.data import Batch
from fastgen.models import Losses, Model
from fastgen.ops.casts import Casts
from fastgen.ops.gradients import returning

from . import obstacles
from .averaging import WeightAverage
from .checkpoint import Checkpoint, ForeignCheckpoint, load_weights
from .finite import FiniteWatch, Moment, NonFiniteLoss, all_finite, explain
from .graphs import Graphs
from .inputs import Inputs, make_inputs
from .packing import pack, unpack
from .phase_checks import check_losses, check_optimizer, check_phases
from .processes import BatchSource, Gradients, Processes
from .seeds import seed_generators, step_seed
from .step_graphs import WARM_UP, StepGraphs

OptimizerFactory = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]
T = TypeVar("T")


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
        processes: Processes,
        graphs: Graphs | None = None,
        graphs_required: bool = False,
    ) -> None:
        self._model, self._batches, self._device, self._seed = model, batches, device, seed
        self._dtype, self._run_phases, self._average = dtype, UPDATES[updates], average
        self._augment, self._processes = augment, processes
        self.phases = model.phases()
        check_phases(self.phases)
        self.optimizers = [optimizer(phase.parameters) for phase in self.phases]
        for phase, made in zip(self.phases, self.optimizers, strict=True):
            check_optimizer(phase.name, made)
        self._casts = [Casts(phase.parameters) for phase in self.phases]
        self._casts_are_shared = device.type != "cpu"
        self.losses: dict[str, Tensor] = {}
        self._watch = FiniteWatch(device, deferred=device.type != "cpu" or graphs is not None)
        self._batches_per_step = max(phase.repeats for phase in self.phases)
        self._drawn: dict[int, Batch] = {}
        self._sizes: dict[int, int] = {}
        self._inputs: Inputs | None = None
        self._numbers: dict[str, object] = {}
        self._recording: Graphs | None = None
        self._fitted = True
        self.graphs = StepGraphs(
            graphs,
            required=graphs_required,
            obstacle=self._obstacle,
            constants=self._constants,
            addresses=self._addresses,
        )
        if self._run_phases is _simultaneously and self._batches_per_step > 1:
            repeats = ", ".join(f"{phase.name} {phase.repeats}" for phase in self.phases)
            raise ValueError(
                f"simultaneous updates need phases that run once a step (got {repeats}): set the "
                "critic steps to 1 or use alternating updates"
            )

    def run(self, step: int) -> int:
        """Run step 0, 1, 2 ...; returns how many images it was trained on, in all processes.

        Raises:
            NonFiniteLoss: on the CPU, before the bad update. Elsewhere see `check`.
        """
        self._drawn.clear()
        self._sizes.clear()
        self.losses.clear()
        self._recording, self._fitted = self.graphs.begin(), True
        if self.graphs.steps == WARM_UP - 1:
            self._numbers = obstacles.numbers_in(self._model)

        self._run_phases(self, step)
        self._processes.equalize(self._model.buffers())
        if self._average is not None:
            self._average.reach(step + 1)
            self.play("average", self._average.follow)
        return sum(self._sizes.values())

    def check(self) -> None:
        """Wait for the device; raise NonFiniteLoss if anything since the last check was bad."""
        moment = self._watch.first()
        if moment is not None:
            raise self._processes.blame(
                partial(self._explain, moment), lambda: self._is_source(moment)
            )

    def play(self, name: str, work: Callable[[], T]) -> T:
        """Run a part of the step that needs neither batch nor noise."""
        # Recordings share memory and are made in the order of the step, so none before all before
        # it are; and the gradients that it reads lie where they lay only if a replay made them.
        if self._recording is None or not self._fitted:
            return self.graphs.eagerly(work)
        return self._replay(name, work, lambda: None)

    def play_with_batch(self, name: str, moment: Moment, work: Callable[[Batch], T]) -> T:
        """Run a part of the step on its batch, after seeding its noise."""
        index, seed = self._index(moment), partial(self._seed_noise, moment)
        self._watch.note(moment)
        inputs = self._inputs_for(index)
        if inputs is not None:
            return self._replay(name, lambda: work(inputs.read()), seed)
        batch, self._fitted = self._batch(index), False
        seed()
        return self.graphs.eagerly(lambda: work(batch))

    def gradients(self, place: int, batch: Batch) -> tuple[dict[str, Tensor], Gradients]:
        """The losses of one phase, and their gradients in its own parameters."""
        phase, losses = self.phases[place], self._forward(place, batch)
        found, gradients = self._processes.average(
            {name: value.detach() for name, value in losses.items()},
            phase.parameters,
            self._own_gradients(place, losses),
            len(batch.images),
        )
        self._watch.look(found["loss"], gradients)
        if not self._watch.deferred:
            self.check()
        named = {f"{phase.name}/{name}": value for name, value in found.items()}
        return named, list(map(_in_layout_of, phase.parameters, gradients))

    def update(self, place: int, gradients: Gradients) -> None:
        """Let one phase's optimizer move its parameters."""
        parameters, optimizer = self.phases[place].parameters, self.optimizers[place]
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        try:
            with self._watch.guarding(optimizer):
                if _being_captured():
                    with obstacles.fused_as_capturable(optimizer):
                        optimizer.step()
                else:
                    optimizer.step()
        finally:
            for parameter in parameters:
                parameter.grad = None
        self._after_step(place, ours=True)

    def descend(self, moment: Moment) -> None:
        """Run a phase once: gradients, then the update."""

        def work(batch: Batch) -> dict[str, Tensor]:
            losses, gradients = self.gradients(moment.phase, batch)
            self._seed_update(moment)
            self.update(moment.phase, gradients)
            return losses

        name = f"descend {moment.phase}"
        self.losses.update(self.play_with_batch(name, moment, work))
        self._after_step(moment.phase, ours=False)

    def descend_together(self, step: int) -> None:
        """Run every phase once: all gradients, then all updates."""
        places = range(len(self.phases))
        gradients: list[Gradients] = []
        for place in places:
            losses, found = self.play_with_batch(
                f"gradients {place}", Moment(step, place, 0), partial(self.gradients, place)
            )
            self.losses.update(losses)
            gradients.append(found)

        def work() -> None:
            self._seed_update(Moment(step, 0, 0))
            for place in places:
                self.update(place, gradients[place])

        self.play("updates", work)
        for place in places:
            self._after_step(place, ours=False)

    def state(self) -> Checkpoint:
        """Everything the next step depends on.

        Raises:
            TypeError: the model or an optimizer has a state that a checkpoint cannot hold.
        """
        packed, optimizer = pack(
            {
                phase.name: optimizer.state_dict()
                for phase, optimizer in zip(self.phases, self.optimizers, strict=True)
            }
        )
        weights = self._model.state_dict()
        for name, value in weights.items():
            if not isinstance(value, Tensor):
                raise TypeError(
                    f"{name} of the model's state_dict is a {type(value).__name__}, which a "
                    "checkpoint cannot hold: let get_extra_state return a tensor"
                )
        tensors: dict[str, Mapping[str, Tensor]] = {"model": weights}
        if self._average is not None:
            tensors["ema"] = self._average.weights
        return Checkpoint({**tensors, "optimizer": optimizer}, {"optimizers": packed})

    def load(self, checkpoint: Checkpoint) -> None:
        """Take over the state of a checkpoint.

        Raises:
            ForeignCheckpoint: it belongs to another model or other phases.
        """
        optimizers: dict[str, Any] = unpack(
            checkpoint.state["optimizers"], checkpoint.tensors["optimizer"]
        )
        names = [phase.name for phase in self.phases]
        if list(optimizers) != names:
            raise ForeignCheckpoint(
                f"the checkpoint has phases {list(optimizers)}, the model {names}"
            )
        if (self._average is not None) != ("ema" in checkpoint.tensors):
            raise ForeignCheckpoint("either the checkpoint or the trainer has no averaged weights")
        load_weights(self._model, checkpoint.tensors["model"])
        if self._average is not None:
            self._average.load(checkpoint.tensors["ema"])
        for name, optimizer in zip(names, self.optimizers, strict=True):
            _load_state(optimizer, optimizers[name])
        self.graphs.forget()

    def _forward(self, place: int, batch: Batch) -> Losses:
        """The losses of one phase; the noise is seeded already."""
        images = batch.images if self._augment is None else self._augment(batch.images)
        mixed = self._dtype != torch.float32
        autocast = torch.autocast(self._device.type, dtype=self._dtype, enabled=mixed)
        shared = self._casts[place].shared() if self._casts_are_shared else nullcontext()
        with autocast, shared:
            losses = self.phases[place].loss(images, batch.labels)
        check_losses(self.phases[place].name, losses)
        return losses

    def _own_gradients(self, place: int, losses: Losses) -> Gradients:
        """The gradients of this process's losses."""
        parameters = self.phases[place].parameters
        with returning(parameters):
            return torch.autograd.grad(losses["loss"], parameters, allow_unused=True)

    def _explain(self, moment: Moment, process: int | None) -> NonFiniteLoss:
        phase = self.phases[moment.phase].name
        return explain(self._model, phase, moment, lambda: self._losses_of(moment), process)

    def _is_source(self, moment: Moment) -> bool:
        """Whether this process's own numbers of a moment are not finite."""
        losses = self._losses_of(moment)
        return not all_finite([losses["loss"], *self._own_gradients(moment.phase, losses)])

    def _losses_of(self, moment: Moment) -> Losses:
        """The losses of one moment, as often as asked the same."""
        batch = self._batch(self._index(moment))
        self._seed_noise(moment)
        return self._forward(moment.phase, batch)

    def _index(self, moment: Moment) -> int:
        # The phases of a step share its batches, so an epoch is as long for a GAN as for a VAE.
        return moment.step * self._batches_per_step + moment.repetition

    def _batch(self, index: int) -> Batch:
        if index not in self._drawn:
            batch, self._sizes[index] = self._processes.take(self._batches, index)
            images, labels = batch.images, batch.labels
            self._drawn[index] = Batch(
                images.to(self._device), None if labels is None else labels.to(self._device)
            )
        return self._drawn[index]

    def _seed_noise(self, moment: Moment) -> None:
        seed_generators(step_seed(self._seed, *moment, self._processes.rank), self._device)

    def _seed_update(self, moment: Moment) -> None:
        # What an optimizer or a constraint draws must be the same in all processes, or their
        # weights would part; no process has this number.
        if self._processes.count > 1:
            seed = step_seed(self._seed, *moment, self._processes.count)
            seed_generators(seed, self._device)

    def _after_step(self, place: int, *, ours: bool) -> None:
        # What is not ours may do more than compute, so it is never part of a recording.
        after_step = self.phases[place].after_step
        if after_step is not None and obstacles.is_ours(after_step) == ours:
            after_step()

    # --- recording ---

    def _replay(self, name: str, work: Callable[[], T], prepare: Callable[[], None]) -> T:
        result = self.graphs.replay(name, work, prepare)
        if self.graphs.reason is not None:
            self._recording = None
        return result

    def _inputs_for(self, index: int) -> Inputs | None:
        """Where a recording finds batch `index`; None where it is to run eagerly."""
        if self._recording is None:
            return None
        if self._inputs is None:
            room = self._recording.room()
            self._inputs = make_inputs(
                self._batches, self._batch, index, device=self._device, room=room
            )
        size = self._inputs.load(index)
        if size is None:
            return None
        self._sizes[index] = size
        return self._inputs

    def _obstacle(self) -> str | None:
        pairs = zip(self.phases, self.optimizers, strict=True)
        reasons = chain(
            [obstacles.of_processes(self._processes.count), obstacles.of_hooks(self._model)],
            (obstacles.of_optimizer(phase.name, optimizer) for phase, optimizer in pairs),
        )
        if self._recording is None and self.graphs.steps == WARM_UP + 1:
            numbers = obstacles.of_numbers(self._numbers, obstacles.numbers_in(self._model))
            reasons = chain(reasons, [numbers])
        return next((reason for reason in reasons if reason is not None), None)

    def _constants(self) -> object:
        return [
            (key, self._constant(value))
            for optimizer in self.optimizers
            for group in optimizer.param_groups
            for key, value in group.items()
            if key != "params"
        ]

    def _constant(self, value: object) -> object:
        # A tensor on the device is read by every replay; one on the host, when it was recorded.
        if not isinstance(value, Tensor):
            return value
        return value.data_ptr() if value.device == self._device else value.tolist()

    def _addresses(self) -> object:
        tensors = chain(
            self._model.parameters(),
            self._model.buffers(),
            self._average.weights.values() if self._average is not None else (),
            (
                value
                for optimizer in self.optimizers
                for remembered in optimizer.state.values()
                for value in remembered.values()
                if isinstance(value, Tensor)
            ),
        )
        return [tensor.data_ptr() for tensor in tensors], obstacles.numbers_in(self._model)


def _alternate(stepper: Stepper, step: int) -> None:
    for place, phase in enumerate(stepper.phases):
        for repetition in range(phase.repeats):
            stepper.descend(Moment(step, place, repetition))


def _simultaneously(stepper: Stepper, step: int) -> None:
    stepper.descend_together(step)


UPDATES = {"alternating": _alternate, "simultaneous": _simultaneously}
"""The order of gradients and updates within a step."""


def _being_captured() -> bool:
    # Asked before CUDA is in use, torch would take a GPU's memory for a training on the CPU.
    initialized = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    return initialized and torch.cuda.is_current_stream_capturing()


@torch.no_grad()
def _load_state(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    # A setting that is a tensor stays the caller's, who changes the learning rate through it.
    held = [
        {key: value for key, value in group.items() if isinstance(value, Tensor)}
        for group in optimizer.param_groups
    ]
    optimizer.load_state_dict(_run_as(optimizer, state))
    for group, tensors in zip(optimizer.param_groups, held, strict=True):
        for key, tensor in tensors.items():
            tensor.copy_(torch.as_tensor(group[key]))
            group[key] = tensor
    lay_out_state(optimizer)


def _run_as(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> dict[str, Any]:
    # How an optimizer runs belongs to the machine and not to the checkpoint.
    how = ("fused", "foreach", "capturable")
    groups = [
        {**loaded, **{key: present[key] for key in how if key in present}}
        for loaded, present in zip(state["param_groups"], optimizer.param_groups, strict=True)
    ]
    return {**state, "param_groups": groups}


def _in_layout_of(parameter: Tensor, gradient: Tensor | None) -> Tensor | None:
    # A fused optimizer walks through memory: on the CPU it silently mixes up the elements of a
    # weight and a gradient whose strides differ.
    if gradient is None or gradient.stride() == parameter.stride():
        return gradient
    return torch.empty_like(parameter).copy_(gradient)
