"""Several processes that train one model together, on CPUs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import scenarios
import torch
from scenarios import State
from team import team
from test_resume import assert_equal, last, numbers
from typer.testing import CliRunner

from fastgen.cli import app
from fastgen.training import obstacles, processes
from fastgen.training.checkpoint import checkpoints
from fastgen.training.devices import resolve_device
from fastgen.training.log import read_log

ROOT = Path(__file__).resolve().parents[2]


def values(scenario: Any, *arguments: Any, **options: Any) -> list[Any]:
    """What all processes returned."""
    outcomes = team(scenario, *arguments, **options)
    assert [each.error for each in outcomes] == [""] * len(outcomes)
    return [each.value for each in outcomes]


def assert_close(one: State, other: State, within: float) -> None:
    assert [name for name in one if (one[name] - other[name]).abs().max() > within] == []


def assert_same(one: State, other: State) -> None:
    assert one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


# --- the same training ---


@pytest.mark.parametrize("count", [2, 3])
def test_an_autoencoder_comes_to_the_weights_of_one_process(count: int) -> None:
    """Seven images a batch, so that the parts differ in size."""
    alone = scenarios.uneven_batches(0)
    for weights in values(scenarios.uneven_batches, count=count):
        for name, weight in weights.items():
            torch.testing.assert_close(weight, alone[name], rtol=1e-9, atol=1e-11)
    start = scenarios.state(scenarios.linear_autoencoder())
    assert (alone["encoder.weight"] - start["encoder.weight"]).abs().max() > 1e-3


@pytest.mark.parametrize("kind", ["autoencoder", "classifier"])
def test_on_a_dataset_too(kind: str) -> None:
    alone = scenarios.digits(0, kind)
    one, other = values(scenarios.digits, kind)
    assert_same(one, other)
    for name, weight in one.items():
        torch.testing.assert_close(weight, alone[name], rtol=1e-3, atol=2e-5)


def test_all_processes_have_the_same_weights_averages_and_buffers() -> None:
    kinds = ["gan", "wgan", "spectral", "vae", "dropout"]
    one, other = values(scenarios.every_kind, kinds)
    for kind in kinds:
        assert_same(one[kind], other[kind])
        # The start is the first process's; three steps with other noise do not lead far from it.
        assert_close(one[kind], scenarios.digits(0, kind), within=0.1)


def test_means_of_half_precision_are_added_up_in_float32() -> None:
    """0.502 lies between two bfloat16 numbers; the sum of 3 and 3/256, rounded, leads above it."""
    assert values(scenarios.half_precision) == [(torch.bfloat16, 0.5, 0.5)] * 2


def test_a_resumed_training_equals_an_uninterrupted_one_bit_for_bit(tmp_path: Path) -> None:
    kinds = ["dropout", "wgan", "vae"]
    values(scenarios.resumed, tmp_path, kinds)
    for kind in kinds:
        whole, parts = tmp_path / kind / "whole", tmp_path / kind / "parts"
        assert_equal(last(parts), last(whole))
        assert numbers(parts / "log.jsonl") == numbers(whole / "log.jsonl")
        assert len(numbers(whole / "log.jsonl")) == 6


def test_the_first_process_reads_a_checkpoint_for_all(tmp_path: Path) -> None:
    (one, resumed), (other, resumed_other) = values(scenarios.saved_and_loaded, tmp_path)
    assert_same(one, resumed)
    assert_same(one, other)
    assert_same(one, resumed_other)


def test_each_process_draws_its_own_noise_and_all_update_alike() -> None:
    (first, updates), (second, other_updates) = values(scenarios.noise)
    assert updates == other_updates
    assert len({*first, *second, *updates}) == 9
    assert first == scenarios.noise(0)[0]


def test_each_process_reads_its_own_images_alone() -> None:
    for read in values(scenarios.images_read):
        assert len(read) >= 3
        assert set(read) == {4}


def test_tensors_of_all_dtypes_become_the_first_processs() -> None:
    assert values(scenarios.equalized) == [[[True], [0, 1, 2], [-5], [0.5, 0.5]]] * 2


def test_a_gradient_that_some_processes_lack_counts_as_zero_there() -> None:
    for weights in values(scenarios.gaps):
        assert weights["common"].item() == pytest.approx(1 - 1.5 - 0.5)
        assert weights["some"].item() == pytest.approx(1 - 0.5 - 0.5)
        assert weights["none"].item() == 1.0


# --- what is written ---


def test_only_the_first_process_writes_and_the_log_has_the_means(tmp_path: Path) -> None:
    run = tmp_path / "run"
    (first, said, record), (second, nothing, other) = values(scenarios.written, run)
    assert str(run) in first
    assert said.count("step 3/3") == 1
    assert (second, nothing) == ([], "")
    lines = read_log(run / "log.jsonl")
    # Numbers 0 .. 3, 4 .. 7, 8 .. 11 against a = 1 and b = 2, which stay.
    assert [line["a/loss"] for line in lines] == [1.5, 5.5, 9.5]
    assert [line["b/loss"] for line in lines] == [0.5, -3.5, -7.5]
    assert lines[-1] == record
    assert other["a/loss"] == 9.5


def test_images_of_all_processes_are_counted() -> None:
    counts = values(scenarios.counted)
    assert counts == [[7] * 5] * 2


# --- how it ends ---


def test_a_bad_number_in_one_process_stops_all_before_the_update() -> None:
    first, second = values(scenarios.gone_bad)
    for before, after, error in (first, second):
        assert_same(before, after)
        assert (error["phase"], error["step"], error["process"]) == ("a", 3, 1)
        assert "phase 'a' is no longer finite on process 1 (loss nan)" in error["message"]
    assert_same(first[0], second[0])
    assert first[2]["message"] == second[2]["message"]


def test_a_signal_to_one_process_stops_all_after_one_step_and_saves(tmp_path: Path) -> None:
    outcomes = team(scenarios.signalled, tmp_path / "run")
    assert [each.error for each in outcomes] == ["Interrupted"] * 2
    assert {each.message for each in outcomes} == {"stopped by SIGTERM after step 3"}
    assert [path.name for path in checkpoints(tmp_path / "run" / "checkpoints")] == ["000003"]


@pytest.mark.parametrize(("culprit", "count"), [(0, 2), (1, 3)])
def test_an_error_in_one_process_ends_all(culprit: int, count: int, tmp_path: Path) -> None:
    outcomes = team(scenarios.failing, culprit, tmp_path / "run", count=count)
    errors = ["OtherProcessFailed"] * count
    errors[culprit] = "FileNotFoundError"
    assert [each.error for each in outcomes] == errors
    # The others do not wait until it is gone.
    seconds = [each.seconds for each in outcomes]
    assert sorted(seconds)[-2] < seconds[culprit] - 1


def test_a_run_folder_that_the_first_process_refuses_ends_all(tmp_path: Path) -> None:
    scenarios.run_of(0, tmp_path / "run", seed=1)
    first, second = team(scenarios.run_of, tmp_path / "run")
    assert (first.error, second.error) == ("ConfigMismatch", "OtherProcessFailed")
    assert second.message.startswith("another process of this training has failed or ended")


# --- what is refused ---


@pytest.mark.parametrize(("size", "good"), [(9, "8 or 10 would do"), (1, ": 2 would do")])
def test_a_batch_that_cannot_be_shared_equally_is_refused(size: int, good: str) -> None:
    for outcome in team(scenarios.batch_size, size):
        assert outcome.error == "ValueError"
        assert f"multiple of the number of processes, 2, which share each batch (got {size})" in (
            outcome.message
        )
        assert good in outcome.message


def test_a_batch_with_fewer_images_than_processes_is_refused() -> None:
    for outcome in team(scenarios.one_image):
        assert outcome.error == "ValueError"
        assert "batch 0 has 1 images, too few for 2 processes" in outcome.message


def test_processes_that_were_given_different_settings_are_refused() -> None:
    for outcome in team(scenarios.different, {"seed": [0, 1], "log_every": [25, 10]}):
        assert outcome.error == "ProcessesError"
        assert [line.split() for line in outcome.message.splitlines()[1:]] == [
            ["setting", "process", "0", "process", "1"],
            ["seed", "0", "1"],
            ["log_every", "25", "10"],
        ]


def test_variables_that_lead_nowhere_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    with pytest.raises(processes.ProcessesError, match="WORLD_SIZE=2 are set and MASTER_ADDR"):
        processes.find_processes()


def test_each_process_has_its_own_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "init", lambda: None)
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert resolve_device("auto") == torch.device("cuda:1")
    assert resolve_device("cuda") == torch.device("cuda:1")
    assert resolve_device("cuda:0") == torch.device("cuda:0")
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(ValueError, match=r"process 2 .* has no GPU .*nproc_per_node=2"):
        resolve_device("auto")


def test_capture_is_refused_to_several_processes() -> None:
    assert obstacles.of_processes(1) is None
    assert obstacles.of_processes(2) == "2 processes train together"


# --- torchrun ---


def torchrun(*arguments: object) -> subprocess.CompletedProcess[str]:
    words = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, *map(str, words)],
        capture_output=True,
        text=True,
        timeout=60,
        env=environment,
    )


def test_the_command_line_trains_in_several_processes(tmp_path: Path) -> None:
    """And one process goes on with the run."""
    run = tmp_path / "run"
    options = ["--image-size", "8", "--width", "4", "--latent-dim", "3", "--batch-size", "8"]
    command = ["train", "autoencoder", *options, "--run", str(run), "--steps"]
    done = torchrun("-m", "--", "fastgen", *command, 3)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("step 3/3") == 1
    assert done.stdout.count("report.html") == 1
    assert [line["step"] for line in read_log(run / "log.jsonl")] == [3]
    assert len(list(run.glob("events.out.tfevents*"))) == 1
    resumed = CliRunner().invoke(app, [*command, "4"])
    assert resumed.exit_code == 0, resumed.output
    assert "2 processes trained up to here, now it is 1" in resumed.stderr


def test_what_is_wrong_for_all_processes_is_told_once(tmp_path: Path) -> None:
    done = torchrun("-m", "--", "fastgen", "train", "wgan", "--data", tmp_path / "nowhere")
    assert done.returncode != 0
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("fastgen: ")]
    assert "does not exist" in line


# --- groups ---


def test_a_callers_own_group_is_used_and_left_alone(tmp_path: Path) -> None:
    alone = scenarios.uneven_batches(0)
    for there, total, weights in values(scenarios.own_group, tmp_path):
        assert there
        assert total == 3
        torch.testing.assert_close(weights["encoder.weight"], alone["encoder.weight"])


def test_one_process_of_several_may_train_by_itself() -> None:
    assert values(scenarios.alone_in_a_team) == [False, False]
