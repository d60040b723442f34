"""The timing helpers: on a clock that the test turns, exactly; on a GPU, where there is one."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import pytest
import torch

from fastgen.bench import runners, timing

needs_gpu = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


class Clock:
    """Process time that passes only where a test says so."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    turned = Clock()
    monkeypatch.setattr(time, "process_time", turned)
    return turned


# ------------------------------------------------------------------------------------ comparisons


def test_each_candidate_gets_its_own_time_per_call(clock: Clock) -> None:
    def lasting(seconds: float) -> runners.Candidate:
        def work() -> None:
            clock.now += seconds

        return work

    candidates = {"slow": lasting(3e-3), "fast": lasting(1e-5)}
    times = timing.measure(candidates, device="cpu", rounds=7)
    assert times["slow"].median_s == pytest.approx(3e-3, rel=1e-6)
    assert times["fast"].median_s == pytest.approx(1e-5, rel=1e-6)
    assert {t.samples for t in times.values()} == {7}
    assert {t.method for t in times.values()} == {"process"}
    assert all(t.spread < 1e-6 for t in times.values())


def test_median_and_spread_of_uneven_samples() -> None:
    found = timing._summary([1.0, 2.0, 3.0, 4.0, 10.0], "process")
    assert (found.median_s, found.samples) == (3.0, 5)
    assert found.spread == pytest.approx((4.0 - 2.0) / 3.0)
    assert timing._summary([2.0], "process") == timing.Timing(2.0, 0.0, 1, "process")


def test_candidates_take_turns_in_alternating_order(clock: Clock) -> None:
    calls: list[str] = []

    def named(name: str) -> runners.Candidate:
        def work() -> None:
            calls.append(name)
            clock.now += 1.0

        return work

    timing.measure({name: named(name) for name in "abc"}, device="cpu", rounds=4, warmup_s=0.0)
    assert "".join(calls)[-12:] == "abccbaabccba"


def test_short_calls_are_repeated_until_a_sample_lasts_long_enough(clock: Clock) -> None:
    calls = 0

    def work() -> None:
        nonlocal calls
        calls += 1
        clock.now += 4e-6

    timing.measure({"work": work}, device="cpu", rounds=3, warmup_s=0.0)
    assert calls >= 3 * runners.SAMPLE_S / 4e-6


def test_argument_sets_rotate_and_as_many_results_stay_alive(clock: Clock) -> None:
    seen: list[int] = []

    def work(index: int) -> int:
        seen.append(index)
        clock.now += 1e-3
        return index

    timing.measure({"work": work}, [(0,), (1,), (2,)], device="cpu", rounds=5)
    assert seen == [position % 3 for position in range(len(seen))]
    assert len(seen) >= 10
    turns = runners.Turns(work, [(0,), (1,), (2,)])
    turns.call(7)
    assert sorted(turns.results) == [0, 1, 2]


def test_a_warm_up_runs_before_anything_counts(clock: Clock) -> None:
    """The first calls compile and tune, and must not be in the median."""
    calls = 0

    def work() -> None:
        nonlocal calls
        calls += 1
        clock.now += 5.0 if calls <= 1 else 1e-2

    times = timing.measure({"work": work}, device="cpu", rounds=3, warmup_s=0.1)
    assert calls >= 1 + 0.1 / 1e-2 + 3
    assert times["work"].median_s == pytest.approx(1e-2)


def test_what_cannot_be_measured_is_refused() -> None:
    with pytest.raises(ValueError, match=r"'graph' needs a CUDA device \(got cpu\)"):
        timing.measure({"nothing": lambda: None}, device="cpu", method="graph")
    with pytest.raises(ValueError, match="holds no set"):
        timing.measure({"nothing": lambda: None}, [], device="cpu")
    assert timing.measure({}, device="cpu") == {}


def test_real_work_is_told_apart_on_a_real_clock() -> None:
    values = torch.randn(100_000)
    times = timing.measure(
        {
            "once": lambda: torch.erfinv(values),
            "four times": lambda: [torch.erfinv(values) for _ in range(4)],
        },
        device="cpu",
        rounds=9,
        warmup_s=0.0,
    )
    assert 2.5 < times["four times"].median_s / times["once"].median_s < 6


# ------------------------------------------------------------------------- events and graphs, told


class Device:
    """A device of our own behind torch.cuda: work takes time on its clock, and graphs replay it."""

    def __init__(self) -> None:
        self.now = 0.0
        self.captured: list[tuple[float, Callable[[], object]]] | None = None
        self.captures = 0

    def candidate(
        self,
        seconds: float,
        launching: float = 0.0,
        *,
        waits: bool = False,
        forgets: bool = False,
    ) -> runners.Candidate:
        """Negates its argument. `waits` cannot be captured; `forgets` does nothing in a replay."""

        def negate(x: torch.Tensor) -> torch.Tensor:
            out = torch.empty_like(x)
            if self.captured is None:
                torch.neg(x, out=out)
                self.now += seconds + launching
            elif waits:
                raise RuntimeError("operation not permitted when stream is capturing")
            else:
                work = (lambda: None) if forgets else (lambda: torch.neg(x, out=out))
                self.captured.append((seconds, work))
            return out

        return negate

    @contextmanager
    def capture(self, graph: Graph, stream: object) -> Iterator[None]:
        self.captures += 1
        self.captured = graph.work = []
        try:
            yield
        finally:
            self.captured = None


class Graph:
    device: Device
    work: list[tuple[float, Callable[[], object]]]

    def replay(self) -> None:
        for seconds, work in self.work:
            work()
            self.device.now += seconds


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Device:
    found = Device()

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            self.at = found.now

        def synchronize(self) -> None: ...

        def elapsed_time(self, end: Event) -> float:
            return 1e3 * (end.at - self.at)

    class Stream:
        def wait_stream(self, other: Stream) -> None: ...

    monkeypatch.setattr(Graph, "device", found, raising=False)
    replacements = {
        "Event": Event, "Stream": Stream, "CUDAGraph": Graph, "graph": found.capture,
        "device": nullcontext, "stream": nullcontext, "current_stream": Stream,
        "synchronize": lambda: None,
    }  # fmt: skip
    for name, replacement in replacements.items():
        monkeypatch.setattr(torch.cuda, name, replacement)
    return found


def on(candidates: dict[str, runners.Candidate], **options: object) -> dict[str, timing.Timing]:
    sets = timing.rotating(lambda: (torch.randn(8),), "cpu", least_bytes=100)
    return timing.measure(candidates, sets, device="cuda", rounds=3, warmup_s=0.0, **options)  # type: ignore[arg-type]


def test_what_is_short_is_replayed_so_that_launching_does_not_count(device: Device) -> None:
    times = on({"short": device.candidate(5e-6, 4e-4), "long": device.candidate(3e-4, 4e-4)})
    assert times["short"].median_s == pytest.approx(5e-6)
    assert times["long"].median_s == pytest.approx(3e-4)
    assert {t.method for t in times.values()} == {"graph"}


def test_what_is_long_is_timed_by_events(device: Device) -> None:
    times = on({"long": device.candidate(3e-4, 1e-5)})
    assert times["long"].median_s == pytest.approx(3.1e-4)
    assert (times["long"].method, device.captures) == ("events", 1)
    times = on({"longer": device.candidate(3e-2, 1e-5)})
    assert (times["longer"].method, device.captures) == ("events", 1)


def test_what_launching_slows_down_is_replayed_however_long_it_is(device: Device) -> None:
    times = on({"quick": device.candidate(3e-4, 1e-5), "slow": device.candidate(5e-4, 1e-3)})
    assert times["quick"].median_s == pytest.approx(3e-4)
    assert times["slow"].median_s == pytest.approx(5e-4)
    assert {t.method for t in times.values()} == {"graph"}


def test_one_that_cannot_be_captured_puts_all_on_events(device: Device) -> None:
    candidates = {
        "plain": device.candidate(5e-6, 2e-5),
        "waits": device.candidate(5e-6, 3e-5, waits=True),
    }
    with pytest.warns(UserWarning, match="waits cannot be captured .operation not permitted"):
        times = on(candidates)
    assert {t.method for t in times.values()} == {"events"}
    assert times["plain"].median_s == pytest.approx(2.5e-5)
    with pytest.raises(RuntimeError, match="waits cannot be captured in a CUDA graph"):
        on(candidates, method="graph")


def test_a_graph_that_computes_nothing_is_found(device: Device) -> None:
    with pytest.raises(RuntimeError, match="idle: a replay leaves 4 of 4 outputs unwritten"):
        on({"idle": device.candidate(5e-6, forgets=True)})


def test_arguments_and_states_are_not_poisoned(device: Device) -> None:
    state = torch.ones(8)
    negate = device.candidate(5e-6)

    def candidate(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return negate(x), x, state, torch.ones(1).expand(8)

    sets = [(torch.randn(8),), (torch.randn(8),)]
    timing.measure({"candidate": candidate}, sets, device="cuda", rounds=1, warmup_s=0.0)
    assert all(bool(x.isfinite().all()) for (x,) in sets)
    assert bool(state.isfinite().all())


# -------------------------------------------------------------------------------------- arguments


def test_rotating_sets_outgrow_the_cache_and_share_nothing() -> None:
    sets = timing.rotating(
        lambda: (torch.randn(1000), {"bias": torch.randn(24)}, 3), "cpu", least_bytes=10_000
    )
    assert len(sets) == 3  # 4096 bytes each
    pointers = {values.data_ptr() for values, _, _ in sets}
    assert len(pointers) == 3
    assert len(timing.rotating(lambda: (torch.randn(10),), "cpu", least_bytes=1)) == 2
    assert len(timing.rotating(lambda: (torch.randn(1),), "cpu", least_bytes=10**9)) == 64
    assert len(timing.rotating(lambda: (3,), "cpu")) == 1


def test_rotating_refuses_sets_that_would_flatter_a_kernel() -> None:
    shared = torch.randn(100)
    for others in (0, 99):
        with pytest.raises(ValueError, match="earlier call"):
            timing.rotating(lambda n=others: (torch.randn(n), shared), "cpu")
    sets = timing.rotating(lambda: (torch.randn(101), shared), "cpu", least_bytes=3 * 404)
    assert len(sets) == 3  # the first holds 804 bytes that are new, the others 404
    with pytest.raises(ValueError, match=r"shape \(4, 5\) is constant"):
        timing.rotating(lambda: (torch.zeros(4, 5),), "cpu")
    seeds = timing.rotating(lambda: (torch.tensor(7), torch.empty(0)), "cpu", least_bytes=1)
    assert len(seeds) == 2  # integers, scalars and empty tensors may be anything


def test_the_cache_of_this_processor_is_plausible() -> None:
    assert 1 << 18 <= timing.cache_bytes("cpu") <= 1 << 31


# --------------------------------------------------------------------------------------- ceilings


@pytest.fixture
def two_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every measurement runs its candidates once and says two seconds."""

    def measured(candidates: dict[str, runners.Candidate], **_: object) -> dict[str, timing.Timing]:
        for candidate in candidates.values():
            candidate()
        return {name: timing.Timing(2.0, 0.0, 1, "process") for name in candidates}

    monkeypatch.setattr(timing, "measure", measured)


def test_copies_count_what_is_read_and_what_is_written(two_seconds: None) -> None:
    assert timing.copy_bandwidth("cpu", size=1 << 20) == (1 << 20) * 2 / 2.0


def test_filling_counts_what_is_written(two_seconds: None) -> None:
    assert timing.fill_bandwidth("cpu", size=1 << 20) == (1 << 20) / 2.0


def test_a_product_counts_two_operations_per_multiplication(two_seconds: None) -> None:
    assert timing.matrix_rate("cpu", torch.bfloat16, size=32) == 2 * 32**3 / 2.0


def test_the_ceilings_of_this_processor_are_plausible() -> None:
    assert 1e8 < timing.copy_bandwidth("cpu", size=1 << 24) < 1e13
    assert 1e8 < timing.fill_bandwidth("cpu", size=1 << 24) < 1e13
    assert 1e8 < timing.matrix_rate("cpu", torch.float32, size=128) < 1e14


def test_tf32_is_set_while_it_lasts_and_put_back() -> None:
    before = torch.backends.cuda.matmul.allow_tf32
    for allowed in (True, False):
        with timing.tf32_matrices(allowed):
            assert torch.backends.cuda.matmul.allow_tf32 is allowed
        assert torch.backends.cuda.matmul.allow_tf32 is before


# ---------------------------------------------------------------------------------------- machine


def test_the_machine_names_what_a_number_depends_on() -> None:
    found = timing.machine("cpu")
    assert found["device"] == "cpu"
    assert {"processor", "threads", "torch", "python", "commit"} <= found.keys()


class Properties:
    uuid = "1234"


@pytest.fixture
def nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An nvidia-smi that notes how it is called and answers with a fixed line."""
    program = tmp_path / "nvidia-smi"
    program.write_text(
        f'#!/bin/sh\necho "$@" > {tmp_path}/called\necho "1755, 1980, 2619, 41, [N/A], 700.00"\n'
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: Properties())
    return tmp_path


def test_clocks_are_read_for_the_right_device(nvidia_smi: Path) -> None:
    assert timing.clocks("cuda") == {
        "sm_mhz": 1755.0,
        "sm_max_mhz": 1980.0,
        "memory_mhz": 2619.0,
        "celsius": 41.0,
        "watt_limit": 700.0,
    }
    called = (nvidia_smi / "called").read_text()
    assert called.startswith("--query-gpu=clocks.sm,clocks.max.sm,")
    assert "--id=GPU-1234" in called


def test_without_nvidia_smi_there_are_no_clocks(nvidia_smi: Path) -> None:
    (nvidia_smi / "nvidia-smi").unlink()
    assert timing.clocks("cuda") == {}


# ------------------------------------------------------------------------------------- on a GPU


class TestOnGpu:
    pytestmark = needs_gpu

    def test_graphs_and_events_agree_on_what_lasts_long(self) -> None:
        sets = timing.rotating(lambda: (torch.randn(1 << 25, device="cuda"),), "cuda")
        candidates = {"negate": torch.neg}
        graph = timing.measure(candidates, sets, device="cuda", method="graph")["negate"]
        events = timing.measure(candidates, sets, device="cuda", method="events")["negate"]
        assert (graph.method, events.method) == ("graph", "events")
        assert graph.median_s == pytest.approx(events.median_s, rel=0.1)

    def test_what_is_short_is_replayed_and_needs_no_launching(self) -> None:
        def chain(values: torch.Tensor) -> torch.Tensor:
            for _ in range(10):
                values = values + 1
            return values

        sets = timing.rotating(lambda: (torch.randn(64, device="cuda"),), "cuda")
        auto = timing.measure({"chain": chain}, sets, device="cuda")["chain"]
        events = timing.measure({"chain": chain}, sets, device="cuda", method="events")["chain"]
        assert auto.method == "graph"
        assert auto.median_s < events.median_s

    def test_unwritten_outputs_are_found(self) -> None:
        sets = timing.rotating(lambda: (torch.randn(1 << 16, device="cuda"),), "cuda")
        with pytest.raises(RuntimeError, match=r"empty: a replay leaves .* outputs unwritten"):
            timing.measure({"empty": torch.empty_like}, sets, device="cuda", method="graph")

    def test_a_candidate_that_waits_for_the_device_is_timed_by_events(self) -> None:
        sets = timing.rotating(lambda: (torch.randn(1 << 16, device="cuda"),), "cuda")
        with pytest.warns(UserWarning, match="waits cannot be captured"):
            times = timing.measure(
                {"waits": lambda x: x.sum().item(), "runs": torch.neg}, sets, device="cuda"
            )
        assert {t.method for t in times.values()} == {"events"}

    def test_the_machine_has_a_driver_and_clocks(self) -> None:
        found = timing.machine("cuda")
        assert found["driver"]
        assert found["clocks"]["sm_mhz"] > 0
        assert found["l2_bytes"] > 1 << 20
