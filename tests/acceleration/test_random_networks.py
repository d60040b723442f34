"""Networks put together at random compute the same, accelerated."""

from __future__ import annotations

import copy
import random

import pytest
import torch
import torch.nn.functional as F
from comparing import assert_same_model, derivatives
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm, weight_norm

import fastgen

WIDTH = 4


class Residual(nn.Module):
    """x + f(x), or x + f(act(x)); the activation of the user's kind."""

    def __init__(self, inner: nn.Module, activate) -> None:
        super().__init__()
        self.inner, self.activate = inner, activate

    def forward(self, x: Tensor) -> Tensor:
        return x + self.inner(self.activate(x))


class Chain(nn.Module):
    """A straight forward of named layers and functional activations."""

    def __init__(self, first: nn.Module, second: nn.Module, act: nn.Module, slope: float) -> None:
        super().__init__()
        self.first, self.second, self.act, self.slope = first, second, act, slope

    def forward(self, x: Tensor) -> Tensor:
        h = self.act(self.first(x))
        h = F.leaky_relu(self.second(h), self.slope)
        return h * 2 + x


def activation(pick: random.Random) -> nn.Module:
    slope = pick.choice([0.0, 0.01, 0.2, 1.0])
    inplace = pick.random() < 0.5
    kinds = [nn.ReLU(inplace), nn.LeakyReLU(slope, inplace), nn.Tanh(), nn.ELU(), nn.PReLU()]
    return pick.choice([*kinds[:2], *kinds])


def convolution(pick: random.Random) -> nn.Module:
    groups, bias = pick.choice([1, 2]), pick.random() < 0.5
    layer: nn.Module = pick.choice(
        [
            nn.Conv2d(WIDTH, WIDTH, 3, padding=1, groups=groups, bias=bias),
            nn.Conv2d(WIDTH, WIDTH, 3, padding=1, padding_mode="circular"),
            nn.Conv2d(WIDTH, WIDTH, 1, groups=groups, bias=bias),
            nn.ConvTranspose2d(WIDTH, WIDTH, 3, padding=1, groups=groups, bias=bias),
        ]
    )
    change = pick.choice([None, None, None, spectral_norm, weight_norm])
    return layer if change is None else change(layer)


def norm(pick: random.Random) -> nn.Module:
    return pick.choice([nn.BatchNorm2d, nn.InstanceNorm2d, nn.Identity])(WIDTH)


def network(pick: random.Random, depth: int = 2) -> nn.Sequential:
    layers: list[nn.Module] = []
    shared = convolution(pick)
    for _ in range(pick.randint(2, 4)):
        kind = pick.choice(["plain", "plain", "shared", "block", "chain"] if depth else ["plain"])
        if kind == "plain":
            layers += [convolution(pick), norm(pick), activation(pick)]
        elif kind == "shared":
            layers += [shared, activation(pick)]
        elif kind == "block":
            function = pick.choice([F.relu, torch.relu, nn.Identity(), nn.ReLU(True), F.relu_])
            layers.append(Residual(network(pick, depth - 1), function))
        else:
            layers.append(
                Chain(convolution(pick), convolution(pick), activation(pick), pick.random())
            )
    return nn.Sequential(*layers)


@pytest.mark.parametrize("seed", range(60))
def test_a_random_network_computes_the_same(seed):
    pick = random.Random(seed)
    original = network(pick).double().train(pick.random() < 0.5)
    model = copy.deepcopy(original)
    x = torch.randn(2, WIDTH, 5, 6, dtype=torch.float64)
    if overwrites_too_much(original, x):
        original = without_overwriting(original)
        model = copy.deepcopy(original)
    fold, channels_last = pick.random() < 0.5, pick.random() < 0.5
    fastgen.accelerate(model, channels_last, fold_batchnorm=fold, verbose=False)
    assert_same_model(model, original, x)
    fastgen.restore(model)
    original.eval(), model.eval()
    torch.testing.assert_close(model(x.clone()), original(x.clone()), rtol=1e-9, atol=1e-11)


def overwrites_too_much(model: nn.Module, x: Tensor) -> bool:
    """Whether an activation in place stands where PyTorch allows none."""
    try:
        derivatives(copy.deepcopy(model), x)
    except RuntimeError as error:
        return "modified by an inplace operation" in str(error)
    return False


def without_overwriting(model: nn.Module) -> nn.Module:
    """The same network with every activation out of place."""
    for module in model.modules():
        if hasattr(module, "inplace"):
            module.inplace = False
        if getattr(module, "activate", None) is F.relu_:
            module.activate = F.relu
    return model
