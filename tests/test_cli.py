"""The command line, as a user meets it."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from fastgen.cli import app
from fastgen.models import GAN
from fastgen.training import Interrupted, NonFiniteLoss
from fastgen.training.checkpoint import checkpoints, read_checkpoint
from fastgen.training.config import RECIPES
from fastgen.training.trainer import Trainer

SMALL = ("--image-size", "8", "--width", "4", "--batch-size", "8")
LATENT = ("--latent-dim", "3")


@pytest.fixture(autouse=True)
def _own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "200")


def fastgen(*arguments: object, code: int = 0) -> Any:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == code, (result.output, result.exception)
    assert "Traceback" not in result.output
    return result


def train(model: str, *options: object, code: int = 0, steps: int = 2) -> Any:
    latent = () if model == "classifier" else LATENT
    return fastgen("train", model, *SMALL, *latent, "--steps", steps, *options, code=code)


def one_line(result: Any) -> str:
    """The only line on standard error."""
    (line,) = result.stderr.splitlines()
    assert line.startswith("fastgen: ")
    return str(line)


# --- train ---


@pytest.mark.parametrize("model", RECIPES)
def test_every_model_trains_and_says_where_everything_is(model: str, tmp_path: Path) -> None:
    said = train(model, "--sample-every", 1, "--checkpoint-every", 1).stdout
    run = tmp_path / "runs" / f"0001-{model}-digits"
    assert f"runs/{run.name}\n" in said
    assert f"runs/{run.name}/report.html" in said
    assert (run / "report.html").exists()
    pictures = sorted(str(path.relative_to(tmp_path)) for path in run.glob("samples/000002*"))
    assert re.findall(r"\S+\.png", said) == pictures
    assert bool(pictures) == (model != "classifier")
    assert [path.name for path in checkpoints(run / "checkpoints")] == ["000001", "000002"]
    settings = json.loads((run / "config.json").read_text())["settings"]
    assert settings["model"] == model
    assert settings["image_shape"] == [1, 8, 8]


def test_runs_are_numbered_and_progress_goes_to_standard_error(tmp_path: Path) -> None:
    first = train("autoencoder", steps=1)
    train("classifier", steps=1)
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == [
        "0001-autoencoder-digits",
        "0002-classifier-digits",
    ]
    assert "step 1/1" in first.stderr
    assert "step 1/1" not in first.stdout


def test_trainings_that_start_at_one_time_get_runs_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fit = Trainer.fit

    def start_another(trainer: Trainer, steps: int) -> Any:
        monkeypatch.setattr(Trainer, "fit", fit)
        train("vae", "--seed", 1)
        return fit(trainer, steps)

    monkeypatch.setattr(Trainer, "fit", start_another)
    train("vae", "--seed", 0)
    configs = sorted(tmp_path.glob("runs/*/config.json"))
    assert [path.parent.name for path in configs] == ["0001-vae-digits", "0002-vae-digits"]
    assert [json.loads(path.read_text())["settings"]["seed"] for path in configs] == [0, 1]


def test_the_same_command_continues_a_run_and_more_steps_continue_a_finished_one(
    tmp_path: Path,
) -> None:
    train("vae", "--run", "whole", steps=4)
    train("vae", "--run", "parts", steps=2)
    log = (tmp_path / "parts" / "log.jsonl").read_text()
    assert '"step": 2' in log
    done = train("vae", "--run", "parts", steps=2)
    assert "has its 2 steps already: give a larger --steps to go on" in done.stdout
    assert (tmp_path / "parts" / "log.jsonl").read_text() == log
    more = train("vae", "--run", "parts", "--sample-every", 1, steps=4)
    assert "continuing parts after step 2" in more.stderr
    parts, whole = (
        read_checkpoint(tmp_path / name / "checkpoints" / "000004") for name in ("parts", "whole")
    )
    for name, tensor in whole.tensors["model"].items():
        assert torch.equal(parts.tensors["model"][name], tensor)


def test_another_configuration_is_refused_with_the_difference(tmp_path: Path) -> None:
    train("wgan", "--run", "run", "--critic-steps", 1)
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    result = train("wgan", "--run", "run", "--critic-steps", 2, "--lr", "0.5", "--seed", 3, code=2)
    table = [line.split() for line in result.stderr.splitlines()[1:5]]
    assert table == [
        ["option", "this", "run", "given"],
        ["seed", "0", "3"],
        ["critic_steps", "1", "2"],
        ["lr", "0.0005", "0.5"],
    ]
    train("gan", "--run", "run", code=2)
    train("gan", "--run", "run", "--dry-run", code=2)
    assert {path: path.read_bytes() for path in before} == before


def test_a_dry_run_shows_everything_and_creates_nothing(tmp_path: Path) -> None:
    shown = train("wgan", "--dry-run", "--run", "somewhere").stdout
    assert list(tmp_path.iterdir()) == []
    lines = [line.split() for line in shown.splitlines()]
    assert ["regularizer", "gradient-penalty:10"] in lines
    assert ["critic.stages.0", "ConvLeakyReLU2d", "4x4x4", "68"] in lines
    assert ["critic", "133"] in lines


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("diffusion",), "the model must be one of gan, wgan, autoencoder, vae, classifier"),
        (("vae", "--critic-steps", 2), "--critic-steps means nothing for vae: it is for wgan"),
        (("gan", "--loss", "best"), "--loss must be one of non-saturating"),
        (("wgan", "--regularizer", "r1:1"), "--regularizer must be none, gradient-penalty:10"),
        (("wgan", "--regularizer", "gradient-penalty:-1"), "must be 0 or more"),
        (("vae", "--data", "nowhere"), "does not exist"),
        (("vae", "--data", "empty"), "empty"),
        (("vae", "--data", ""), "--data must say where the images are (got an empty text)"),
        (("vae", "--data", "mnist:empty"), "empty"),
        (("vae", "--data", "mnist:"), "mnist needs a folder, mnist:DIR"),
        (("vae", "--data", "digits:"), "nothing after its name (got 'digits:')"),
        (("vae", "--data", "text.npy"), "text.npy"),
        (
            ("classifier", "--data", "bare.npy"),
            "has none: put the pictures into one sub-folder per class",
        ),
        (("vae", "--image-size", 9), "images of 9x9 do not halve evenly"),
        (("vae", "--run", "text.npy"), "is a file: a run needs a folder"),
        (("vae", "--run", "full"), "is not empty and holds no run"),
        (("vae", "--lr", -1), "--lr must be a finite number above 0 (got -1.0)"),
        (("vae", "--lr", "inf"), "--lr must be a finite number above 0 (got inf)"),
        (("vae", "--lr", "nan"), "--lr must be a finite number above 0 (got nan)"),
        (("vae", "--seed", 2**64), f"--seed must be a whole number from 0 to {2**64 - 1} (got"),
        (("vae", "--precision", "fp16"), "--precision must be fp32 or bf16 (got 'fp16')"),
        (("vae", "--device", "gpu"), "--device must be auto, cpu, cuda or a GPU by its number"),
        (("vae", "--device", "meta"), "--device must be auto, cpu, cuda or a GPU by its number"),
        (("vae", "--device", "cuda:99"), "is not there"),
        (("vae", "--capture", "yes"), "--capture must be auto, off or on (got 'yes')"),
        (("vae", "--capture", "on", "--device", "cpu"), "needs a CUDA GPU"),
        (("gan", "--ema", 1), "--ema must be a number from 0 up to, but not including, 1"),
        (("gan", "--ema", "nan"), "--ema must be a number from 0 up to, but not including, 1"),
    ],
)
def test_wrong_input_is_one_line_and_exit_code_2(
    arguments: tuple[object, ...], message: str, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").touch()
    (tmp_path / "text.npy").write_text("no array")
    np.save(tmp_path / "bare.npy", np.zeros((20, 8, 8), np.uint8))
    for dry in ((), ("--dry-run",)):
        assert message in one_line(fastgen("train", *arguments, "--steps", 1, *dry, code=2))
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), MemoryError()])
def test_memory_that_does_not_suffice_is_one_line(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    remedy = "not enough memory: a smaller --batch-size, --width or --image-size takes less"
    too_wide = one_line(fastgen("train", "gan", "--width", 10**11, "--dry-run", code=1))
    assert remedy in too_wide
    assert "can't allocate memory" in too_wide

    def fit(*arguments: object, **more: object) -> None:
        raise error

    train("gan", "--run", "run")
    monkeypatch.setattr(GAN, "decode", fit)
    drawn = one_line(fastgen("sample", "run", code=1))
    assert "not enough memory: a smaller --count takes less" in drawn
    monkeypatch.setattr(Trainer, "fit", fit)
    assert remedy in one_line(train("gan", code=1))
    measured = fastgen("evaluate", "run", code=1).stderr.splitlines()[-1]
    assert measured.startswith("fastgen: not enough memory (")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_while_an_evaluation_trains_its_classifier_is_one_line(
    number: signal.Signals, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fit(trainer: Trainer, steps: int) -> None:
        raise Interrupted(number, 3, None)

    train("gan", "--run", "run")
    monkeypatch.setattr(Trainer, "fit", fit)
    said = fastgen("evaluate", "run", code=code).stderr.splitlines()
    assert said[-1] == f"fastgen: stopped by {number.name}"


def test_a_disk_that_refuses_the_events_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def fit(trainer: Trainer, steps: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", b"run/events.out.tfevents.1")

    monkeypatch.setattr(Trainer, "fit", fit)
    line = one_line(train("gan", "--run", "run", code=1))
    assert line == "fastgen: run/events.out.tfevents.1: No space left on device"


def test_an_unknown_backend_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastgen.ops.backend._default", "abacus")
    assert "FASTGEN_BACKEND must be one of 'auto'" in one_line(train("vae", code=2))
    monkeypatch.setattr("fastgen.ops.backend._default", "cuda")
    assert "backend 'cuda' is not available" in one_line(train("vae", code=2))


def test_unreadable_pictures_are_listed_and_the_others_used(tmp_path: Path) -> None:
    (tmp_path / "faces").mkdir()
    for i in range(12):
        pixels = np.full((8, 8, 3), i * 20, np.uint8)
        Image.fromarray(pixels).save(tmp_path / "faces" / f"{i:02d}.png")
    (tmp_path / "faces" / "broken.png").write_bytes(b"no picture")
    Image.new("RGB", (8, 8)).save(tmp_path / "faces" / "other.bmp")
    result = train("autoencoder", "--data", "faces", steps=1)
    assert "broken.png" in result.stderr.splitlines()[0]
    assert result.stderr.splitlines()[1].startswith("fastgen: left out 1 file: .bmp 1 (read are")
    assert (tmp_path / "runs" / "0001-autoencoder-faces").is_dir()


def test_names_that_are_no_utf8_train_all_the_same(tmp_path: Path) -> None:
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    folder.mkdir()
    for i in range(12):
        pixels = np.random.default_rng(i).integers(0, 256, (8, 8, 3), np.uint8)
        Image.fromarray(pixels).save(folder / os.fsdecode(b"\xfc%d.png" % i))
    train("vae", "--data", folder, steps=1)
    run = tmp_path / "runs" / "0001-vae-caf_"
    assert r"caf\udce9" in (run / "report.html").read_text()
    assert r"caf\udce9" in train("vae", "--data", folder, "--dry-run").stdout
    refused = one_line(train("vae", "--run", os.fsdecode(b"r\xfcn"), code=2))
    assert r"the name of a run's folder must be UTF-8 (got 'r\udcfcn')" in refused


def test_a_full_disk_is_one_line_and_exit_code_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train("vae", "--run", "run", "--checkpoint-every", 1, steps=1)
    flush = os.fsync

    def fsync(descriptor: int) -> None:
        if ".partial-" in os.readlink(f"/proc/self/fd/{descriptor}"):
            raise OSError(28, os.strerror(28))
        flush(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    result = train("vae", "--run", "run", "--checkpoint-every", 1, steps=3, code=1)
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("fastgen: ")]
    assert "cannot write the checkpoint run/checkpoints/000002: No space left on device" in line
    assert line.endswith("To go on from run/checkpoints/000001:")
    assert result.stderr.splitlines()[-1].startswith("  fastgen train vae --run run --steps 3 ")
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["000001"]
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    train("vae", "--run", "run", "--checkpoint-every", 1, steps=3)


def test_a_disk_that_is_full_of_pictures_is_told_with_the_file(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    flush, wanted = os.fsync, "000000.png"

    def fsync(descriptor: int) -> None:
        if wanted in os.readlink(f"/proc/self/fd/{descriptor}"):
            raise OSError(28, os.strerror(28))
        flush(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    often = ("--run", "run", "--sample-every", 1, "--checkpoint-every", 1)
    result = train("gan", *often, code=1)
    assert result.stderr == "fastgen: run/samples/000000.png: No space left on device\n"
    wanted = "000002.png"
    result = train("gan", *often, code=1)
    *_, line, command = result.stderr.splitlines()
    assert line == (
        "fastgen: run/samples/000002.png: No space left on device. "
        "To go on from run/checkpoints/000001:"
    )
    assert command.startswith("  fastgen train gan --run run --steps 2 ")


def test_numbers_that_are_no_longer_finite_are_one_line_and_exit_code_1(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    result = train("autoencoder", "--lr", "1e30", steps=5, code=1)
    line = result.stderr.splitlines()[-1]
    assert re.match(r"fastgen: training stopped at step \d: phase 'autoencoder'", line)

    def fit(self: Trainer, steps: int) -> None:
        raise NonFiniteLoss("critic", 7, "critic.head", "stopped at step 7")

    monkeypatch.setattr(Trainer, "fit", fit)
    assert "stopped at step 7" in one_line(train("wgan", code=1))


# --- signals, in a process of its own ---


def started(*options: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "fastgen", "train", "gan", *SMALL, *LATENT, *options]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = str(Path(__file__).resolve().parent.parent)
    return subprocess.Popen(
        [str(word) for word in command], env=environment, stderr=subprocess.PIPE, text=True
    )


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_saves_and_says_how_to_go_on(
    number: signal.Signals, code: int, tmp_path: Path
) -> None:
    options = ("--seed", 4, "--steps", 100_000)
    process = started("--run", "my run", *options)
    while not (tmp_path / "my run" / "log.jsonl").exists():
        time.sleep(0.02)
    time.sleep(0.3)
    process.send_signal(number)
    said = process.communicate(timeout=60)[1]
    assert process.returncode == code
    assert "Traceback" not in said

    *_, stopped, command = said.splitlines()
    (step,) = (int(path.name) for path in checkpoints(tmp_path / "my run" / "checkpoints"))
    assert f"after step {step}, saved in my run/checkpoints/{step:06d}. To go on:" in stopped
    words = "fastgen train gan --run 'my run' --steps 100000 --batch-size 8 --image-size 8 "
    assert command.strip() == words + "--width 4 --latent-dim 3 --seed 4"

    more = ("--seed", 4, "--steps", step + 1)
    train("gan", "--run", "whole", *more)
    settings = json.loads((tmp_path / "my run" / "config.json").read_text())
    settings["settings"]["steps"] = step  # so that the rest is short
    (tmp_path / "my run" / "config.json").write_text(json.dumps(settings))
    train("gan", "--run", "my run", *more)
    resumed, whole = (
        read_checkpoint(tmp_path / name / "checkpoints" / f"{step + 1:06d}")
        for name in ("my run", "whole")
    )
    for group, tensors in whole.tensors.items():
        for name, tensor in tensors.items():
            assert torch.equal(resumed.tensors[group][name], tensor), name


# --- sample ---


def picture(path: Path) -> Any:
    return np.asarray(Image.open(path))


def test_samples_are_a_function_of_the_seed(tmp_path: Path) -> None:
    train("wgan", "--run", "run", "--critic-steps", 1)
    said = fastgen("sample", "run").stdout
    assert said == "run/sample-seed0.png\n"
    fastgen("sample", "run", "--out", "a.png")
    fastgen("sample", "run", "--out", "deep/b.png", "--seed", 1, "--count", 9)
    fastgen("sample", "run", "--out", "c.png", "--interpolate", "--count", 16)
    side = 8 * 6 + 2
    assert np.array_equal(picture(tmp_path / "a.png"), picture(tmp_path / said.strip()))
    assert picture(tmp_path / "a.png").shape == (8 * side + 2, 8 * side + 2)
    assert picture(tmp_path / "deep" / "b.png").shape == (2 * side + 2, 8 * side + 2)
    assert picture(tmp_path / "c.png").shape == (2 * side + 2, 8 * side + 2)


def test_samples_come_from_the_averaged_weights(tmp_path: Path) -> None:
    train("gan", "--run", "run", "--lr", "0.05", steps=3)
    fastgen("sample", "run", "--out", "sample.png")
    below = picture(tmp_path / "run" / "samples" / "000003.png")
    sample = picture(tmp_path / "sample.png")
    assert np.array_equal(below[: len(sample)], sample)


def test_a_seed_that_torch_cannot_take_is_one_line() -> None:
    train("vae", "--run", "run", steps=1)
    fastgen("sample", "run", "--seed", 2**64 - 1)
    line = one_line(fastgen("sample", "run", "--seed", 2**64, code=2))
    assert line == f"fastgen: --seed must be a whole number from 0 to {2**64 - 1} (got {2**64})"


@pytest.mark.parametrize("model", ["autoencoder", "classifier"])
def test_what_cannot_draw_says_so(model: str) -> None:
    train(model, "--run", "run", steps=1)
    expected = f"run holds a run of {model}: only a gan, wgan or vae has latents"
    assert expected in one_line(fastgen("sample", "run", code=2))


@pytest.mark.parametrize("command", ["sample", "evaluate"])
def test_a_run_that_is_not_there_is_one_line(command: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    assert "nowhere does not exist" in one_line(fastgen(command, "nowhere", code=2))
    assert "folder is no folder of a run" in one_line(fastgen(command, "folder", code=2))
    assert "file is no folder of a run" in one_line(fastgen(command, "file", code=2))
    train("vae", "--run", "run", steps=1)
    (tmp_path / "run" / "checkpoints").rename(tmp_path / "elsewhere")
    assert "run has no checkpoint yet" in one_line(fastgen(command, "run", code=2))


@pytest.mark.parametrize(
    ("other", "message"), [("vae", "Unexpected key(s)"), ("autoencoder", "size mismatch for ")]
)
def test_a_checkpoint_of_another_run_is_refused_in_one_line(other: str, message: str) -> None:
    train("autoencoder", "--run", "run")
    fastgen("train", other, *SMALL, "--latent-dim", 4, "--steps", 3, "--run", "other")
    shutil.copytree("other/checkpoints/000003", "run/checkpoints/000003")
    drawn = one_line(fastgen("evaluate", "run", code=2))
    assert f"checkpoint run/checkpoints/000003 belongs to another model: {message}" in drawn
    refused = one_line(train("autoencoder", "--run", "run", steps=9, code=2))
    assert "checkpoint run/checkpoints/000003 belongs to another model: " in refused


def test_a_damaged_checkpoint_is_named_and_the_one_before_used(tmp_path: Path) -> None:
    train("vae", "--run", "run", "--checkpoint-every", 1)
    damaged = tmp_path / "run" / "checkpoints" / "000002" / "model.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:100])
    assert "run/checkpoints/000002 is damaged: model.safet" in one_line(fastgen("sample", "run"))


@pytest.mark.parametrize("out", ["picture.jpg", "folder.png"])
def test_only_png_files_are_written(out: str, tmp_path: Path) -> None:
    (tmp_path / "folder.png").mkdir()
    train("vae", "--run", "run", steps=1)
    assert "--out must be a PNG file" in one_line(fastgen("sample", "run", "--out", out, code=2))


# --- evaluate ---


def test_numbers_are_printed_kept_and_shown_in_the_report(tmp_path: Path) -> None:
    train("vae", "--run", "run")
    numbers = json.loads(fastgen("evaluate", "run", "--json").stdout)
    assert numbers["step"] == 2
    assert numbers["elbo"] < numbers["log_likelihood"]
    assert json.loads((tmp_path / "run" / "evaluation.json").read_text()) == numbers
    assert f"{numbers['elbo']:.5g}" in (tmp_path / "run" / "report.html").read_text()
    lines = [line.split() for line in fastgen("evaluate", "run").stdout.splitlines()]
    assert ["squared", "error", f"{numbers['squared_error']:.5g}"] in lines


def test_numbers_are_printed_where_they_cannot_be_kept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    train("vae", "--run", "run")

    def refuse(path: Path, data: bytes) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("fastgen.files.replace_file", refuse)
    result = fastgen("evaluate", "run", "--json", code=1)
    assert json.loads(result.stdout)["step"] == 2
    assert one_line(result) == "fastgen: run/evaluation.json: Permission denied"


def test_a_gan_without_labels_says_that_it_needs_them(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (40, 8, 8), np.uint8)
    np.save(tmp_path / "bare.npy", images)
    train("gan", "--data", "bare.npy", "--run", "run", steps=1)
    line = one_line(fastgen("evaluate", "run", code=2))
    assert "bare.npy has none: put the pictures into one sub-folder per class" in line


def test_data_that_changed_since_the_training_is_noticed(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (40, 8, 8), np.uint8)
    np.save(tmp_path / "bare.npy", images)
    train("autoencoder", "--data", "bare.npy", "--run", "run", steps=1)
    np.save(tmp_path / "bare.npy", 255 - images)
    changed = f"the pictures of {tmp_path}/bare.npy are not those that run was trained on"
    assert changed in one_line(fastgen("evaluate", "run"))
    result = train("autoencoder", "--data", "bare.npy", "--run", "run", steps=2, code=2)
    assert f"T{changed[1:]}" in result.stderr
    assert "data_fingerprint" not in result.stderr
    np.save(tmp_path / "bare.npy", np.stack([images] * 3, axis=1))
    expected = "run was trained on images of shape [1, 8, 8], "
    assert expected in one_line(fastgen("evaluate", "run", code=2))


def test_data_that_moved_continues_and_is_measured_from_its_new_place(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (40, 8, 8), np.uint8)
    np.save(tmp_path / "here.npy", images)
    train("autoencoder", "--data", "here.npy", "--run", "run", steps=1)
    (tmp_path / "here.npy").rename(tmp_path / "there.npy")
    line = one_line(fastgen("evaluate", "run", code=2))
    assert "here.npy' does not exist" in line
    assert line.endswith("; --data SPEC says where the run's data is now")
    moved = fastgen("evaluate", "run", "--data", "there.npy")
    assert moved.stderr == ""
    train("autoencoder", "--data", "there.npy", "--run", "run", steps=2)
    assert json.loads(fastgen("evaluate", "run", "--json").stdout)["step"] == 2
    assert "--data" not in one_line(fastgen("evaluate", "run", "--data", "nowhere", code=2))


# --- info and help ---


def test_info_names_versions_devices_and_backends() -> None:
    facts = json.loads(fastgen("info", "--json").stdout)
    assert facts["versions"]["torch"] == torch.__version__
    assert facts["backends"]["torch"].endswith("available")
    assert "thread" in facts["devices"]["cpu"]
    assert "torch" in facts["auto picks"]["cpu"]
    text = fastgen("info").stdout
    assert all(value in text for group in facts.values() for value in group.values())


def test_info_says_which_variables_are_wrong_and_training_stops_at_once() -> None:
    given = {
        "FASTGEN_BACKEND": "foo",
        "FASTGEN_BUILD": "cpu",
        "FASTGEN_CACHE": "/tmp",
        "FASTGEN_CPU": "foo",
        "FASTGEN_DATA_MEMORY": "4G",
        "FASTGEN_TORCH": "/tmp",
        "FASTGEN_WINOGRAD": "foo",
        "FASTGEN_WINOGRD": "off",
    }
    environment = {name: word for name, word in os.environ.items() if "FASTGEN_" not in name}
    environment |= {**given, "PYTHONPATH": str(Path(__file__).resolve().parent.parent)}

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "fastgen", *words]
        return subprocess.run(command, env=environment, capture_output=True, text=True)

    done = run("info", "--json")
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)["environment variables"]
    assert facts.keys() == given.keys()
    for name in ("FASTGEN_BACKEND", "FASTGEN_CPU", "FASTGEN_DATA_MEMORY", "FASTGEN_WINOGRAD"):
        assert re.match(rf"wrong: .*{name} must be .*\(got '{given[name]}'\)", facts[name])
    assert facts["FASTGEN_CACHE"] == "/tmp"
    for name in ("FASTGEN_BUILD", "FASTGEN_TORCH"):
        assert facts[name] == f"{given[name]} (read when fastgen is installed)"
    assert facts["FASTGEN_WINOGRD"] == "off (no variable that fastgen reads)"

    del environment["FASTGEN_BACKEND"], environment["FASTGEN_CPU"]
    for words in (("train", "vae", "--dry-run"), ("info", "--routes")):
        done = run(*words)
        assert done.returncode == 2
        assert done.stderr == (
            "fastgen: the environment variable FASTGEN_WINOGRAD must be one of 'on', 'off' "
            "(got 'foo')\n"
        )


def test_help_teaches_with_examples() -> None:
    text = fastgen("train", "--help").stdout
    assert "fastgen train vae --data mnist:~/mnist" in text
    assert "gradient-penalty:10" in text
    assert "a folder with PNG, JPEG and WebP images" in text
    assert "The same command with --run DIR continues the run in DIR" in text
    text = " ".join(fastgen("evaluate", "--help").stdout.split())
    seen = text.index("Beside one half of the training images: gan, wgan:")
    assert "On images that the training has not seen: classifier:" in text[:seen]
    assert "needs labels: put the pictures into one sub-folder per class" in text[seen:]
    assert all(command in fastgen("--help").stdout for command in ("train", "sample", "info"))
    assert all("cuda:1" in fastgen(command, "--help").stdout for command in ("train", "bench"))


@pytest.mark.parametrize(
    ("command", "flags"),
    [("train", {"--dry-run", "--help"}), ("bench", {"--quick", "--tune", "--help"})],
)
def test_help_tells_the_default_of_every_option(command: str, flags: set[str]) -> None:
    lines = fastgen(command, "--help").stdout.splitlines()
    options = {line.split()[1]: n for n, line in enumerate(lines) if line.startswith("│ --")}
    assert len(options) > 10
    for option, n in options.items():
        # One that does not fit into a line goes on in the next.
        whole = lines[n] + (lines[n + 1] if lines[n + 1].startswith("│     ") else "")
        assert ("[default: " in whole) == (option not in flags), whole


def test_without_the_packages_of_the_command_line_it_says_what_to_install() -> None:
    code = (
        "import sys\n"
        "class Without:\n"
        "    def find_spec(name, path, target=None):\n"
        "        if name == 'typer':\n"
        "            raise ModuleNotFoundError(f'No module named {name!r}', name=name)\n"
        "sys.meta_path.insert(0, Without)\n"
        "from fastgen.cli import main; main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    expected = 'fastgen: typer is not installed: pip install "fastgen-kernels[train]"\n'
    assert (done.returncode, done.stdout, done.stderr) == (1, "", expected)


def test_help_does_not_wait_for_torch() -> None:
    code = "import sys, fastgen.cli; print('torch' in sys.modules, 'typer' in sys.modules)"
    root = Path(__file__).resolve().parent.parent
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    assert done.stdout == "False True\n"
