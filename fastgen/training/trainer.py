"""The trainer: runs a model's phases and knows nothing about GANs or VAEs."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, ExitStack, nullcontext
from itertools import chain
from numbers import Integral
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastgen.data import Batches, ImageDataset, Splits, fingerprint
from fastgen.models import Model

from .averaging import WeightAverage
from .checkpoint import Checkpoint, fitting, read_checkpoint, read_latest, write_checkpoint
from .devices import move, resolve_device
from .graphs import graphs_for
from .interrupt import Interrupted, answering_signals
from .log import Record, RunLog
from .phase_checks import check_differentiable
from .processes import BatchSource, Processes, find_processes
from .progress import Meter, Progress
from .recorder import Recorder
from .run_folder import FINGERPRINT, RunFolder, Settings
from .seeds import PICTURES, own_generators, seed_generators, step_seed
from .stepper import UPDATES, OptimizerFactory, Stepper
from .summary import parameter_count
from .text import spelled, without_addresses

Action = Callable[[int], None]
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}
CAPTURES = ("auto", "off", "on")
PROCESSES: dict[str, Callable[[], Processes]] = {"auto": find_processes, "one": Processes}


class Trainer:
    """Trains a model: one step runs each of its phases `repeats` times.

    Step t, for every phase p with loss L_p and parameters w_p::

        seed torch's generators with hash(seed, t, p, repetition)
        gradients = d L_p / d w_p         no other module's are computed
        w_p = optimizer_p(w_p, gradients)
        p.after_step()
    then average the weights (EMA)

    **All randomness of step t is a function of (seed, t)**: batches, noise, dropout. So a training
    that was stopped and goes on is bit-identical to one that was not, on the same machine with the
    same number of threads (on a GPU, as far as the kernels are deterministic). The caller's random
    numbers are not disturbed. The loop waits for the device only at log points, pictures and
    checkpoints.

    **Several processes** train one model together where torchrun started them, or where the caller
    has initialized a process group: each computes its part of every batch, gradients and losses are
    averaged, the first one writes. Every process makes the same trainer and calls the same methods.
    See ``docs/processes.md``.

    Args:
        model: lists its phases; it is moved to the device, its 4-d weights to channels_last.
        data: a dataset of images, or any source of numbered batches. The phases of a step share
            its batches: a phase with `repeats` = k runs on k of them, the others on the first.
        batch_size: images in a batch, when `data` is a dataset; of all processes together.
        seed: what all randomness of the training derives from. The weights at the start are the
            caller's: call ``torch.manual_seed`` before building the model.
        device: ``"auto"`` (a CUDA GPU if there is one), ``"cpu"``, ``"cuda"``, ``"cuda:1"`` ...
            Of several processes each takes a GPU of its own unless one is named.
        precision: ``"fp32"``, or ``"bf16"``: losses run under autocast, weights stay float32.
        capture: whether steps on a GPU are recorded in CUDA graphs, after three ordinary ones, and
            replayed: a step then costs a few launches instead of some thousand. The numbers are the
            same (see ``docs/capture.md``). ``"auto"``: where it can be done, else one line says why
            not; ``"off"``; ``"on"``: where it cannot be done, an error says why.
        lr, betas: of Adam, one for each phase.
        optimizer: makes another optimizer from a phase's parameters, `lr` and `betas` aside; one
            whose step needs no closure.
        augment: changes the images of every batch, :class:`~fastgen.data.AffineJitter` for one;
            what it draws from torch's generators is a function of (seed, t) too.
        updates: ``"alternating"``: each phase sees the update of the one before;
            ``"simultaneous"``: all gradients first, then all updates.
        ema_decay: of the average of ``model.averaged``, with a warm-up, see
            :class:`~fastgen.training.averaging.WeightAverage`; 0 or None for none.
        run: a folder for log, pictures, checkpoints and a report, see
            :mod:`fastgen.training.run_folder`. If it holds a run already, `fit` continues that.
        settings: what ``config.json`` records and compares; by default the arguments above but for
            `device` and `capture`, an `ImageDataset` by its fingerprint.
        held_out: images to show beside their reconstructions; by default those trained on.
        log_every, sample_every, checkpoint_every: in steps; the last step has them all.
        keep: how many checkpoints stay, the newest ones.
        progress: a bar on a terminal, elsewhere a line for each log point.
        processes: ``"auto"``: with the others, if there are any; ``"one"``: this process by itself.

    Attributes:
        step: how many steps are done.

    Example::

        splits = fastgen.data.load("digits")
        model = WGAN.for_images(splits.train.image_shape)
        Trainer(model, splits.train, betas=(0.0, 0.9), run="runs/digits").fit(1000)
    """

    def __init__(
        self,
        model: Model,
        data: ImageDataset | BatchSource,
        *,
        batch_size: int = 64,
        seed: int = 0,
        device: str | torch.device = "auto",
        precision: str = "fp32",
        capture: str = "auto",
        lr: float = 2e-4,
        betas: tuple[float, float] = (0.5, 0.999),
        optimizer: OptimizerFactory | None = None,
        augment: Callable[[Tensor], Tensor] | None = None,
        updates: str = "alternating",
        ema_decay: float | None = 0.999,
        run: str | Path | None = None,
        settings: Settings | None = None,
        held_out: ImageDataset | None = None,
        log_every: int = 25,
        sample_every: int = 250,
        checkpoint_every: int = 250,
        keep: int = 3,
        progress: bool = True,
        processes: str = "auto",
    ) -> None:
        _check_kinds(model, data)
        check_differentiable(model)
        _one_of("precision", precision, PRECISIONS)
        _one_of("updates", updates, UPDATES)
        _one_of("capture", capture, CAPTURES)
        _one_of("processes", processes, PROCESSES)
        _at_least(0, seed=seed)
        _at_least(1, keep=keep, log_every=log_every)
        _at_least(1, sample_every=sample_every, checkpoint_every=checkpoint_every)

        self._processes = PROCESSES[processes]()
        self.device = resolve_device(device)
        graphs = None if capture == "off" else graphs_for(self.device)
        if capture == "on" and graphs is None:
            raise ValueError(f"capture='on' needs a CUDA GPU (device is {self.device})")
        self.model = move(model, self.device)
        self.step, self._seed, self._progress, self._keep = 0, seed, progress, keep
        self._average = (
            WeightAverage(model, model.averaged, ema_decay)
            if ema_decay and model.averaged
            else None
        )
        self._batches = self._as_batches(data, batch_size)
        self._shown = self._batches if held_out is None else self._as_batches(held_out, batch_size)
        self._stepper = Stepper(
            model,
            self._batches,
            device=self.device,
            seed=seed,
            dtype=PRECISIONS[precision],
            optimizer=optimizer or _adam(lr, betas, self.device),
            augment=augment,
            updates=updates,
            average=self._average,
            processes=self._processes,
            graphs=graphs,
            graphs_required=capture == "on",
        )
        self._log_every, self._sample_every = log_every, sample_every
        self._checkpoint_every = checkpoint_every
        self._meter = Meter()

        self._run = None if run is None else RunFolder(Path(run))
        self._settings = settings or {
            "model": type(model).__name__,
            "details": without_addresses(model.extra_repr()),
            "parameters": parameter_count(model),
            "batch_size": int(batch_size),
            "seed": int(seed),
            "precision": precision,
            "optimizers": [spelled(each) for each in self._stepper.optimizers],
            "augment": spelled(augment),
            "updates": updates,
            "ema_decay": None if ema_decay is None else float(ema_decay),
            **({} if run is None else _data_settings(self._batches)),
        }

    def fit(self, steps: int) -> Record:
        """Train until `steps` steps are done in all, those of a continued run included.

        Returns:
            The last log point; empty where nothing was left to do.

        Raises:
            NonFiniteLoss: naming phase, step and module, and of several processes the one. The last
                complete checkpoint stays. On the CPU the weights are those before the bad update.
            Interrupted: Ctrl-C or SIGTERM came; the step was finished and, with a run folder, a
                checkpoint saved. A second Ctrl-C stops at once.
            ConfigMismatch: the run folder belongs to other settings.
            FolderInUse: another process is training in the run folder.
            CheckpointError: a checkpoint cannot be written, none can be read, or the newest belongs
                to another model.
            CaptureError: `capture` is ``"on"`` and the step cannot be captured.
            ProcessesError: the processes were given different settings.
            OtherProcessFailed: another process ended, by an error of its own.
            TypeError, ValueError: `steps` is no whole number, or below 0; or gradients are off.
        """
        _at_least(0, steps=steps)
        if not torch.is_grad_enabled():
            raise ValueError(
                "fit needs gradients: call it outside of torch.no_grad() and torch.inference_mode()"
            )
        record: Record = {}
        with ExitStack() as stack:
            stack.enter_context(self._processes.together())
            stop = stack.enter_context(answering_signals())
            stack.enter_context(own_generators(self.device))
            recorder, progress = self._open(steps, stack)

            def log(step: int) -> None:
                record.clear()
                record.update(self._record())
                progress.show(record)
                if recorder is not None:
                    recorder.record(record)

            actions: list[tuple[int, Action]] = [(self._log_every, log)]
            if self._run is not None:
                # Also where nothing is written: all processes look at the numbers at one time.
                actions += [
                    (self._sample_every, _nothing if recorder is None else recorder.draw),
                    (self._checkpoint_every, _nothing if recorder is None else recorder.save),
                ]
            self.model.train()
            self._stepper.graphs.say = progress.warn
            self._stepper.graphs.review()
            stack.enter_context(self._meter.running())
            while self.step < steps:
                self._meter.add(self._stepper.run(self.step))
                self.step += 1
                progress.advance()

                for every, action in actions:
                    if self.step % every == 0 or self.step == steps:
                        self._do(action)
                if (signal := self._processes.agree(stop.signal)) is not None:
                    raise self._interrupted(signal, recorder)
            self._processes.wait()
        return record

    def save(self, path: str | Path) -> None:
        """Write the whole training state as a checkpoint folder; see :mod:`.checkpoint`.

        Of several processes the first writes, and the others do not wait for it.

        Raises:
            CheckpointError: there is something at `path`, or it cannot be written.
        """
        if self._processes.is_first:
            write_checkpoint(Path(path), self._state())

    def load(self, path: str | Path) -> None:
        """Take over the training state of a checkpoint folder.

        In a run folder `fit` goes on from there. What its log has beyond that step moves to
        ``log-after-<step>.jsonl``; checkpoints beyond it stay, and another trainer goes on from the
        newest.

        Of several processes all call this; the first reads and tells the others.

        Raises:
            CheckpointError: it is damaged, or belongs to another model; the latter is a ValueError
                too.
        """
        with self._processes.together(), fitting(Path(path)):
            self._receive(read_checkpoint(Path(path)) if self._processes.is_first else None)

    def averaged_weights(self) -> AbstractContextManager[None]:
        """A context inside which the model computes with its averaged weights, if it has any."""
        return nullcontext() if self._average is None else self._average.applied()

    def _open(self, steps: int, stack: ExitStack) -> tuple[Recorder | None, Progress]:
        """Resume the run, if there is one to resume, and open everything that writes."""
        self._processes.check_same(self.model, self._shared_settings(steps))
        chosen = self.step != 0  # by `load`, or where this trainer's last call stopped
        complaints = self._resume(stack) if self._run is not None else []
        averages = self._average.weights.values() if self._average is not None else ()
        self._processes.equalize(chain(self.model.parameters(), self.model.buffers(), averages))

        on = self._progress and self._processes.is_first
        progress = stack.enter_context(Progress(self.step, steps, on=on))
        if self._run is None or not self._processes.is_first:
            return None, progress
        for line in complaints:
            progress.warn(line)
        if self.step:
            progress.say(f"continuing {self._run.path} after step {self.step}")

        log = RunLog(
            self._run.log,
            after=self.step,
            every=self._log_every,
            goes_on=self.step < steps,
            say=progress.say,
            went_back=chosen,
        )
        stack.enter_context(log)
        recorder = Recorder(
            self._run,
            log,
            model=self.model,
            averaged_weights=self.averaged_weights,
            reals=self._batches.batch(0).images,
            originals=self._shown.batch(0).images,
            state=self._state,
            keep=self._keep,
        )
        # Whatever is wrong with the pictures, or with the state, shows now and not after an hour.
        self._state()
        if self.step == 0:
            self._do(recorder.draw)
        return recorder, progress

    def _resume(self, stack: ExitStack) -> list[str]:
        """Take the run's newest checkpoint; returns lines for the user."""
        assert self._run is not None
        latest = None
        if self._processes.is_first:
            # What is no run gets no lock file, and a run in use keeps the settings it has.
            self._run.check(self._settings)
            stack.enter_context(self._run.locked())
            self._run.claim(self._settings)
            latest = read_latest(self._run.checkpoints) if self.step == 0 else None
        path, checkpoint, complaints = latest or (None, None, [])
        lines = [f"{line}; using {path.name} instead" for line in complaints if path]
        with fitting(path):
            before = self._receive(checkpoint)
        if before not in (None, self._processes.count):
            lines.append(
                f"{before} processes trained up to here, now it is {self._processes.count}: "
                "batches stay what they were, the noise does not"
            )
        return lines

    def _receive(self, checkpoint: Checkpoint | None) -> int | None:
        """Take the first process's checkpoint, if it has one; by how many it was made."""
        checkpoint = self._processes.same_checkpoint(checkpoint)
        if checkpoint is None:
            return None
        self._stepper.load(checkpoint)
        self.step = checkpoint.state["step"]
        self._meter.seconds_before = checkpoint.state["seconds"]
        return int(checkpoint.state.get("processes", 1))

    def _do(self, action: Action) -> None:
        """Write something down, unless the numbers have gone bad since the last time."""
        self._stepper.check()
        with self._meter.paused():
            seed_generators(step_seed(self._seed, PICTURES), self.device)
            action(self.step)
        self._stepper.graphs.review()

    def _interrupted(self, number: int, recorder: Recorder | None) -> Interrupted:
        if self._run is None:
            return Interrupted(number, self.step, None)
        self._do(_nothing if recorder is None else recorder.save)
        # torchrun ends all processes as soon as one has ended.
        self._processes.wait()
        return Interrupted(number, self.step, self._run.checkpoint(self.step))

    def _record(self) -> Record:
        losses = self._stepper.losses
        # One transfer for all of them.
        values = torch.stack([value.double() for value in losses.values()]).tolist()
        return {
            "step": self.step,
            "seconds": round(self._meter.seconds, 3),
            "images_per_second": round(self._meter.rate(), 1),
            **dict(zip(losses, values, strict=True)),
        }

    def _state(self) -> Checkpoint:
        state = self._stepper.state()
        counts = {
            "step": self.step,
            "seconds": self._meter.seconds,
            "processes": self._processes.count,
        }
        return Checkpoint(state.tensors, {**counts, **state.state})

    def _shared_settings(self, steps: int) -> dict[str, Any]:
        """What all processes must agree on, or they would wait for each other in vain."""
        return {
            **self._settings,
            "images": repr(getattr(self._batches, "dataset", type(self._batches))),
            "run folder": self._run is not None,
            "device": self.device.type,
            "step": self.step,
            "until step": steps,
            "log_every": self._log_every,
            "sample_every": self._sample_every,
            "checkpoint_every": self._checkpoint_every,
        }

    def _as_batches(self, data: ImageDataset | BatchSource, batch_size: int) -> BatchSource:
        if isinstance(data, BatchSource):
            return data
        self._processes.check_divides(batch_size)
        return Batches(data, batch_size, seed=self._seed, device=self.device)


def _data_settings(batches: BatchSource) -> Settings:
    """What a run records of its batches, where their pictures are known."""
    if type(batches) is not Batches:
        return {}
    dataset = batches.dataset
    return {
        "data": dataset.description,
        FINGERPRINT: fingerprint(dataset),
        # Those of batches that the caller made may be others than the trainer's.
        "batch_size": int(batches.batch_size),
        "order_seed": int(batches.seed),
    }


def _nothing(step: int) -> None:
    pass


def _adam(lr: float, betas: tuple[float, float], device: torch.device) -> OptimizerFactory:
    # One kernel for all weights: on the CPU a quarter of the time of one call for each.
    fused = device.type in ("cpu", "cuda")
    floats = (float(betas[0]), float(betas[1]))  # Adam refuses a plain 0
    return lambda parameters: torch.optim.Adam(parameters, lr=lr, betas=floats, fused=fused)


def _check_kinds(model: object, data: object) -> None:
    if not isinstance(model, Model):
        raise TypeError(f"model must be a fastgen.models.Model (got {type(model).__name__})")
    if not isinstance(data, ImageDataset | BatchSource):
        hint = "; take its .train" if isinstance(data, Splits) else ""
        raise TypeError(
            "data must be a fastgen.data.ImageDataset, as load(...).train is one, or a source of "
            f"batches with a method batch(index) (got {type(data).__name__}{hint})"
        )


def _one_of(name: str, given: str, allowed: Iterable[str]) -> None:
    if given not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(allowed)} (got {given!r})")


def _at_least(least: int, **given: int) -> None:
    for name, value in given.items():
        if not isinstance(value, Integral):
            raise TypeError(f"{name} must be a whole number (got {value!r})")
        if value < least:
            raise ValueError(f"{name} must be at least {least} (got {value})")
