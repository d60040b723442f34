"""Routing with invented candidates and an invented clock: what is chosen, kept and forgotten."""

from __future__ import annotations

import json
import multiprocessing

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from fastgen.ops import backend, route_timing, routing
from fastgen.ops.backend import BackendUnavailable
from fastgen.ops.geometry import Geometry
from fastgen.ops.route_table import Route, RouteTable, environment_of, folder, table_of

OPERATION = "invented"
X = torch.randn(2, 3, 4, 4)
OUT_OF_MEMORY = -2.0


class Bench:
    """Candidates with known speeds, and the calls that reached them."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.calls: list[str] = []
        self.timed: list[str] = []

    def offer(self, name, seconds, *, backends=("torch",), **conditions):
        self.seconds[name] = seconds

        def run(input):
            self.calls.append(name)
            return input + 1

        run.candidate = name
        routing.offer(name, backends, [OPERATION], ["forward"], run, **conditions)

    def clock(self, way, arguments):
        name = way.candidate
        self.timed.append(name)
        if self.seconds[name] == OUT_OF_MEMORY:
            raise torch.OutOfMemoryError
        if self.seconds[name] < 0:
            raise RuntimeError("no algorithm\nmore about it")
        return lambda: self.seconds[name]


@pytest.fixture
def bench(monkeypatch, tmp_path):
    invented = Bench()
    monkeypatch.setattr(routing, "CANDIDATES", {})
    monkeypatch.setitem(route_timing.CLOCKS, "cpu", invented.clock)
    monkeypatch.setenv("FASTGEN_CACHE", str(tmp_path))
    monkeypatch.delenv("FASTGEN_ROUTES", raising=False)
    table_of.cache_clear()
    yield invented
    table_of.cache_clear()


def router(*backends):
    return routing.Router(OPERATION, backends or None)


def chosen(bench, route=None, input=X):
    bench.calls.clear()
    result = (route or router()).run("forward", input)
    assert torch.equal(result, input + 1)
    return bench.calls[-1]


def test_the_fastest_runs_and_is_measured_once_per_shape_dtype_and_layout(bench):
    bench.offer("slow", 2e-3)
    bench.offer("fast", 1e-3)
    route = router()
    assert chosen(bench, route) == "fast"
    assert sorted(bench.timed) == ["fast", "slow"]
    assert chosen(bench, route) == "fast"
    assert len(bench.timed) == 2
    for other in (X[:1], X.double(), X.contiguous(memory_format=torch.channels_last)):
        before = len(bench.timed)
        assert chosen(bench, route, other) == "fast"
        assert len(bench.timed) == before + 2


def test_a_tensor_without_memory_decides_nothing_for_others(bench):
    bench.offer("slow", 2e-3)
    bench.offer("fast", 1e-3)
    route, mode = router(), FakeTensorMode()
    with mode:
        route.run("forward", mode.from_tensor(X))
    assert bench.calls == ["slow"]
    assert chosen(bench, route) == "fast"


def test_the_table_serves_the_next_process(bench, tmp_path):
    bench.offer("slow", 2e-3)
    bench.offer("fast", 1e-3)
    chosen(bench)
    table_of.cache_clear()
    bench.timed.clear()
    assert chosen(bench, router()) == "fast"
    assert bench.timed == []
    (path,) = (tmp_path / "routes").glob("*.json")
    content = json.loads(path.read_text())
    assert content["environment"] == environment_of(X.device)
    ((call, entry),) = content["routes"].items()
    assert call == f"{OPERATION} forward float32[2x3x4x4 contiguous] " + (
        "tf32" if routing.allow_tf32() else "ieee"
    )
    assert entry == {"choice": "fast", "seconds": {"slow": 2e-3, "fast": 1e-3}}


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: "not JSON",
        lambda content: "[]",
        lambda content: json.dumps({**content, "format": 0}),
        lambda content: json.dumps({**content, "environment": {"torch": "1.0"}}),
        lambda content: json.dumps({**content, "routes": {"x": {"choice": "fast"}}}),
        lambda content: json.dumps(content).replace('"choice": "fast"', '"choice": "gone"'),
        lambda content: json.dumps(content)[:-20],
    ],
)
def test_a_table_that_is_damaged_or_stale_is_measured_again(bench, tmp_path, damage):
    bench.offer("slow", 2e-3)
    bench.offer("fast", 1e-3)
    chosen(bench)
    (path,) = (tmp_path / "routes").glob("*.json")
    whole = path.read_text()
    path.write_text(damage(json.loads(whole)))
    table_of.cache_clear()
    bench.timed.clear()
    assert chosen(bench, router()) == "fast"
    assert len(bench.timed) == 2
    assert json.loads(path.read_text()) == json.loads(whole)


def test_a_candidate_that_is_new_is_measured_against_the_others(bench):
    bench.offer("slow", 2e-3)
    bench.offer("fast", 1e-3)
    chosen(bench)
    bench.offer("fastest", 5e-4)
    assert chosen(bench, router()) == "fastest"


def test_candidates_that_are_gone_leave_the_choice_to_the_others_and_keep_their_seconds(
    bench, tmp_path
):
    for name, seconds in (("slow", 2e-3), ("fast", 1e-3), ("middle", 1.5e-3)):
        bench.offer(name, seconds)
    assert chosen(bench) == "fast"
    routing.CANDIDATES.clear()
    bench.timed.clear()
    bench.offer("slow", 2e-3)
    bench.offer("middle", 1.5e-3)
    assert chosen(bench, router()) == "middle"
    assert bench.timed == []
    bench.offer("new", 1.2e-3)
    assert chosen(bench, router()) == "new"
    (path,) = (tmp_path / "routes").glob("*.json")
    (entry,) = json.loads(path.read_text())["routes"].values()
    assert entry["seconds"] == {"slow": 2e-3, "fast": 1e-3, "middle": 1.5e-3, "new": 1.2e-3}


def test_a_measured_choice_is_not_used_where_a_program_must_repeat_itself(bench):
    bench.offer("rule", 2e-3)
    bench.offer("fast", 1e-3)
    route = router()
    assert chosen(bench, route) == "fast"
    torch.use_deterministic_algorithms(True)
    try:
        assert chosen(bench, route) == "rule"
    finally:
        torch.use_deterministic_algorithms(False)
    assert chosen(bench, route) == "fast"


def test_a_table_that_cannot_be_written_costs_nothing_but_the_measurement(bench, monkeypatch):
    monkeypatch.setenv("FASTGEN_CACHE", "/proc/nowhere")
    bench.offer("slow", 2e-3)
    bench.offer("fast", 1e-3)
    assert chosen(bench) == "fast"


def test_the_rule_decides_where_nothing_is_measured(bench, monkeypatch):
    bench.offer("other", 1e-3, expected=lambda input: False)
    bench.offer("rule", 2e-3)
    bench.offer("later", 1e-3)
    monkeypatch.setenv("FASTGEN_ROUTES", "none")
    with pytest.raises(ValueError, match="FASTGEN_ROUTES must be one of 'measure', 'off'"):
        chosen(bench)
    monkeypatch.setenv("FASTGEN_ROUTES", "off")
    assert chosen(bench) == "rule"
    monkeypatch.delenv("FASTGEN_ROUTES")
    torch.use_deterministic_algorithms(True)
    try:
        assert chosen(bench) == "rule"
    finally:
        torch.use_deterministic_algorithms(False)
    monkeypatch.delitem(route_timing.CLOCKS, "cpu")
    assert chosen(bench) == "rule"
    assert bench.timed == []


def test_nothing_is_measured_while_a_graph_is_captured_and_the_rule_does_not_stick(
    bench, monkeypatch
):
    bench.offer("rule", 2e-3)
    bench.offer("fast", 1e-3)
    route = router()
    monkeypatch.setattr(route_timing, "cannot_measure_now", lambda device: True)
    assert chosen(bench, route) == "rule"
    assert bench.timed == []
    monkeypatch.setattr(route_timing, "cannot_measure_now", lambda device: False)
    assert chosen(bench, route) == "fast"


def test_what_is_measured_before_a_capture_is_used_inside(bench, monkeypatch):
    bench.offer("rule", 2e-3)
    bench.offer("fast", 1e-3)
    chosen(bench)
    monkeypatch.setattr(route_timing, "cannot_measure_now", lambda device: True)
    assert chosen(bench, router()) == "fast"


def test_the_rules_choice_stays_within_the_noise(bench):
    bench.offer("rule", 1.01e-3)
    bench.offer("hardly faster", 1e-3)
    assert chosen(bench) == "rule"


def test_a_candidate_that_fails_is_passed_over_with_a_warning(bench):
    bench.offer("broken", -1)
    bench.offer("sound", 1e-3)
    with pytest.warns(UserWarning, match="broken cannot run and is passed over: no algorithm$"):
        assert chosen(bench) == "sound"


def test_when_every_candidate_fails_the_first_failure_is_raised(bench):
    bench.offer("broken", -1)
    bench.offer("broken too", -1)
    with pytest.raises(RuntimeError, match="no algorithm"):
        chosen(bench)


def test_a_lack_of_memory_leaves_the_rule_and_nothing_on_disk(bench, tmp_path):
    bench.offer("rule", 2e-3)
    bench.offer("greedy", OUT_OF_MEMORY)
    route = router()
    assert chosen(bench, route) == "rule"
    assert chosen(bench, route) == "rule"
    assert bench.timed == ["rule", "greedy"]
    assert not list((tmp_path / "routes").glob("*.json"))


def test_a_backend_named_uses_its_own_candidates_only(bench):
    bench.offer("plain", 1e-3)
    bench.offer("compiled", 2e-3, backends=("cuda",))
    bench.offer("compiled slowly", 3e-3, backends=("cuda",))
    assert chosen(bench, router("cuda")) == "compiled"
    assert chosen(bench, router()) == "plain"


def test_candidates_stand_in_the_order_of_the_backends(bench):
    bench.offer("plain", 1e-3)
    bench.offer("by triton", 1e-3, backends=("triton",))
    bench.offer("by cuda", 1e-3, backends=("cuda",))
    bench.offer("by both", 1e-3, backends=("cuda", "torch"))
    names = [c.name for c in routing.CANDIDATES[OPERATION, "forward"]]
    assert names == ["by cuda", "by both", "by triton", "plain"]


def test_a_call_that_no_candidate_fits_is_refused_with_its_description(bench):
    bench.offer("whole numbers", 1e-3, fits=lambda input: False)
    with pytest.raises(
        BackendUnavailable, match=r"computes invented forward float32\[2x3x4x4 .*backend='torch'"
    ):
        chosen(bench)


def test_the_description_holds_all_that_changes_a_time(monkeypatch):
    geometry = Geometry((2, 2), (1, 1), (1, 1), 1, True, (0, 1))
    call = (X, X, None, 0.2, geometry)
    plain = routing.describe("conv", "forward", call)
    assert "stride=2x2 padding=1x1 dilation=1x1 groups=1 output_padding=0x1" in plain
    last = X.contiguous(memory_format=torch.channels_last)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", not torch.backends.cudnn.benchmark)
    others = [
        plain,
        routing.describe("conv", "forward", call),
        routing.describe("conv", "backward", call),
        routing.describe("conv", "forward", (last, *call[1:])),
        routing.describe("conv", "forward", (X.half(), *call[1:])),
        routing.describe("conv", "forward", (X[:, :, ::2], *call[1:])),
        routing.describe("conv", "forward", (*call[:3], "tanh", geometry)),
    ]
    assert len(set(others)) == len(others)


def test_margins_compare_the_choice_with_the_best_other():
    assert Route("a", {"a": 1.0, "b": 3.0, "c": 1.5}).margin() == 1.5
    assert Route("a", {"a": 1.0}).margin() == 1.0


def _write(path, environment, first):
    table = RouteTable(path, environment)
    for number in range(first, first + 20):
        table.put(f"call {number}", Route("a", {"a": 1.0 + number}))


def test_processes_that_write_at_once_lose_nothing(tmp_path):
    path, environment = tmp_path / "table.json", {"torch": "any"}
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_write, args=(path, environment, 20 * i)) for i in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    routes = RouteTable(path, environment).routes
    assert {f"call {number}" for number in range(80)} == set(routes)
    assert {p.name for p in tmp_path.iterdir()} == {"table.json", ".lock"}


def test_tables_lie_in_the_users_cache_folder(monkeypatch, tmp_path):
    monkeypatch.delenv("FASTGEN_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert folder() == tmp_path / "fastgen" / "routes"


def test_without_a_home_folder_nothing_is_kept(monkeypatch):
    for name in ("FASTGEN_CACHE", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pwd.getpwuid", {}.__getitem__)  # what an unknown user meets
    table = RouteTable(folder() / "table.json", {"device": "a"})
    table.put("a call", Route("one", {"one": 1.0}))
    assert list(table.routes) == ["a call"]
    assert RouteTable(table.path, {"device": "a"}).routes == {}


def test_every_pass_of_every_operation_has_a_plain_candidate():
    for operation, passes in routing.PASSES.items():
        for pass_ in passes:
            names = [c.name for c in routing.CANDIDATES[operation, pass_]]
            assert "plain PyTorch" in names
        for name in ("auto", "cuda", "triton"):
            assert isinstance(backend.KERNELS[operation, name], routing.Router)


def test_plain_candidates_alone_compute_what_the_operation_promises():
    """The router itself, on tensors that only PyTorch's candidates fit."""
    weight = torch.randn(4, 3, 3, 3)
    geometry = Geometry((1, 1), (1, 1), (1, 1), 1, False, (0, 0))
    route = routing.ConvolutionRouter("conv2d_bias_leaky_relu")
    output = route.forward(X, weight, None, 0.2, geometry)
    exact = torch.nn.functional.leaky_relu(torch.conv2d(X, weight, padding=1), 0.2)
    torch.testing.assert_close(output, exact)
    through: Tensor = route.mask(output, None, output, 0.5)
    torch.testing.assert_close(through, torch.where(output > 0, output, output * 0.5))
