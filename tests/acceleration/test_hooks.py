"""Hooks and parametrizations go on as they did."""

from __future__ import annotations

import copy

import pytest
import torch
from comparing import (
    accelerate,
    accelerated,
    assert_same_model,
    images,
    rows,
)
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm, weight_norm

import fastgen

# --- hooks ---


@pytest.mark.parametrize("later", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("place", [0, 1])
def test_forward_hooks_see_what_they_saw_before(place, later):
    original = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 1)).double()
    model = copy.deepcopy(original)
    seen: dict[str, list[torch.Tensor]] = {"ours": [], "theirs": []}

    def watch(network, name):
        network[place].register_forward_hook(
            lambda module, inputs, output: seen[name].extend([inputs[0].clone(), output.clone()])
        )

    watch(original, "theirs")
    if not later:
        watch(model, "ours")
    said = rows(accelerate(model))
    if later:
        watch(model, "ours")
    else:
        assert "hook" in said["0"][1]
        assert said["0"][0] == "fastgen's"
    assert_same_model(model, original, images(2, 3, 6, 6))
    for ours, theirs in zip(seen["ours"], seen["theirs"], strict=True):
        torch.testing.assert_close(ours, theirs)


def test_backward_hooks_see_the_gradient_before_the_activation():
    original = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()).double()
    model = copy.deepcopy(original)
    seen: list[torch.Tensor] = []
    for network in (model, original):
        network[0].register_full_backward_hook(lambda m, gi, go: seen.append(go[0].clone()))
    accelerate(model)
    x = images(2, 3, 6, 6).requires_grad_()
    for network in (model, original):
        network(x).square().sum().backward()
    torch.testing.assert_close(seen[0], seen[1])


def test_a_global_hook_sees_every_module():
    model, _, _ = accelerated(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()))
    seen: list[str] = []
    handle = nn.modules.module.register_module_forward_hook(
        lambda module, inputs, output: seen.append(type(module).__name__)
    )
    try:
        model(images(1, 3, 5, 5))
    finally:
        handle.remove()
    assert seen == ["Conv2d", "ReLU", "Sequential"]


def test_a_pre_hook_may_change_the_input_of_a_fused_layer():
    original = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()).double()
    original[0].register_forward_pre_hook(lambda module, inputs: (2 * inputs[0],))
    model = copy.deepcopy(original)
    assert rows(accelerate(model))["0"][0] == "fastgen's, with ReLU"
    assert_same_model(model, original, images(2, 3, 6, 6))


def test_a_forward_put_on_a_layer_later_is_called_as_it_is():
    model, _, _ = accelerated(nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU(), nn.ReLU()))
    model[0].forward = lambda x: x - 1
    model[1].forward = lambda x: x * 3
    x = images(2, 3, 6, 6)
    assert torch.equal(model(x), ((x - 1) * 3).relu())


def test_tensor_hooks_and_attributes_stay():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
    calls: list[int] = []
    model[0].weight.register_hook(lambda grad: calls.append(1))
    model[0].nickname = "first"
    accelerate(model)
    model(torch.randn(1, 3, 5, 5)).sum().backward()
    assert calls == [1]
    assert model[0].nickname == "first"


# --- parametrizations ---


@pytest.mark.parametrize("parametrization", [spectral_norm, weight_norm])
def test_parametrized_layers_are_replaced_with_their_parametrization(parametrization):
    model, original, said = accelerated(
        nn.Sequential(parametrization(nn.Conv2d(3, 4, 3)), nn.ReLU(), nn.Conv2d(4, 1, 1))
    )
    assert said["0"][0] == "fastgen's, with ReLU"
    assert_same_model(model, original, images(2, 3, 6, 6))
    for network in (model, original):
        torch.nn.utils.parametrize.remove_parametrizations(network[0], "weight")
    assert_same_model(model, original, images(2, 3, 6, 6))
    fastgen.restore(model)
    assert type(model[0]) is nn.Conv2d
    assert_same_model(model, original, images(2, 3, 6, 6))


def test_parametrizations_added_later_stay_when_the_model_is_restored():
    model, original, _ = accelerated(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()))
    for network in (model, original):
        torch.manual_seed(3)
        spectral_norm(network[0])
    assert_same_model(model, original, images(2, 3, 6, 6))
    fastgen.restore(model)
    assert type(model[0]).__bases__ == (nn.Conv2d,)
    assert_same_model(model, original, images(2, 3, 6, 6))
