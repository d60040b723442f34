"""A training that was stopped and goes on equals one that was not, with difference exactly 0."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from toys import Noise, Regression, Transposed, models

from fastgen.data import Splits
from fastgen.models import GAN, WGAN, Phase
from fastgen.training import Interrupted, Trainer
from fastgen.training.checkpoint import (
    Checkpoint,
    CheckpointError,
    checkpoints,
    read_checkpoint,
    write_checkpoint,
)
from fastgen.training.log import read_log
from fastgen.training.run_folder import RunFolder

KINDS = ("dropout", "transposed", "gan", "wgan", "spectral", "vae", "autoencoder", "classifier")
TOYS = {"dropout": Regression, "transposed": Transposed}
N = 3


def trainer(kind: str, digits: Splits, run: Path | None, start: int = 0, **more: Any) -> Trainer:
    """The start differs on purpose: a resumed training must not depend on it."""
    torch.manual_seed(start)
    options: dict[str, Any] = {"run": run, "log_every": 1, "progress": False, "lr": 0.01, **more}
    if kind in TOYS:
        return Trainer(TOYS[kind](), Noise(5, 6), **options)
    return Trainer(models(digits)[kind](), digits.train, batch_size=8, **options)


def numbers(path: Path) -> list[dict[str, float]]:
    """The log without what a clock says."""
    clock = ("seconds", "images_per_second")
    return [{k: v for k, v in line.items() if k not in clock} for line in read_log(path)]


def assert_equal(one: Checkpoint, other: Checkpoint) -> None:
    assert one.tensors.keys() == other.tensors.keys()
    for group, tensors in one.tensors.items():
        assert tensors.keys() == other.tensors[group].keys()
        for name, tensor in tensors.items():
            assert torch.equal(tensor, other.tensors[group][name]), f"{group}: {name}"
    assert one.state["optimizers"] == other.state["optimizers"]
    assert one.state["step"] == other.state["step"]


def last(run: Path) -> Checkpoint:
    return read_checkpoint(checkpoints(run / "checkpoints")[-1])


@pytest.mark.parametrize("kind", KINDS)
def test_n_steps_a_checkpoint_and_n_steps_equal_2n_steps(
    kind: str, digits: Splits, tmp_path: Path
) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    trainer(kind, digits, whole).fit(2 * N)
    trainer(kind, digits, parts).fit(N)
    resumed = trainer(kind, digits, parts, start=1)
    resumed.fit(2 * N)
    assert resumed.step == 2 * N
    assert_equal(last(parts), last(whole))
    assert ("ema" in last(whole).tensors) == (kind in ("dropout", "gan", "wgan", "spectral"))
    assert numbers(parts / "log.jsonl") == numbers(whole / "log.jsonl")
    assert [line["step"] for line in numbers(whole / "log.jsonl")] == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.RMSprop, torch.optim.AdamW])
def test_any_optimizer_goes_on_exactly(optimizer: Any, digits: Splits, tmp_path: Path) -> None:
    momentum = {} if optimizer is torch.optim.AdamW else {"momentum": 0.9}

    def make(parameters: Any) -> torch.optim.Optimizer:
        result: torch.optim.Optimizer = optimizer(parameters, lr=0.01, **momentum)
        return result

    whole, parts = tmp_path / "whole", tmp_path / "parts"
    trainer("gan", digits, whole, optimizer=make).fit(2 * N)
    trainer("gan", digits, parts, optimizer=make).fit(N)
    trainer("gan", digits, parts, start=1, optimizer=make).fit(2 * N)
    assert_equal(last(parts), last(whole))


class Annealed(Regression):
    """Its learning rate is a tensor, lowered after each update through the caller's own name."""

    def __init__(self) -> None:
        super().__init__()
        self.lr = torch.tensor(0.01)

    def optimizer(self, parameters: Any) -> torch.optim.Optimizer:
        return torch.optim.Adam(parameters, lr=self.lr, fused=True)

    def phases(self) -> list[Phase]:
        return [replace(phase, after_step=self._lower) for phase in super().phases()]

    def _lower(self) -> None:
        self.lr.mul_(0.8)


def test_a_learning_rate_that_is_a_tensor_stays_the_callers(run: Path) -> None:
    def training(path: Path | None) -> tuple[Annealed, Trainer]:
        torch.manual_seed(0)
        model = Annealed()
        options: dict[str, Any] = {"optimizer": model.optimizer, "progress": False}
        return model, Trainer(model, Noise(5, 6), run=path, **options)

    (whole, once), (_, before), (resumed, after) = training(None), training(run), training(run)
    once.fit(2 * N)
    before.fit(N)
    after.fit(2 * N)
    assert torch.equal(resumed.lr, whole.lr)
    for name, tensor in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], tensor), name


class Own:
    def __call__(self, images: Tensor) -> Tensor:
        return -images


def function() -> Any:
    return lambda images: -images


@pytest.mark.parametrize("augmentation", [function, Own])
def test_what_has_no_name_but_an_address_goes_on_in_another_process(
    augmentation: Any, digits: Splits, run: Path
) -> None:
    # As in another process, the second ones lie elsewhere.
    augment = [augmentation() for _ in range(2)]
    model = [WGAN.for_images((1, 8, 8), latent_dim=3, width=4, regularizer=None) for _ in range(2)]
    for k in range(2):
        options: dict[str, Any] = {"batch_size": 8, "progress": False, "augment": augment[k]}
        Trainer(model[k], digits.train, run=run, **options).fit(k + 1)
    settings = RunFolder(run).settings()
    assert settings is not None
    assert " at 0x" not in str(settings)
    assert f"{__name__}.{augmentation.__qualname__}" in settings["augment"]


def test_save_and_load_work_without_a_run_folder(digits: Splits, tmp_path: Path) -> None:
    whole, first, second = (trainer("vae", digits, None, start) for start in (0, 0, 1))
    whole.fit(2 * N)
    first.fit(N)
    first.save(tmp_path / "half")
    second.load(tmp_path / "half")
    second.fit(2 * N)
    for name, weight in whole.model.state_dict().items():
        assert torch.equal(second.model.state_dict()[name], weight), name


def test_who_goes_back_and_is_stopped_finds_the_checkpoint_of_that_step(
    digits: Splits, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer("vae", digits, run, checkpoint_every=1, keep=9).fit(5)
    back = trainer("vae", digits, run, checkpoint_every=10, keep=2)
    back.load(run / "checkpoints" / "000002")
    monkeypatch.setattr(back._processes, "agree", lambda number: signal.SIGTERM)
    with pytest.raises(Interrupted) as stopped:
        back.fit(9)
    assert stopped.value.checkpoint == run / "checkpoints" / "000003"
    assert read_checkpoint(stopped.value.checkpoint).state["step"] == 3


def test_who_goes_back_loses_no_log_points(digits: Splits, run: Path) -> None:
    trainer("vae", digits, run, checkpoint_every=1, keep=9).fit(5)
    log, aside = run / "log.jsonl", run / "log-after-000002.jsonl"
    before = log.read_text().splitlines()
    back = trainer("vae", digits, run, checkpoint_every=1, keep=9)
    back.load(run / "checkpoints" / "000002")
    back.fit(3)
    trainer("vae", digits, run).fit(6)
    assert [record["step"] for record in read_log(log)] == [1, 2, 3, 6]
    assert aside.read_text().splitlines() == before[2:]
    assert list(run.glob("log-after*")) == [aside]


def test_two_fits_of_one_trainer_equal_one(digits: Splits, tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    trainer("wgan", digits, whole).fit(2 * N)
    twice = trainer("wgan", digits, parts)
    assert twice.fit(N)["step"] == N
    assert twice.fit(N) == {}
    assert twice.fit(2 * N)["step"] == 2 * N
    assert_equal(last(parts), last(whole))
    assert numbers(parts / "log.jsonl") == numbers(whole / "log.jsonl")


def test_a_run_whose_last_checkpoint_is_damaged_goes_on_from_the_one_before(
    digits: Splits, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    trainer("gan", digits, whole).fit(2 * N)
    trainer("gan", digits, parts, checkpoint_every=1, keep=9).fit(N)
    damaged = parts / "checkpoints" / f"{N:06d}"
    weights = damaged / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    trainer("gan", digits, parts, start=1, checkpoint_every=1, keep=9).fit(2 * N)
    said = capsys.readouterr().err
    assert str(damaged) in said
    assert f"using {N - 1:06d} instead" in said
    assert_equal(last(parts), last(whole))
    assert numbers(parts / "log.jsonl") == numbers(whole / "log.jsonl")
    assert read_checkpoint(damaged).state["step"] == N


@pytest.mark.parametrize(("keep", "left"), [(1, ["000005"]), (2, ["000003", "000005"])])
def test_a_damaged_checkpoint_is_not_kept_in_the_place_of_a_whole_one(
    keep: int, left: list[str], digits: Splits, run: Path
) -> None:
    trainer("gan", digits, run, checkpoint_every=3).fit(6)
    (run / "checkpoints" / "000006" / "model.safetensors").write_bytes(b"damaged")
    trainer("gan", digits, run, keep=keep).fit(5)
    assert [path.name for path in checkpoints(run / "checkpoints")] == left
    assert last(run).state["step"] == 5


def test_seconds_go_on_from_those_of_the_checkpoint(digits: Splits, tmp_path: Path) -> None:
    one = trainer("dropout", digits, None)
    one.fit(1)
    one.save(tmp_path / "one")
    written = read_checkpoint(tmp_path / "one")
    state = {**written.state, "seconds": 1000.0}
    write_checkpoint(tmp_path / "later", Checkpoint(written.tensors, state))
    other = trainer("dropout", digits, None)
    other.load(tmp_path / "later")
    assert other.fit(2)["seconds"] >= 1000


def test_how_an_optimizer_runs_is_no_part_of_a_checkpoint(digits: Splits, tmp_path: Path) -> None:
    made: list[torch.optim.Optimizer] = []

    def adam(fused: bool, lr: float) -> Any:
        def make(parameters: Any) -> torch.optim.Optimizer:
            made.append(torch.optim.Adam(parameters, lr=lr, fused=fused))
            return made[-1]

        return make

    one = trainer("transposed", digits, None, optimizer=adam(True, 0.02))
    one.fit(1)
    one.save(tmp_path / "one")
    other = trainer("transposed", digits, None, optimizer=adam(False, 0.01))
    other.load(tmp_path / "one")
    other.fit(2)
    assert [group["fused"] for optimizer in made for group in optimizer.param_groups] == [1, 0]
    assert [group["lr"] for optimizer in made for group in optimizer.param_groups] == [0.02, 0.02]


def test_a_checkpoint_of_another_model_is_refused(digits: Splits, tmp_path: Path) -> None:
    one = trainer("gan", digits, None)
    one.fit(1)
    one.save(tmp_path / "gan")
    with pytest.raises(ValueError, match=r"has phases \['discriminator', 'generator'\]"):
        trainer("vae", digits, None).load(tmp_path / "gan")
    with pytest.raises(ValueError, match="no averaged weights"):
        trainer("gan", digits, None, ema_decay=None).load(tmp_path / "gan")
    wide = GAN.for_images(digits.train.image_shape, width=8)
    with pytest.raises(CheckpointError, match=r"gan belongs to another model: size mismatch") as it:
        Trainer(wide, digits.train, progress=False).load(tmp_path / "gan")
    assert isinstance(it.value, ValueError)
    assert "\n" not in str(it.value)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_the_training_after_a_whole_saved_step(
    number: signal.Signals, code: int, digits: Splits, tmp_path: Path
) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    trainer("gan", digits, whole).fit(2 * N)
    stopped = trainer("gan", digits, parts)
    phase, calls = stopped._stepper.phases[1], []

    def loss(images: Any, labels: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:  # in the middle of the second step
            os.kill(os.getpid(), number)
        return phase.loss(images, labels)

    stopped._stepper.phases[1] = type(phase)(phase.name, phase.parameters, loss)
    handlers = [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)]
    with pytest.raises(Interrupted) as caught:
        stopped.fit(2 * N)
    assert [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)] == handlers
    assert (caught.value.step, caught.value.exit_code) == (2, code)
    assert caught.value.checkpoint == parts / "checkpoints" / "000002"
    trainer("gan", digits, parts, start=1).fit(2 * N)
    assert_equal(last(parts), last(whole))
    assert numbers(parts / "log.jsonl") == numbers(whole / "log.jsonl")


def test_a_second_ctrl_c_stops_at_once(digits: Splits, run: Path) -> None:
    stopped = trainer("gan", digits, run)
    phase = stopped._stepper.phases[0]

    def loss(images: Any, labels: Any) -> Any:
        for _ in range(2):
            signal.raise_signal(signal.SIGINT)
        raise AssertionError("the second one was not answered")

    stopped._stepper.phases[0] = type(phase)(phase.name, phase.parameters, loss)
    with pytest.raises(KeyboardInterrupt) as caught:
        stopped.fit(2)
    assert not isinstance(caught.value, Interrupted)
    assert stopped.step == 0


def test_a_signal_that_is_ignored_stays_so(digits: Splits) -> None:
    trained = trainer("gan", digits, None)
    phase = trained._stepper.phases[0]

    def loss(images: Any, labels: Any) -> Any:
        signal.raise_signal(signal.SIGINT)
        return phase.loss(images, labels)

    trained._stepper.phases[0] = type(phase)(phase.name, phase.parameters, loss)
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        trained.fit(2)
        assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    except KeyboardInterrupt:  # pytest itself would end by it
        pytest.fail("the training was stopped")
    finally:
        signal.signal(signal.SIGINT, before)
    assert trained.step == 2


KILLED = """
import os, random, signal, sys, time
from pathlib import Path
import torch, torch._dynamo, torch.utils.tensorboard
sys.path.insert(0, sys.argv[1])
torch.set_num_threads(1)
from toys import Noise, Regression
from fastgen.training import Trainer
from fastgen.training.checkpoint import checkpoints, read_checkpoint

run, folder = Path(sys.argv[2]), Path(sys.argv[2]) / "checkpoints"

def train(steps):
    torch.manual_seed(0)  # the start of a child that is killed before its first checkpoint
    data, each = Noise(5, 6), {"log_every": 1, "checkpoint_every": 1, "progress": False}
    Trainer(Regression(), data, run=run, **each).fit(steps)

random.seed(5)
reached = [0]
while len(reached) < 9:
    child = os.fork()
    if child == 0:
        train(10**6)
    while not [p for p in checkpoints(folder) if int(p.name) > reached[-1]]:
        time.sleep(0.01)  # it has begun
    time.sleep(random.uniform(0, 0.03))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    newest = checkpoints(folder)[-1]
    assert read_checkpoint(newest).state["step"] == int(newest.name)
    reached.append(int(newest.name))
assert reached == sorted(set(reached)), reached
child = os.fork()
if child == 0:
    train(reached[-1] + 2)
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
print(reached[-1] + 2)
"""


def test_a_kill_at_any_instant_leaves_a_whole_checkpoint(digits: Splits, tmp_path: Path) -> None:
    """Killed eight times while it writes checkpoints as fast as it can, then finished."""
    parts, whole = tmp_path / "parts", tmp_path / "whole"
    here = Path(__file__).parent
    done = subprocess.run(
        [sys.executable, "-c", KILLED, here, parts], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    torch.manual_seed(0)
    uninterrupted = Trainer(Regression(), Noise(5, 6), run=whole, log_every=1, progress=False)
    uninterrupted.fit(int(done.stdout))
    assert_equal(last(parts), last(whole))
    assert numbers(parts / "log.jsonl") == numbers(whole / "log.jsonl")
