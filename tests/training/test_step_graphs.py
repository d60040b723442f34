"""Whole steps from recordings: the numbers are those of eager steps, and what cannot be recorded is
told. On the CPU with the tape of `tape.py` in place of CUDA graphs."""

from __future__ import annotations

import random
import subprocess
import sys
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from tape import Tape
from torch import Tensor, nn
from toys import Batch, Noise, Regression, TwoNumbers, models, sgd

from fastgen.data import AffineJitter, Splits
from fastgen.models import WGAN, Model, Phase, WeightClipping
from fastgen.training import NonFiniteLoss, Trainer
from fastgen.training import trainer as trainer_module
from fastgen.training.checkpoint import Checkpoint
from fastgen.training.graphs import CaptureError
from fastgen.training.step_graphs import CHANGES, WARM_UP

STEPS = WARM_UP + 4
KINDS = ("dropout", "gan", "wgan", "clipped", "spectral", "vae", "autoencoder", "classifier")


@pytest.fixture
def tapes(monkeypatch: pytest.MonkeyPatch) -> list[Tape]:
    """Trainers made with capture="auto" or "on" record on a tape; the list holds the tapes."""
    made: list[Tape] = []

    def graphs_for(device: torch.device) -> Tape:
        made.append(Tape())
        return made[-1]

    monkeypatch.setattr(trainer_module, "graphs_for", graphs_for)
    return made


def build(kind: str, digits: Splits, capture: str, **more: Any) -> Trainer:
    torch.manual_seed(0)
    options: dict[str, Any] = {"lr": 0.01, "log_every": 1, "progress": False, **more}
    if kind == "dropout":
        return Trainer(Regression(), Noise(5, 6), capture=capture, **options)
    shape = digits.train.image_shape
    model: Model = (
        WGAN.for_images(shape, latent_dim=3, width=4, regularizer=WeightClipping(), critic_steps=2)
        if kind == "clipped"
        else models(digits)[kind]()
    )
    return Trainer(model, digits.train, batch_size=8, capture=capture, **options)


def losses_of(trainer: Trainer, steps: int) -> list[dict[str, float]]:
    """The losses of every step."""
    found = []
    while trainer.step < steps:
        record = trainer.fit(trainer.step + 1)
        found.append({name: value for name, value in record.items() if "/" in name})
    return found


def assert_equal(one: Checkpoint, other: Checkpoint) -> None:
    assert one.tensors.keys() == other.tensors.keys()
    for group, tensors in one.tensors.items():
        assert tensors.keys() == other.tensors[group].keys()
        for name, tensor in tensors.items():
            assert torch.equal(tensor, other.tensors[group][name]), f"{group}: {name}"
    assert one.state["optimizers"] == other.state["optimizers"]


def assert_same_training(captured: Trainer, eager: Trainer, steps: int = STEPS) -> None:
    expected = losses_of(eager, steps)
    assert losses_of(captured, steps) == expected
    assert len({tuple(losses.values()) for losses in expected}) == len(expected)
    assert_equal(captured._state(), eager._state())


# --- the same numbers ---


@pytest.mark.parametrize("kind", KINDS)
def test_recorded_steps_give_the_numbers_of_eager_ones(
    kind: str, digits: Splits, tapes: list[Tape]
) -> None:
    captured, eager = build(kind, digits, "on"), build(kind, digits, "off")
    assert_same_training(captured, eager)
    (tape,) = tapes
    runs = sum(phase.repeats for phase in captured._stepper.phases) + bool(captured._average)
    parts = len(captured._stepper.phases) + bool(captured._average)
    assert (tape.recorded, tape.replayed) == (parts, runs * (STEPS - WARM_UP))
    assert tape.apart_from == runs * WARM_UP


@pytest.mark.parametrize(
    "options",
    [
        {"precision": "bf16"},
        {"augment": AffineJitter()},
        {"ema_decay": 0.5},
        {"optimizer": lambda parameters: torch.optim.SGD(parameters, lr=0.01, momentum=0.9)},
        {"optimizer": lambda parameters: torch.optim.AdamW(parameters, lr=0.01, fused=True)},
        {"updates": "simultaneous"},
    ],
    ids=lambda options: next(iter(options)),
)
def test_so_they_do_with_every_option(
    options: dict[str, Any], digits: Splits, tapes: list[Tape]
) -> None:
    kind = "gan" if "updates" in options else "wgan"
    assert_same_training(
        build(kind, digits, "on", **options), build(kind, digits, "off", **options)
    )
    assert tapes[0].replayed


def test_so_they_do_with_casts_that_are_shared_as_on_a_gpu(
    digits: Splits, tapes: list[Tape]
) -> None:
    trainers = [build("wgan", digits, capture, precision="bf16") for capture in ("on", "off")]
    for trainer in trainers:
        trainer._stepper._casts_are_shared = True
    assert_same_training(*trainers)
    assert tapes[0].replayed


def test_the_phases_are_python_only_until_they_are_recorded(
    digits: Splits, tapes: list[Tape]
) -> None:
    captured, calls = build("vae", digits, "on"), []
    phase = captured._stepper.phases[0]
    captured._stepper.phases[0] = Phase(
        phase.name, phase.parameters, lambda *batch: calls.append(1) or phase.loss(*batch)
    )
    captured.fit(STEPS)
    assert len(calls) == WARM_UP + 1


def test_a_set_that_has_no_room_on_the_device_is_copied_batch_by_batch(
    digits: Splits, monkeypatch: pytest.MonkeyPatch
) -> None:
    tape = Tape(room=0)
    monkeypatch.setattr(trainer_module, "graphs_for", lambda device: tape)
    assert_same_training(build("classifier", digits, "on"), build("classifier", digits, "off"))
    assert tape.replayed


class Uneven(Noise):
    """Every third batch is smaller."""

    def batch(self, index: int) -> Batch:
        images, labels = super().batch(index)
        return Batch(images[: 3 if index % 3 == 2 else 5], labels)


def test_batches_of_another_size_run_eagerly_between_the_recorded_ones(tapes: list[Tape]) -> None:
    def make(capture: str) -> Trainer:
        torch.manual_seed(0)
        return Trainer(Regression(), Uneven(5, 6), capture=capture, progress=False)

    captured = make("on")
    assert_same_training(captured, make("off"), 9)
    assert len(captured._stepper._drawn) == 1
    assert tapes[0].replayed == 2 * 4  # of steps 3 ... 8 (from 0), 5 and 8 have the smaller batch


# --- checkpoints and changes ---


@pytest.mark.parametrize("kind", ["wgan", "vae", "dropout"])
@pytest.mark.parametrize(("first", "second"), [("on", "off"), ("off", "on"), ("on", "on")])
def test_a_training_goes_on_from_the_others_checkpoint(
    kind: str, first: str, second: str, digits: Splits, tapes: list[Tape], tmp_path: Path
) -> None:
    whole = build(kind, digits, "off")
    whole.fit(2 * STEPS)
    half = build(kind, digits, first)
    half.fit(STEPS)
    half.save(tmp_path / "half")
    resumed = build(kind, digits, second)
    resumed.load(tmp_path / "half")
    resumed.fit(2 * STEPS)
    assert_equal(resumed._state(), whole._state())


def test_a_checkpoint_loaded_between_replays_is_trained_on(
    digits: Splits, tapes: list[Tape], tmp_path: Path
) -> None:
    captured, eager = build("gan", digits, "on"), build("gan", digits, "off")
    for trainer in (captured, eager):
        trainer.fit(1)
        trainer.save(tmp_path / f"{trainer is captured}")
        trainer.fit(STEPS)
        trainer.load(tmp_path / f"{trainer is captured}")
    assert_same_training(captured, eager, STEPS + 1)
    assert tapes[0].recorded == 2 * 3


def test_loading_often_is_no_reason_to_give_up(
    digits: Splits, tapes: list[Tape], tmp_path: Path
) -> None:
    trainer = build("autoencoder", digits, "on")
    trainer.fit(WARM_UP)
    trainer.save(tmp_path / "saved")
    for _ in range(CHANGES + 2):
        trainer.load(tmp_path / "saved")
        trainer.fit(STEPS)
    assert tapes[0].replayed == (CHANGES + 2) * (STEPS - WARM_UP)


def test_weights_are_clipped_in_the_recording(digits: Splits, tapes: list[Tape]) -> None:
    trainer = build("clipped", digits, "on")
    trainer.fit(STEPS)
    largest = [p.abs().max().item() for p in trainer._stepper.phases[0].parameters]
    assert max(largest) == pytest.approx(0.01, rel=1e-6)
    assert tapes[0].replayed


def test_a_changed_learning_rate_is_used_at_once(digits: Splits, tapes: list[Tape]) -> None:
    captured, eager = build("gan", digits, "on"), build("gan", digits, "off")
    for trainer in (captured, eager):
        trainer.fit(STEPS)
        for optimizer in trainer._stepper.optimizers:
            optimizer.param_groups[0]["lr"] = 0.002
    assert_same_training(captured, eager, STEPS + 2)
    assert tapes[0].recorded == 2 * 3


def test_weights_that_were_moved_are_found(digits: Splits, tapes: list[Tape]) -> None:
    """The old memory stays alive here, so a stale recording would train what nobody sees."""
    captured, eager = build("autoencoder", digits, "on"), build("autoencoder", digits, "off")
    old = []
    for trainer in (captured, eager):
        trainer.fit(STEPS)
        for parameter in trainer.model.parameters():
            old.append(parameter.data)
            parameter.data = parameter.data.clone()
    assert_same_training(captured, eager, STEPS + 2)


def test_a_number_in_a_module_that_is_changed_between_two_fits_is_used(
    digits: Splits, tapes: list[Tape]
) -> None:
    captured, eager = build("dropout", digits, "on"), build("dropout", digits, "off")
    for trainer in (captured, eager):
        trainer.fit(STEPS)
        trainer.model.network[2].p = 0.9  # type: ignore[operator,index,union-attr]
    assert_same_training(captured, eager, STEPS + 2)


def test_a_learning_rate_that_changes_every_step_ends_the_recording_with_a_line(
    digits: Splits, tapes: list[Tape], capsys: pytest.CaptureFixture[str]
) -> None:
    def run(capture: str) -> Trainer:
        trainer = build("autoencoder", digits, capture)
        for step in range(STEPS + CHANGES):
            trainer._stepper.optimizers[0].param_groups[0]["lr"] = 0.01 / (1 + step)
            trainer.fit(step + 1)
        return trainer

    assert_equal(run("auto")._state(), run("off")._state())
    assert capsys.readouterr().err == (
        "not captured: settings of an optimizer or of the model keep changing; "
        "training without a CUDA graph\n"
    )


# --- pictures, checks, callbacks ---


def test_pictures_with_averaged_weights_leave_the_recordings_right(
    digits: Splits, tapes: list[Tape], tmp_path: Path
) -> None:
    every = {"sample_every": 2, "checkpoint_every": 3}
    runs = [tmp_path / capture for capture in ("on", "off")]
    trainers = [build("gan", digits, run.name, run=run, **every) for run in runs]
    for trainer in trainers:
        trainer.fit(STEPS)
    assert tapes[0].recorded == 3
    pictures = [path.name for path in sorted((runs[0] / "samples").iterdir())]
    assert len(pictures) >= 4
    for name in pictures:
        assert (runs[0] / "samples" / name).read_bytes() == (
            runs[1] / "samples" / name
        ).read_bytes()
    for name in ("model", "ema", "optimizer"):
        one, other = (
            (run / "checkpoints" / f"{STEPS:06d}" / f"{name}.safetensors").read_bytes()
            for run in runs
        )
        assert one == other


def test_a_bad_number_in_a_replay_is_found_with_its_step_and_phase(tapes: list[Tape]) -> None:
    """a doubles from 1 by its own gradient; b's loss is log(40 - a): it fails at a = 64, and the
    replays until that is seen leave a there."""
    model = TwoNumbers(
        {"a": lambda a, b, x: -a * a.detach(), "b": lambda a, b, x: b * (40 - a).log()}
    )
    fused = partial(torch.optim.SGD, lr=1.0, fused=True)
    trainer = Trainer(model, Noise(1), optimizer=fused, capture="on", progress=False)
    with pytest.raises(NonFiniteLoss) as caught:
        trainer.fit(20)
    assert (caught.value.phase, caught.value.step) == ("b", 6)
    assert model.a.item() == 64
    assert tapes[0].replayed > 3


def test_an_after_step_of_the_users_runs_after_every_update(tapes: list[Tape]) -> None:
    values: list[float] = []
    model = TwoNumbers({"a": lambda a, b, x: a.square()}, repeats=2)
    model.phase["after_step"] = lambda: values.append(model.a.item())
    Trainer(model, Noise(1), optimizer=sgd(0.25), capture="on", progress=False).fit(5)
    assert values == [0.5**k for k in range(1, 11)]
    assert tapes[0].replayed == 4


def test_hooks_of_the_spectral_norm_in_torch_are_no_obstacle(tapes: list[Tape]) -> None:
    def make(capture: str) -> Trainer:
        torch.manual_seed(0)
        model = Regression()
        with warnings.catch_warnings(action="ignore"):  # it is deprecated
            nn.utils.spectral_norm(model.network[0])
        return Trainer(model, Noise(5, 6), capture=capture, progress=False)

    captured, eager = make("on"), make("off")
    captured.fit(STEPS)
    eager.fit(STEPS)
    for one, other in zip(captured.model.parameters(), eager.model.parameters(), strict=True):
        assert torch.equal(one, other)
    assert tapes[0].replayed


# --- what cannot be recorded ---


class Stubborn(Regression):
    """A regression whose loss does something that a graph would not repeat."""

    def __init__(self, what: Callable[[Stubborn, Tensor], object]) -> None:
        super().__init__()
        self.what, self.temperature = what, 1.0

    def _loss(self, images: Tensor, labels: Tensor | None) -> Any:
        factor = self.what(self, images)
        return {"loss": super()._loss(images, labels)["loss"] * factor}


def cool(model: Stubborn, images: Tensor) -> float:
    model.temperature *= 0.9
    return model.temperature


OBSTACLES: dict[str, tuple[Callable[[Stubborn, Tensor], object], str]] = {
    "waits": (
        lambda model, images: 1 + abs(images.mean().item()),
        "operation not permitted when stream is capturing",
    ),
    "draws": (
        lambda model, images: 1 + random.random(),
        "it draws random numbers from Python's random on the host, which a graph would repeat: "
        "draw them on the device",
    ),
    "counts": (cool, "temperature changes from step to step, which a graph would not see"),
}


def stubborn(name: str, capture: str) -> Trainer:
    torch.manual_seed(0)
    random.seed(0)
    model = Stubborn(OBSTACLES[name][0])
    return Trainer(model, Noise(5, 6), capture=capture, progress=False)


@pytest.mark.parametrize("name", OBSTACLES)
def test_what_cannot_be_recorded_runs_eagerly_and_is_told_in_one_line(
    name: str, tapes: list[Tape], capsys: pytest.CaptureFixture[str]
) -> None:
    def states(capture: str) -> Checkpoint:
        trainer = stubborn(name, capture)
        trainer.fit(STEPS)
        return trainer._state()

    assert_equal(states("auto"), states("off"))
    reason = OBSTACLES[name][1]
    assert capsys.readouterr().err == f"not captured: {reason}; training without a CUDA graph\n"
    assert tapes[0].replayed == 0


@pytest.mark.parametrize("name", OBSTACLES)
def test_capture_on_raises_instead_and_leaves_the_weights_of_the_last_step(
    name: str, tapes: list[Tape]
) -> None:
    trainer = stubborn(name, "on")
    with pytest.raises(CaptureError, match="the training step cannot be captured: "):
        trainer.fit(STEPS)
    assert trainer.step == WARM_UP
    eager = stubborn(name, "off")
    eager.fit(WARM_UP)
    assert_equal(trainer._state(), eager._state())


def refuse(kind: str, digits: Splits, capsys: pytest.CaptureFixture[str], change: Any) -> str:
    trainer = build(kind, digits, "auto", **(change if isinstance(change, dict) else {}))
    if callable(change):
        change(trainer.model)
    trainer.fit(STEPS)
    return capsys.readouterr().err


def test_hooks_and_optimizers_that_count_on_the_host_are_told(
    digits: Splits, tapes: list[Tape], capsys: pytest.CaptureFixture[str]
) -> None:
    calls: list[int] = []

    def hook(*arguments: object) -> None:
        calls.append(1)

    def told(change: Any) -> str:
        return refuse("autoencoder", digits, capsys, change)

    assert "encoder has a hook" in told(lambda model: model.encoder.register_forward_hook(hook))
    assert len(calls) == STEPS
    weight = lambda model: next(model.parameters()).register_hook(hook)  # noqa: E731
    assert "weight has a hook, which a graph would not call" in told(weight)
    adam = lambda parameters: torch.optim.Adam(parameters, lr=0.01)  # noqa: E731
    assert "the optimizer of 'autoencoder', Adam, is neither fused nor capturable" in told(
        {"optimizer": adam}
    )
    assert not any(tape.replayed for tape in tapes)


def test_on_the_cpu_auto_is_silent_and_on_refuses(
    digits: Splits, capsys: pytest.CaptureFixture[str]
) -> None:
    build("vae", digits, "auto").fit(STEPS)
    assert capsys.readouterr().err == ""
    with pytest.raises(ValueError, match=r"capture='on' needs a CUDA GPU \(device is cpu\)"):
        build("vae", digits, "on")
    with pytest.raises(ValueError, match="capture must be one of auto, off, on"):
        build("vae", digits, "maybe")


@pytest.mark.parametrize(
    ("capture", "message"),
    [
        ("maybe", "--capture must be auto, off or on (got 'maybe')"),
        ("on", "capture='on' needs a CUDA GPU (device is cpu)"),
    ],
)
def test_the_command_line_says_so_in_one_line(capture: str, message: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "fastgen", "train", "vae", "--device", "cpu"]
    done = subprocess.run(
        [*command, "--capture", capture, "--run", tmp_path / "run"],
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (2, f"fastgen: {message}\n")
    assert not (tmp_path / "run").exists()
