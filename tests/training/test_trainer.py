"""The loop runs phases: gradients, updates, seeds, what it writes and what it refuses."""

from __future__ import annotations

import builtins
import gc
import json
import math
import re
import time
import weakref
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from toys import Batch, Constant, Noise, Regression, Transposed, TwoNumbers, models, sgd

from fastgen import training
from fastgen.data import AffineJitter, Batches, ImageDataset, Splits
from fastgen.models import GAN, WGAN, Losses, Model, Phase
from fastgen.training import ConfigMismatch, Trainer
from fastgen.training.averaging import WeightAverage
from fastgen.training.checkpoint import Checkpoint, read_checkpoint, write_checkpoint
from fastgen.training.run_folder import FolderInUse, RunFolder

# --- updates, by hand ---

GAME = {"a": lambda a, b, x: a * b, "b": lambda a, b, x: -a * b}


@pytest.mark.parametrize(
    ("updates", "expected"),
    # a = 1, b = 2, step 0.1: a becomes 0.8; b sees a = 1 (2.1) or a = 0.8 (2.08).
    [("simultaneous", (0.8, 2.1)), ("alternating", (0.8, 2.08))],
)
def test_updates_alternate_or_are_simultaneous(updates: str, expected: tuple[float, float]) -> None:
    model = TwoNumbers(GAME)
    Trainer(
        model, Constant(torch.zeros(1)), optimizer=sgd(0.1), updates=updates, progress=False
    ).fit(1)
    assert (model.a.item(), model.b.item()) == pytest.approx(expected)


def test_a_phase_moves_only_its_own_parameters_and_leaves_no_gradient() -> None:
    model = TwoNumbers({"a": lambda a, b, x: (a * b).square()})
    Trainer(model, Constant(torch.zeros(1)), optimizer=sgd(0.1), progress=False).fit(3)
    assert model.a.item() != 1
    assert model.b.item() == 2
    assert model.a.grad is None
    assert model.b.grad is None


def test_the_optimizer_of_one_phase_never_sees_the_others_parameters(digits: Splits) -> None:
    """Real models: with the other phase left out, its networks stay as they are, bit for bit."""
    for kind in ("gan", "wgan"):
        for kept, still in ((0, "generator"), (1, "discriminator" if kind == "gan" else "critic")):
            model = models(digits)[kind]()
            phase = model.phases()[kept]
            model.phases = lambda phase=phase: [phase]  # type: ignore[method-assign]
            before = {name: weight.clone() for name, weight in model.state_dict().items()}
            Trainer(model, digits.train, batch_size=8, progress=False).fit(2)
            after = model.state_dict()
            moved = {
                name for name, weight in before.items() if not torch.equal(weight, after[name])
            }
            assert not [name for name in moved if name.startswith(still)]
            assert len(moved) >= 3


@pytest.mark.parametrize("fused", [True, False])
def test_adam_on_channels_last_weights_is_adam(fused: bool) -> None:
    """A fused optimizer mixes up weights and gradients of different strides on the CPU."""
    model = Transposed()
    twin, target = nn.Parameter(model.weight.detach().clone()), model.target
    trainer = Trainer(
        model,
        Constant(torch.zeros(1)),
        optimizer=lambda parameters: torch.optim.Adam(parameters, lr=0.1, fused=fused),
        progress=False,
    )
    assert model.weight.is_contiguous(memory_format=torch.channels_last)
    trainer.fit(20)
    reference = torch.optim.Adam([twin], lr=0.1)
    for _ in range(20):
        reference.zero_grad()
        (twin - target).square().sum().backward()
        reference.step()
    torch.testing.assert_close(model.weight, twin, rtol=1e-10, atol=1e-12)


def test_the_average_takes_in_the_weights_after_each_step() -> None:
    model = Regression()
    trainer = Trainer(model, Noise(5, 6), ema_decay=0.999, lr=0.1, progress=False)
    average = WeightAverage(model, model.averaged, 0.999)
    for step in range(1, 4):
        trainer.fit(step)
        average.update(step)
    with trainer.averaged_weights():
        averaged = {f"network.{k}": v.clone() for k, v in model.network.state_dict().items()}
    torch.testing.assert_close(averaged, average.weights)


def test_a_model_in_evaluation_mode_is_trained_in_training_mode() -> None:
    model = Regression().eval()
    Trainer(model, Noise(5, 6), progress=False).fit(2)
    assert model.network[1].num_batches_tracked == 2


def test_a_step_keeps_no_batch_of_the_steps_before() -> None:
    drawn = []

    class Watched(Noise):
        def batch(self, index: int) -> Batch:
            batch = super().batch(index)
            drawn.append(weakref.ref(batch.images))
            return batch

    trainer = Trainer(Regression(), Watched(5, 6), progress=False)
    trainer.fit(6)
    gc.collect()
    assert len(drawn) == 6
    assert sum(images() is not None for images in drawn) <= 1


# --- Dirac-GAN [Mescheder, Geiger, Nowozin 2018] ---


class Point(nn.Module):
    """The generator: a point mass at theta, whatever z."""

    def __init__(self, theta: float) -> None:
        super().__init__()
        self.theta = nn.Parameter(torch.tensor(theta, dtype=torch.float64))

    def forward(self, z: Tensor) -> Tensor:
        return self.theta.expand(len(z), 1)


class Line(nn.Module):
    """The discriminator: psi x."""

    def __init__(self, psi: float) -> None:
        super().__init__()
        self.psi = nn.Parameter(torch.tensor(psi, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return (self.psi * x).squeeze(1)


@pytest.mark.parametrize(
    ("build", "factor"),
    [
        (lambda g, d: GAN(g, d, latent_dim=1, loss="minimax"), 1.0012492),
        (lambda g, d: WGAN(g, d, latent_dim=1, regularizer=None, critic_steps=1), 1.0049876),
        (lambda g, d: GAN(g, d, latent_dim=1, loss="minimax", r1=0.3), 0.9861541),
    ],
    ids=["gan", "wgan", "gan with R1"],
)
def test_dirac_gan_spirals_as_the_theory_says(
    build: Callable[[nn.Module, nn.Module], Model], factor: float
) -> None:
    """Near 0 a step is a linear map, with complex eigenvalues of modulus sqrt(determinant).

    The determinant of k steps comes from two starts along the axes.
    """
    start, steps = 1e-4, 10
    data = Constant(torch.zeros(4, 1, dtype=torch.float64))

    def after(theta: float, psi: float) -> list[float]:
        generator, discriminator = Point(theta), Line(psi)
        Trainer(
            build(generator, discriminator),
            data,
            optimizer=sgd(0.1),
            updates="simultaneous",
            ema_decay=None,
            progress=False,
        ).fit(steps)
        return [generator.theta.item() / start, discriminator.psi.item() / start]

    (a, b), (c, d) = after(start, 0.0), after(0.0, start)
    assert (a * d - b * c) ** (1 / (2 * steps)) == pytest.approx(factor, abs=2e-7)
    if factor > 1:  # without a penalty the map is a rotation: every single start grows like this
        assert math.hypot(a, b) ** (1 / steps) == pytest.approx(factor, abs=2e-7)


# --- batches, seeds, hooks ---


def test_the_phases_of_a_step_share_its_batches_and_repeats_draw_their_own() -> None:
    seen: list[tuple[str, float]] = []

    def loss(name: str) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
        def compute(a: Tensor, b: Tensor, x: Tensor) -> Tensor:
            seen.append((name, float(x)))
            return a + b

        return compute

    class Numbered:
        def batch(self, index: int) -> Batch:
            return Batch(torch.full((1,), float(index)), None)

    model = TwoNumbers({"a": loss("a"), "b": loss("b")})
    phases = model.phases()
    many = Phase(phases[0].name, phases[0].parameters, phases[0].loss, repeats=3)
    model.phases = lambda: [many, phases[1]]  # type: ignore[method-assign]

    Trainer(model, Numbered(), optimizer=sgd(0.0), progress=False).fit(2)
    assert seen == [
        *[("a", 0), ("a", 1), ("a", 2), ("b", 0)],
        *[("a", 3), ("a", 4), ("a", 5), ("b", 3)],
    ]


def test_noise_differs_between_phases_and_steps_and_not_between_runs() -> None:
    def noise(seed: int) -> list[float]:
        drawn: list[float] = []

        def draw(a: Tensor, b: Tensor, x: Tensor) -> Tensor:
            drawn.append(torch.rand(()).item())
            return a + b

        model = TwoNumbers({"a": draw, "b": draw})
        Trainer(model, Constant(torch.zeros(1)), seed=seed, progress=False).fit(5)
        return drawn

    first = noise(0)
    assert len(set(first)) == 10
    assert noise(0) == first
    assert not set(noise(1)) & set(first)


def test_after_step_runs_after_every_update() -> None:
    values: list[float] = []
    model = TwoNumbers({"a": lambda a, b, x: a.square()}, repeats=2)
    model.phase["after_step"] = lambda: values.append(model.a.item())
    Trainer(model, Noise(1), optimizer=sgd(0.25), progress=False).fit(2)
    assert values == [0.5, 0.25, 0.125, 0.0625]


def test_the_callers_generator_and_the_weights_at_the_start_are_untouched() -> None:
    torch.manual_seed(3)
    model = Regression()
    expected = torch.rand(2)
    torch.manual_seed(3)
    twin = Regression()
    Trainer(twin, Noise(4, 6), progress=False).fit(2)
    assert torch.equal(torch.rand(2), expected)
    assert not torch.equal(model.network[0].weight, twin.network[0].weight)


def test_bf16_computes_losses_in_bfloat16_and_keeps_weights_in_float32(digits: Splits) -> None:
    dtypes = []
    model = models(digits)["wgan"]()
    model.critic.stages[0].register_forward_hook(  # type: ignore[union-attr,index]
        lambda module, inputs, output: dtypes.append(output.dtype)
    )
    Trainer(model, digits.train, batch_size=8, precision="bf16", progress=False).fit(2)
    assert set(dtypes) == {torch.bfloat16}
    assert {weight.dtype for weight in model.parameters()} == {torch.float32}


@pytest.mark.parametrize("kind", ["gan", "wgan", "spectral", "vae", "autoencoder", "classifier"])
def test_a_model_of_bfloat16_weights_is_trained(kind: str, digits: Splits, run: Path) -> None:
    model = models(digits)[kind]().bfloat16()
    record = Trainer(model, digits.train, batch_size=8, run=run, progress=False).fit(2)
    assert all(math.isfinite(value) for value in record.values())
    assert {weight.dtype for weight in model.parameters()} == {torch.bfloat16}


def test_weights_and_images_are_channels_last(digits: Splits) -> None:
    formats = []
    model = models(digits)["gan"]()
    model.discriminator.stages[0].register_forward_hook(  # type: ignore[union-attr,index]
        lambda module, inputs, output: formats.append(output.stride(1))
    )
    Trainer(model, digits.train, batch_size=8, progress=False).fit(1)
    assert set(formats) == {1}
    four_dimensional = [weight for weight in model.parameters() if weight.dim() == 4]
    assert all(w.is_contiguous(memory_format=torch.channels_last) for w in four_dimensional)


# --- what a run writes ---


@pytest.fixture(scope="module")
def finished(digits: Splits, tmp_path_factory: pytest.TempPathFactory) -> tuple[Trainer, Path]:
    run = tmp_path_factory.mktemp("trainer") / "run"
    trainer = Trainer(
        models(digits)["vae"](),
        digits.train,
        batch_size=8,
        run=run,
        held_out=digits.held_out,
        log_every=3,
        sample_every=5,
        checkpoint_every=2,
        progress=False,
    )
    trainer.fit(10)
    return trainer, run


def test_a_run_is_a_folder_with_everything_in_it(finished: tuple[Trainer, Path]) -> None:
    _, run = finished
    files = {str(path.relative_to(run)) for path in run.rglob("*") if path.is_file()}
    events = {name for name in files if name.startswith("events.out.tfevents")}
    assert len(events) == 1
    assert {name for name in files if not name.startswith(("events", "checkpoints"))} == {
        ".lock",
        "config.json",
        "log.jsonl",
        "reals.png",
        "report.html",
        *(
            f"samples/{step:06d}{kind}.png"
            for step in (0, 5, 10)
            for kind in ("", "-reconstructions")
        ),
    }
    kept = sorted(path.name for path in (run / "checkpoints").iterdir())
    assert kept == ["000006", "000008", "000010"]


def test_the_log_holds_every_third_step_and_the_last(finished: tuple[Trainer, Path]) -> None:
    _, run = finished
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [3, 6, 9, 10]
    names = {"step", "seconds", "images_per_second"}
    names |= {f"vae/{name}" for name in ("loss", "reconstruction", "kl", "sigma")}
    assert all(set(line) == names for line in lines)
    seconds = [line["seconds"] for line in lines]
    assert seconds == sorted(seconds)


def test_reals_are_the_first_batch(finished: tuple[Trainer, Path], digits: Splits) -> None:
    trainer, run = finished
    picture = np.asarray(Image.open(run / "reals.png"))
    first = trainer._batches.batch(0).images[0, 0]
    tile = picture[2:50:6, 2:50:6]
    assert np.array_equal(tile, ((first + 1) * 127.5).round().byte().numpy())


def test_pictures_of_the_same_weights_are_the_same(digits: Splits, run: Path) -> None:
    torch.manual_seed(0)
    Trainer(models(digits)["vae"](), digits.train, batch_size=8, run=run, progress=False).fit(1)
    torch.manual_seed(0)
    other = run.with_name("other")
    Trainer(models(digits)["vae"](), digits.train, batch_size=8, run=other, progress=False).fit(1)
    for name in ("000000.png", "000001.png", "000001-reconstructions.png"):
        assert (run / "samples" / name).read_bytes() == (other / "samples" / name).read_bytes()
    zero, one = (run / "samples" / f"00000{step}.png" for step in (0, 1))
    assert zero.read_bytes() != one.read_bytes()


def test_samples_are_drawn_with_the_averaged_weights(digits: Splits, run: Path) -> None:
    model = models(digits)["gan"]()
    trainer = Trainer(model, digits.train, batch_size=8, run=run, lr=0.05, progress=False)
    trainer.fit(3)
    checkpoint = read_checkpoint(run / "checkpoints" / "000003")
    drawn = model.sample(64, seed=0)  # type: ignore[operator]
    with trainer.averaged_weights():
        averaged = model.sample(64, seed=0)  # type: ignore[operator]
    assert not torch.allclose(drawn, averaged, atol=1e-3)
    model.load_state_dict({**checkpoint.tensors["model"], **checkpoint.tensors["ema"]})
    assert torch.equal(model.sample(64, seed=0), averaged)  # type: ignore[operator]
    picture = np.asarray(Image.open(run / "samples" / "000003.png"))[2:50:6, 2:50:6]
    expected = ((averaged[0, 0] + 1) * 127.5).round().clamp(0, 255)
    assert np.array_equal(picture, expected.byte().numpy())


def test_events_are_written_before_the_checkpoint_that_counts_on_them(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    writer = pytest.importorskip("tensorboard.summary.writer.event_file_writer")
    write, seen = writer.RecordWriter.write, list[list[int]]()

    def slowly(self: Any, data: bytes) -> None:
        time.sleep(0.02)
        write(self, data)

    def looking(path: Path, checkpoint: Checkpoint) -> None:
        events = accumulator.EventAccumulator(str(run)).Reload()
        seen.append([point.step for point in events.Scalars("regression/loss")])
        write_checkpoint(path, checkpoint)

    monkeypatch.setattr(writer.RecordWriter, "write", slowly)
    monkeypatch.setattr("fastgen.training.recorder.write_checkpoint", looking)
    trainer = Trainer(
        Regression(), Noise(4, 6), run=run, log_every=1, checkpoint_every=2, progress=False
    )
    trainer.fit(4)
    assert seen == [[1, 2], [1, 2, 3, 4]]


def test_what_a_kill_left_among_the_checkpoints_is_cleared(run: Path) -> None:
    Trainer(Regression(), Noise(4, 6), run=run, progress=False).fit(1)
    (run / "checkpoints" / ".partial-000002").mkdir()
    Trainer(Regression(), Noise(4, 6), run=run, progress=False).fit(3)
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["000001", "000003"]


def test_data_that_is_no_images_is_trained_without_pictures(run: Path) -> None:
    Trainer(Regression(), Noise(4, 6), run=run, progress=False).fit(2)
    assert not (run / "samples").exists()
    assert not (run / "reals.png").exists()
    assert (run / "report.html").exists()


def test_a_loss_that_only_some_steps_have_is_logged_and_drawn(run: Path) -> None:
    class Sometimes(Regression):
        step = 0

        def _loss(self, images: Tensor, labels: Tensor | None) -> dict[str, Tensor]:
            self.step += 1
            losses = super()._loss(images, labels)
            return {**losses, "second": losses["loss"].detach()} if self.step == 2 else losses

    Trainer(Sometimes(), Noise(4, 6), run=run, log_every=1, progress=False).fit(3)
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert ["regression/second" in line for line in lines] == [False, True, False]
    assert "regression/second" in (run / "report.html").read_text()


# --- what it refuses ---


OTHER_SETTINGS: dict[str, tuple[dict[str, Any], str]] = {
    "seed": ({"seed": 1}, r"seed +0 +1"),
    "batch size": ({"batch_size": 32}, r"batch_size +64 +32"),
    "precision": ({"precision": "bf16"}, r"precision +fp32 +bf16"),
    "updates": ({"updates": "simultaneous"}, r"updates +alternating +simultaneous"),
    "average": ({"ema_decay": 0.5}, r"ema_decay +0\.999 +0\.5"),
    "learning rate": ({"lr": 0.5}, "optimizers"),
    "betas": ({"betas": (0.1, 0.9)}, "optimizers"),
    "optimizer": ({"optimizer": sgd(0.1)}, "optimizers"),
    "augmentation": ({"augment": AffineJitter()}, "augment"),
    "size of the model": ({"size": 7}, "parameters"),
}


@pytest.mark.parametrize(("change", "message"), OTHER_SETTINGS.values(), ids=OTHER_SETTINGS)
def test_a_run_of_other_settings_is_refused(
    change: dict[str, Any], message: str, run: Path
) -> None:
    Trainer(Regression(), Noise(4, 6), run=run, progress=False).fit(2)
    size = change.get("size", 6)
    options = {name: value for name, value in change.items() if name != "size"}
    other = Trainer(Regression(size), Noise(4, size), run=run, progress=False, **options)
    with pytest.raises(ConfigMismatch, match=message):
        other.fit(4)


def test_a_run_of_other_pictures_is_refused(digits: Splits, run: Path) -> None:
    def training(data: ImageDataset) -> Trainer:
        return Trainer(models(digits)["vae"](), data, batch_size=8, run=run, progress=False)

    training(digits.train).fit(2)
    inverted = replace(digits.train, base=255 - digits.train.base)
    with pytest.raises(
        ConfigMismatch, match=r"pictures of .* are not those that .* was trained on"
    ):
        training(inverted).fit(4)
    moved = replace(digits.train, description="elsewhere")
    assert training(moved).fit(4)["step"] == 4


def test_a_run_of_other_batches_is_refused(digits: Splits, run: Path) -> None:
    def training(batch_size: int, seed: int) -> Trainer:
        batches = Batches(digits.train, batch_size, seed=seed)
        return Trainer(models(digits)["vae"](), batches, run=run, progress=False)

    training(8, 1).fit(1)
    for other, message in ((training(16, 1), "batch_size +8 +16"), (training(8, 2), "seed +1 +2")):
        with pytest.raises(ConfigMismatch, match=message):
            other.fit(2)
    assert training(8, 1).fit(2)["step"] == 2


class Noted(nn.Linear):
    """A layer with a state that is no tensor."""

    def get_extra_state(self) -> Any:
        return {"note": 1}

    def set_extra_state(self, state: Any) -> None: ...


def test_a_state_that_no_checkpoint_can_hold_is_refused_before_the_first_step(run: Path) -> None:
    model = Regression()
    model.network[0] = Noted(6, 4)
    trainer = Trainer(model, Noise(4, 6), run=run, progress=False)
    with pytest.raises(
        TypeError, match=r"network\.0\._extra_state of the model's state_dict is a dict"
    ):
        trainer.fit(2)
    assert trainer.step == 0


def test_numbers_of_numpy_are_settings_like_any(digits: Splits, run: Path) -> None:
    def training(kind: Callable[[int], Any], average: Callable[[float], Any]) -> Trainer:
        options = {"batch_size": kind(8), "seed": kind(3), "ema_decay": average(0.5)}
        every = {"checkpoint_every": kind(2), "keep": kind(1)}
        return Trainer(
            models(digits)["gan"](), digits.train, run=run, progress=False, **options, **every
        )

    training(np.int64, np.float32).fit(np.int64(2))  # type: ignore[arg-type]
    assert training(int, float).fit(4)["step"] == 4


def test_a_run_in_use_keeps_its_settings_when_another_training_is_refused(run: Path) -> None:
    def training(steps: int) -> Trainer:
        return Trainer(Regression(), Noise(4, 6), run=run, settings={"steps": steps})

    training(2).fit(2)
    with RunFolder(run).locked(), pytest.raises(FolderInUse):
        training(4).fit(4)
    assert RunFolder(run).settings() == {"steps": 2}
    training(2).fit(2)


def test_where_no_run_may_be_nothing_is_left_behind(run: Path) -> None:
    run.mkdir()
    (run / "thesis.tex").touch()
    with pytest.raises(ValueError, match="is not empty and holds no run"):
        Trainer(Regression(), Noise(4, 6), run=run).fit(2)
    assert [path.name for path in run.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precision": "fp16"}, r"precision must be one of fp32, bf16 \(got 'fp16'\)"),
        ({"updates": "random"}, "updates must be one of alternating, simultaneous"),
        ({"seed": -1}, r"seed must be at least 0 \(got -1\)"),
        ({"log_every": 0}, r"log_every must be at least 1 \(got 0\)"),
        ({"keep": 0}, r"keep must be at least 1 \(got 0\)"),
        ({"ema_decay": 1.0}, r"ema_decay must lie in \[0, 1\)"),
        ({"device": "abacus"}, "device must be auto, cpu or cuda"),
        ({"device": "cuda:99"}, "CUDA GPUs are visible"),
    ],
)
def test_a_setting_that_makes_no_sense_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Trainer(Regression(), Noise(4, 6), **options)


def test_steps_are_a_whole_number_that_is_not_negative() -> None:
    trainer = Trainer(Regression(), Noise(4, 6), progress=False)
    with pytest.raises(TypeError, match=r"steps must be a whole number \(got 2.5\)"):
        trainer.fit(2.5)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"steps must be at least 0 \(got -1\)"):
        trainer.fit(-1)
    assert trainer.fit(0) == {}


def test_what_is_no_model_or_no_data_is_refused_by_name(digits: Splits) -> None:
    with pytest.raises(TypeError, match=r"model must be a fastgen.models.Model \(got Linear\)"):
        Trainer(nn.Linear(2, 2), digits.train)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"got Splits; take its \.train"):
        Trainer(Regression(), digits)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"data must be a fastgen.data.ImageDataset.*got Tensor"):
        Trainer(Regression(), torch.zeros(4, 1, 8, 8))  # type: ignore[arg-type]


def test_a_phase_whose_network_is_frozen_is_refused_by_name(digits: Splits) -> None:
    model = models(digits)["gan"]()
    model.generator.requires_grad_(False)
    with pytest.raises(ValueError, match="phase 'generator' has nothing to train"):
        Trainer(model, digits.train, progress=False)


class Given(Model):
    """Phases over one linear layer, with what their losses return."""

    def __init__(self, returned: Callable[[Tensor], Any], *names: str, repeats: int = 1) -> None:
        super().__init__()
        self.layer, self.returned, self.names = nn.Linear(6, 2), returned, names
        self.repeats = repeats

    def phases(self) -> list[Phase]:
        parameters = tuple(self.layer.parameters())
        return [Phase(name, parameters, self._loss, self.repeats) for name in self.names]

    def _loss(self, images: Tensor, labels: Tensor | None) -> Losses:
        losses: Losses = self.returned(self.layer(images))
        return losses


def test_an_optimizer_that_needs_a_closure_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"phase .regression. must .* closure .*LBFGS"):
        Trainer(Regression(), Noise(5, 6), optimizer=torch.optim.LBFGS)
    Trainer(Regression(), Noise(5, 6), optimizer=torch.optim.SGD, progress=False).fit(1)


def test_an_optimizer_with_a_scheduler_is_taken_unless_it_needs_a_closure() -> None:
    def scheduled(kind: Any) -> Callable[..., torch.optim.Optimizer]:
        def make(parameters: Any) -> torch.optim.Optimizer:
            optimizer: torch.optim.Optimizer = kind(parameters, lr=0.1)
            torch.optim.lr_scheduler.ConstantLR(optimizer)
            return optimizer

        return make

    Trainer(Regression(), Noise(5, 6), optimizer=scheduled(torch.optim.SGD))
    with pytest.raises(ValueError, match=r"phase .regression. must .* closure .*LBFGS"):
        Trainer(Regression(), Noise(5, 6), optimizer=scheduled(torch.optim.LBFGS))


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_a_training_where_gradients_are_off_is_refused_before_it_starts(
    mode: Callable[[], AbstractContextManager[None]], run: Path
) -> None:
    trainer = Trainer(Regression(), Noise(5, 6), progress=False, run=run)
    with mode(), pytest.raises(ValueError, match="fit needs gradients: call it outside"):
        trainer.fit(1)
    assert not run.exists()
    trainer.fit(1)


def test_a_trainer_or_a_model_made_in_inference_mode_is_refused() -> None:
    model, noise = Regression(), Noise(5, 6)
    with torch.inference_mode():
        made_inside = Regression()
        with pytest.raises(ValueError, match=r"make it outside of torch\.inference_mode"):
            Trainer(model, noise)
    with pytest.raises(ValueError, match=r"network\.0\.weight of the model was made inside of"):
        Trainer(made_inside, noise)


def test_phases_that_cannot_be_told_apart_or_never_run_are_refused() -> None:
    def loss(y: Tensor) -> Losses:
        return {"loss": y.mean()}

    for model, message in (
        (Given(loss, "own", "other", "own"), r"names of their own \(got 'own' 2 times\)"),
        (Given(loss), r"at least one phase \(got none\)"),
        (Given(loss, "own", repeats=0), r"repeats of phase 'own' must be at least 1 \(got 0\)"),
    ):
        with pytest.raises(ValueError, match=message):
            Trainer(model, Noise(4, 6))


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (lambda y: y.mean(), r"phase 'own' must return a dictionary .*\(got Tensor\)"),
        (lambda y: {"error": y.mean()}, r"one named 'loss' \(got 'error'\)"),
        (lambda y: {}, r"\(got an empty one\)"),
        (lambda y: {"loss": y}, r"got 'loss' of shape \(4, 2\)\): take its mean"),
        (lambda y: {"loss": y.mean(), "norm": y.norm(dim=1).detach()}, r"'norm' of shape \(4,\)"),
        (lambda y: {"loss": y.mean(), "size": 4.0}, r"got 'size': float"),
        (lambda y: {"loss": y.mean().detach()}, "must depend on a parameter"),
    ],
)
def test_a_loss_that_returns_something_else_is_refused_by_the_name_of_its_phase(
    returned: Callable[[Tensor], Any], message: str
) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        Trainer(Given(returned, "own"), Noise(4, 6), progress=False).fit(1)


def test_simultaneous_updates_of_phases_that_repeat_are_refused(digits: Splits) -> None:
    with pytest.raises(ValueError, match="critic 2, generator 1"):
        Trainer(models(digits)["wgan"](), digits.train, updates="simultaneous")


def test_the_errors_that_public_functions_raise_are_public() -> None:
    for raises in (Trainer.fit, Trainer.save, Trainer.load, training.evaluate):
        named = re.findall(r"^ +([A-Z]\w+):", (raises.__doc__ or "").partition("Raises:")[2], re.M)
        assert named
        for name in named:
            assert hasattr(training, name) or hasattr(builtins, name), name
