"""CUDA graphs on a device: the tape's promises, kept by the real thing."""

from __future__ import annotations

import contextlib
import gc
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from toys import Noise, Regression, models

import fastgen
from fastgen.data import AffineJitter, Splits
from fastgen.models import WGAN
from fastgen.training import Trainer
from fastgen.training.graphs import CaptureError, CudaGraphs
from fastgen.training.step_graphs import WARM_UP

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

KINDS = ("gan", "wgan", "spectral", "vae", "autoencoder", "classifier")
STEPS = WARM_UP + 6


@pytest.fixture(autouse=True)
def deterministic(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The same kernels, which add up in the same order, with and without capture."""
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    monkeypatch.setenv("FASTGEN_ROUTES", "off")
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    with torch.backends.cudnn.flags(benchmark=False, deterministic=True):
        yield
    torch.use_deterministic_algorithms(before)


def build(kind: str, digits: Splits, capture: str, **more: Any) -> Trainer:
    torch.manual_seed(0)
    options: dict[str, Any] = {"lr": 0.01, "log_every": 1, "progress": False, **more}
    return Trainer(
        models(digits)[kind](),
        digits.train,
        batch_size=8,
        device="cuda",
        capture=capture,
        **options,
    )


def losses_of(trainer: Trainer, steps: int) -> list[dict[str, float]]:
    found = []
    while trainer.step < steps:
        record = trainer.fit(trainer.step + 1)
        found.append({name: value for name, value in record.items() if "/" in name})
    return found


def assert_same_state(one: Trainer, other: Trainer) -> None:
    left, right = one._state().tensors, other._state().tensors
    for group, tensors in left.items():
        for name, tensor in tensors.items():
            assert torch.equal(tensor, right[group][name]), f"{group}: {name}"


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("kind", KINDS)
def test_graphs_give_the_numbers_of_eager_steps(kind: str, precision: str, digits: Splits) -> None:
    captured, eager = (build(kind, digits, c, precision=precision) for c in ("on", "off"))
    assert losses_of(captured, STEPS) == losses_of(eager, STEPS)
    assert_same_state(captured, eager)
    assert captured._stepper.graphs.reason is None


@pytest.mark.parametrize(
    "options",
    [{"augment": AffineJitter()}, {"updates": "simultaneous"}],
    ids=lambda options: next(iter(options)),
)
def test_so_they_do_with_options(options: dict[str, Any], digits: Splits) -> None:
    captured, eager = (build("gan", digits, c, **options) for c in ("on", "off"))
    assert losses_of(captured, STEPS) == losses_of(eager, STEPS)
    assert_same_state(captured, eager)


@pytest.mark.parametrize(("first", "second"), [("on", "off"), ("off", "on"), ("on", "on")])
def test_checkpoints_go_both_ways(first: str, second: str, digits: Splits, tmp_path: Path) -> None:
    whole = build("wgan", digits, "off")
    whole.fit(2 * STEPS)
    half = build("wgan", digits, first)
    half.fit(STEPS)
    half.save(tmp_path / "half")
    resumed = build("wgan", digits, second)
    resumed.load(tmp_path / "half")
    resumed.fit(2 * STEPS)
    assert_same_state(resumed, whole)


def test_replayed_steps_neither_wait_nor_take_memory(digits: Splits) -> None:
    trainer = build("wgan", digits, "on")
    trainer.fit(STEPS)
    gc.collect()  # of what other tests left behind nothing may go meanwhile
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for step in range(STEPS, STEPS + 50):
            trainer._stepper.run(step)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.cuda.synchronize()
    assert torch.cuda.memory_allocated() == before
    trainer._stepper.check()


def test_a_graph_does_without_the_workspaces_that_torch_frees() -> None:
    """torch.compile frees cuBLAS's workspaces before it records a graph of its own."""
    graphs = CudaGraphs(torch.device("cuda", torch.cuda.current_device()))
    a, b = torch.randn(32, 8192, device="cuda"), torch.randn(8192, 32, device="cuda")
    with graphs.apart():
        expected = a @ b
    recording = graphs.record(lambda: a @ b)
    torch._C._cuda_clearCublasWorkspaces()
    torch.cuda.empty_cache()
    filled = [torch.full((2**20,), torch.nan, device="cuda") for _ in range(16)]
    recording.replay()
    assert torch.equal(recording.results, expected)
    assert all(bool(each.isnan().all()) for each in filled)


class Waits(Regression):
    """Its loss asks the device for a number."""

    def _loss(self, images: Tensor, labels: Tensor | None) -> Any:
        losses = super()._loss(images, labels)
        return {"loss": losses["loss"] * (1 + abs(images.mean().item()))}


def test_a_step_that_waits_goes_on_eagerly_with_one_line(
    digits: Splits, capsys: pytest.CaptureFixture[str]
) -> None:
    """A capture that breaks off leaves generators, streams and weights as they were."""

    def make(capture: str) -> Trainer:
        torch.manual_seed(0)
        return Trainer(Waits(), Noise(5, 6), device="cuda", capture=capture, progress=False)

    captured, eager = make("auto"), make("off")
    captured.fit(STEPS)
    eager.fit(STEPS)
    assert_same_state(captured, eager)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("not captured: ")
    assert line.endswith("; training without a CUDA graph")
    assert torch.cuda.current_stream() == torch.cuda.default_stream()
    assert torch.isfinite(torch.randn(9, device="cuda")).all()
    with pytest.raises(CaptureError):
        make("on").fit(STEPS)
    test_graphs_give_the_numbers_of_eager_steps("gan", "fp32", digits)


def test_work_that_could_not_be_recorded_is_let_go_at_once() -> None:
    """Not at the next garbage collection, which comes when the device's memory may be full."""
    graphs = CudaGraphs(torch.device("cuda", torch.cuda.current_device()))
    alive: list[weakref.ref[Tensor]] = []

    def waits() -> float:
        activations = torch.ones(3, device="cuda")
        alive.append(weakref.ref(activations))
        return activations.sum().item()

    gc.collect()
    gc.disable()
    try:
        with contextlib.suppress(CaptureError):  # pytest.raises would keep the error itself
            graphs.record(waits)
        assert [reference() for reference in alive] == [None]
    finally:
        gc.enable()


@pytest.mark.parametrize(
    "draw",
    [
        lambda: torch.rand(1000, device="cuda"),
        lambda: torch.randn(1000, device="cuda"),
        lambda: nn.functional.dropout(torch.ones(1000, device="cuda")),
        lambda: torch.empty((), dtype=torch.int64, device="cuda").random_(),
    ],
    ids=["rand", "randn", "dropout", "random_"],
)
def test_a_replay_draws_what_eager_work_would_draw_after_the_same_seed(draw: Any) -> None:
    graphs = CudaGraphs(torch.device("cuda", torch.cuda.current_device()))
    with graphs.apart():
        draw()
    recording = graphs.record(lambda: (draw(), draw()))
    for seed in (1, 2**63 + 5, 3):
        torch.cuda.manual_seed(seed)
        expected = draw(), draw(), draw()
        torch.cuda.manual_seed(seed)
        recording.replay()
        assert all(map(torch.equal, (*recording.results, draw()), expected))


def test_a_loop_of_ones_own_is_captured_whole() -> None:
    def run(capture: bool) -> list[float]:
        torch.manual_seed(0)
        model = WGAN.for_images((1, 8, 8), latent_dim=3, width=4).cuda()
        optimizer = torch.optim.Adam(
            model.critic.parameters(), lr=1e-3, fused=True, capturable=True
        )

        def step(images: Tensor, noise: Tensor) -> Tensor:
            loss = model.critic_loss(images, noise)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            return loss.detach()

        batches = [
            (torch.rand(4, 1, 8, 8, device="cuda"), torch.randn(4, 3, device="cuda"))
            for _ in range(9)
        ]
        graphed = fastgen.capture(step, batches[0]) if capture else step
        losses = [graphed(*batch).item() for batch in batches]
        assert not capture or graphed.replaying
        return losses

    captured = run(capture=True)
    assert captured == run(capture=False)
    assert len(set(captured)) == 9
