"""Tuning ahead, and showing what was chosen."""

from __future__ import annotations

import json

import pytest
import torch
from typer.testing import CliRunner

from fastgen import cli
from fastgen.ops import backend, route_timing, routing
from fastgen.ops.route_table import Route, table_of
from fastgen.training import routes


@pytest.fixture
def measured(monkeypatch, tmp_path):
    """A CPU on which "auto" goes through the router and finds two candidates for each call."""
    monkeypatch.setenv("FASTGEN_CACHE", str(tmp_path))
    monkeypatch.delenv("FASTGEN_ROUTES", raising=False)
    monkeypatch.setitem(backend._automatic, "cpu", frozenset({"torch", "cpp"}))
    monkeypatch.setitem(route_timing.CLOCKS, "cpu", lambda way, arguments: lambda: 1e-3)
    monkeypatch.setattr(routing, "CANDIDATES", {k: [*v] for k, v in routing.CANDIDATES.items()})
    for (operation, pass_), entries in list(routing.CANDIDATES.items()):
        plain = next(entry for entry in entries if entry.name == "plain PyTorch")
        routing.offer("the same again", ["cpp"], [operation], [pass_], plain.run)
    routing.forget()
    yield table_of(torch.device("cpu"))
    routing.forget()


@pytest.mark.parametrize("model", ["wgan", "vae"])
def test_tuning_measures_each_pass_of_each_layer_once(measured, model):
    options = {"image_shape": (3, 16, 16), "batch_size": 4, "width": 8, "device": "cpu"}
    added = routes.tune(model, **options)
    assert added == len(measured.routes) > 10
    passes = {tuple(call.split()[:2]) for call in measured.routes}
    expected = {
        ("conv2d_bias_leaky_relu", "forward"),
        ("conv2d_bias_leaky_relu", "weight_gradient"),
        ("conv_transpose2d_bias_leaky_relu", "forward"),
        ("conv_transpose2d_bias_leaky_relu", "input_gradient"),
        ("conv2d_bias_leaky_relu", "masked_forward" if model == "wgan" else "mask_sum"),
    }
    assert expected <= passes
    routing.forget()
    assert routes.tune(model, **options) == 0


def test_what_is_measured_is_counted_where_a_device_is_named_without_its_number(
    measured, monkeypatch
):
    """On a GPU "cuda" is another name of "cuda:0", and a name has its table."""
    monkeypatch.setattr(routes, "resolve_device", lambda device: torch.device("cpu"))
    added = routes.tune("vae", image_shape=(3, 16, 16), batch_size=4, width=8, device="cuda")
    assert added == len(measured.routes) > 10


def test_a_row_tells_choice_time_and_margin():
    route = Route("epilogue", {"epilogue": 2e-6, "plain PyTorch": 3e-6})
    assert routes.row("a call", route) == ("epilogue", "2.0 us", "1.50x", "a call")


def test_the_command_shows_the_rule_and_the_tables():
    shown = CliRunner().invoke(cli.app, ["info", "--routes"])
    assert shown.exit_code == 0
    assert "cpu: the written rule" in shown.output
    assert "plain PyTorch" in shown.output
    facts = json.loads(CliRunner().invoke(cli.app, ["info", "--routes", "--json"]).output)
    assert "plain PyTorch" in facts["cpu"]["rule"]["conv2d_bias_leaky_relu forward"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what it does without a GPU")
def test_tuning_without_a_gpu_says_that_there_is_nothing_to_measure():
    result = CliRunner().invoke(cli.app, ["bench", "--tune"])
    assert result.exit_code == 0
    assert "no GPU is visible" in result.output


@pytest.mark.parametrize(("device", "where"), [("auto", "cuda"), ("cuda:1", "cuda:1")])
def test_tuning_goes_to_the_device_that_is_named(monkeypatch, device, where):
    asked = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(routes, "tune", lambda model, **options: asked.append(options["device"]))
    tune = ["bench", "--tune", "--model", "vae", "--device"]
    assert CliRunner().invoke(cli.app, [*tune, device]).exit_code == 0
    assert asked == [where]
    result = CliRunner().invoke(cli.app, [*tune, "cpu"])
    assert "on a CPU the written rule decides" in result.output
    assert len(asked) == 1
