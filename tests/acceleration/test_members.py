"""Modules in more than one place, on their own, exchanged, copied, moved, restored."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from architectures import PreActivationBlock
from comparing import (
    accelerate,
    accelerated,
    assert_same_model,
    images,
)
from torch import nn

import fastgen
from fastgen.nn import ConvLeakyReLU2d

# --- shared modules, members used on their own ---


def test_a_layer_at_two_places_is_right_at_both():
    conv = nn.Conv2d(4, 4, 3, padding=1)
    model, original, _ = accelerated(
        nn.Sequential(conv, nn.ReLU(), conv, conv, nn.LeakyReLU(0.3, True), nn.Conv2d(4, 1, 1))
    )
    assert model[0] is model[2]
    assert_same_model(model, original, images(2, 4, 6, 6))


class Twice(nn.Module):
    """One convolution used with an activation and without; one activation used twice."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.last = nn.Conv2d(3, 2, 1)
        self.act = nn.ReLU()

    def forward(self, x):
        h = self.act(self.conv(x))
        return self.act(self.last(self.conv(h)))


class Skip(nn.Module):
    """What comes before the activation goes on beside it."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.last = nn.Conv2d(3, 2, 1)

    def forward(self, x):
        h = self.conv(x)
        return self.last(F.leaky_relu(h, 0.2)) + h[:, :2]


class Beside(nn.Module):
    """No activation at all behind the layer, but two other functions."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x):
        h = self.conv(x)
        return h.sin() + h.square()


class Lent(nn.Module):
    """Its convolution works for a part of it too, whose forward has two ways."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.part = Borrowing(self.conv)

    def forward(self, x):
        return self.part(F.leaky_relu(self.conv(x), 0.2))


class Borrowing(nn.Module):
    def __init__(self, conv):
        super().__init__()
        self.conv = conv

    def forward(self, x):
        return self.conv(x) if len(x) else x


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        (Twice, "it is used at several places"),
        (Skip, "its output before the activation is also used elsewhere"),
        (Beside, ""),
        (Lent, "it is used at several places"),
    ],
)
def test_a_layer_whose_output_is_used_otherwise_takes_nothing_in(kind, reason):
    model, original, said = accelerated(kind())
    assert said["conv"] == ("fastgen's", reason)
    assert_same_model(model, original, images(2, 3, 6, 6))


def test_shared_weights_stay_shared():
    model = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.ReLU(), nn.Conv2d(3, 3, 3, padding=1))
    model[2].weight = model[0].weight
    model, original, _ = accelerated(model)
    assert model[2].weight is model[0].weight
    assert_same_model(model, original, images(2, 3, 6, 6))
    fastgen.restore(model)
    assert model[2].weight is model[0].weight
    assert model[0].weight.is_contiguous()


def test_members_of_a_sequence_and_slices_of_it_return_what_they_did():
    model, original, _ = accelerated(
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU())
    )
    x = images(2, 3, 8, 8)
    for piece in (slice(0, 1), slice(0, 2), slice(0, 3), slice(1, 4), slice(2, 3)):
        ours, theirs = model[piece], original[piece]
        assert_same_model(ours, theirs, x if piece.start == 0 else images(2, 4, 6, 6))
    torch.testing.assert_close(model[0](x), original[0](x))


def test_modules_exchanged_later_are_called_as_they_are():
    model, original, _ = accelerated(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.ReLU()))
    for network in (model, original):
        network[1] = nn.Softplus()
    assert_same_model(model, original, images(2, 3, 6, 6))
    model[0], original[0] = nn.Conv2d(3, 4, 1).double(), nn.Conv2d(3, 4, 1).double()
    model[0].load_state_dict(original[0].state_dict())
    assert_same_model(model, original, images(2, 3, 6, 6))


# --- flags, copies, layouts ---


def test_flags_devices_and_visits_work_as_ever():
    model, original, _ = accelerated(PreActivationBlock(3, 4))
    model.conv1.weight.requires_grad_(False)
    assert not any(m.training for m in model.eval().modules())
    assert model.conv1.train().training
    visited: list[str] = []
    model.apply(lambda m: visited.append(type(m).__name__))
    assert visited == ["Conv2d", "Conv2d", "Conv2d", "PreActivationBlock"]
    assert isinstance(model, PreActivationBlock)
    assert model.to("meta")(torch.empty(2, 3, 6, 6, device="meta", dtype=torch.float64)).shape == (
        2, 4, 3, 3,
    )  # fmt: skip
    model = copy.deepcopy(original).float()
    accelerate(model)
    assert model.bfloat16()(torch.randn(2, 3, 6, 6).bfloat16()).dtype == torch.bfloat16


def test_frozen_weights_stay_frozen():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 1))
    model[0].requires_grad_(False)
    accelerate(model)
    assert [p.requires_grad for p in model.parameters()] == [False, False, True, True]
    model(torch.randn(2, 3, 6, 6)).sum().backward()
    assert [p.grad is None for p in model.parameters()] == [True, True, False, False]


def test_layouts_of_weights_and_gradients_move_together_and_back():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 2, 3))
    model[1].to(memory_format=torch.channels_last)
    model(torch.randn(2, 3, 6, 6)).sum().backward()
    strides = [(p.stride(), p.grad.stride()) for p in model.parameters()]
    accelerate(model)
    for layer in model:
        for tensor in (layer.weight, layer.weight.grad):
            assert tensor.is_contiguous(memory_format=torch.channels_last)
    assert model(torch.randn(2, 3, 6, 6)).is_contiguous(memory_format=torch.channels_last)
    fastgen.restore(model)
    assert [(p.stride(), p.grad.stride()) for p in model.parameters()] == strides


@pytest.mark.parametrize("channels_last", [True, False])
def test_random_numbers_of_a_map_are_those_of_the_original_in_the_same_layout(channels_last):
    original = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Dropout(0.5)).double()
    model = copy.deepcopy(original)
    accelerate(model, channels_last=channels_last)
    if channels_last:
        original.to(memory_format=torch.channels_last)
    x = images(2, 3, 8, 8)
    outputs = []
    for network in (model, original):
        torch.manual_seed(0)
        outputs.append(network(x))
    torch.testing.assert_close(*outputs)


OPTIMIZERS = {
    "adam fused": lambda p: torch.optim.Adam(p, lr=0.01, fused=True),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01),
    "sgd fused": lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9, fused=True),
}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("change", ["accelerate", "restore", "load"])
def test_what_an_optimizer_remembers_moves_along(optimizer, change):
    """A fused one goes by memory: what it keeps of a weight must lie as the weight does."""
    original = nn.Sequential(nn.Conv2d(3, 8, 3), nn.LeakyReLU(), nn.Conv2d(8, 4, 3)).double()
    model = copy.deepcopy(original)
    networks = {
        network: OPTIMIZERS[optimizer](network.parameters()) for network in (original, model)
    }
    x = images(4, 3, 9, 9)
    if change == "restore":
        accelerate(model)
    for step in range(6):
        if step == 3:
            if change == "restore":
                fastgen.restore(model)
            else:
                accelerate(model)
        if step == 3 and change == "load":
            state = copy.deepcopy(networks[model].state_dict())
            networks[model] = OPTIMIZERS[optimizer](model.parameters())
            networks[model].load_state_dict(state)
        for network, optimizing in networks.items():
            optimizing.zero_grad()
            network(x).square().mean().backward()
            optimizing.step()
    for ours, theirs in zip(model.parameters(), original.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs)
    weight = model[0].weight
    kept = next(iter(v for v in networks[model].state[weight].values() if v.dim() == 4))
    assert kept.stride() == weight.stride()


def test_a_restored_model_keeps_what_was_learned():
    model, original, _ = accelerated(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()))
    for network in (model, original):
        optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
        torch.manual_seed(1)
        network(images(2, 3, 6, 6)).square().sum().backward()
        optimizer.step()
    fastgen.restore(model)
    for ours, theirs in zip(model.parameters(), original.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs)
        assert not torch.equal(ours, torch.zeros_like(ours))


def test_restoring_what_was_not_accelerated_changes_nothing():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), ConvLeakyReLU2d(4, 4, 1))
    before = [(type(m), dict(vars(m))) for m in model.modules()]
    fastgen.restore(model)
    assert [(type(m), dict(vars(m))) for m in model.modules()] == before
