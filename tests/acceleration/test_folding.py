"""A batch normalization by fixed numbers, folded into the convolution before it."""

from __future__ import annotations

import copy
import functools

import pytest
import torch
from architectures import ARCHITECTURES, BasicBlock, dcgan_generator
from comparing import assert_same_model
from torch import nn

import fastgen
from fastgen.acceleration.folding import folded

accelerate = functools.partial(fastgen.accelerate, verbose=False, fold_batchnorm=True)

LAYERS = [
    nn.Conv2d(4, 6, 3),
    nn.Conv2d(4, 6, 3, groups=2, bias=False),
    nn.ConvTranspose2d(4, 6, 4, 2, 1, bias=False),
    nn.ConvTranspose2d(4, 6, 3, groups=2),
]
NORMS = [nn.BatchNorm2d(6), nn.BatchNorm2d(6, affine=False)]


def lived_in(model: nn.Module) -> nn.Module:
    """Statistics and affine numbers as after some training, in float64 and evaluation mode."""
    model.double().eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.3, 3)
            if module.affine:
                nn.init.normal_(module.weight, 1, 0.5)
                nn.init.normal_(module.bias)
    return model


def images(*shape: int) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float64)


def runs_no_normalization(model: nn.Module, x: torch.Tensor) -> bool:
    with torch.profiler.profile() as profile, torch.no_grad():
        model(x)
    return not any("batch_norm" in event.key for event in profile.key_averages())


@pytest.mark.parametrize("behind", [nn.ReLU(True), nn.LeakyReLU(0.2), nn.Tanh(), nn.Softplus()])
@pytest.mark.parametrize("norm", NORMS, ids=str)
@pytest.mark.parametrize("layer", LAYERS, ids=str)
def test_folded_layers_compute_the_same_to_the_second_order(layer, norm, behind):
    original = lived_in(copy.deepcopy(nn.Sequential(layer, norm, behind, nn.Conv2d(6, 2, 1))))
    model = copy.deepcopy(original)
    report = accelerate(model)
    assert ("1", "BatchNorm2d", "folded into 0", "") in report.replaced
    x = images(2, 4, 7, 7)
    assert_same_model(model, original, x)
    assert runs_no_normalization(model, x)
    # What is folded is not there in training, where statistics are the batch's and change.
    assert_same_model(model.train(), original.train(), x)
    assert_same_model(model.eval(), original.eval(), x)


@pytest.mark.parametrize("name", ["DCGAN discriminator", "DCGAN generator", "U-Net"])
def test_whole_networks_fold_and_are_restored_bit_for_bit(name):
    make, shape = ARCHITECTURES[name]
    original = lived_in(make())
    model = copy.deepcopy(original)
    accelerate(model)
    assert_same_model(model, original, torch.randn(shape, dtype=torch.float64))
    for key, value in model.state_dict().items():
        assert torch.equal(value, original.state_dict()[key]), key
    fastgen.restore(model)
    x = torch.randn(shape, dtype=torch.float64)
    assert torch.equal(model(x.clone()), original(x.clone()))


def test_a_forward_of_the_users_own_folds_too():
    original = lived_in(BasicBlock(4))
    model = copy.deepcopy(original)
    report = accelerate(model)
    assert [row.became for row in report.replaced if row.kind == "BatchNorm2d"] == [
        "folded into conv1",
        "folded into conv2",
    ]
    x = images(2, 4, 6, 6)
    assert_same_model(model, original, x)
    assert runs_no_normalization(model, x)
    assert_same_model(model.train(), original.train(), x)


class UsedTwice(nn.Module):
    """The normalization's result goes two ways."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x):
        h = self.norm(self.conv(x))
        return h * nn.functional.leaky_relu(h, 0.2)


def test_a_normalization_folds_although_its_result_is_used_twice():
    original = lived_in(UsedTwice())
    model = copy.deepcopy(original)
    report = accelerate(model)
    assert ("norm", "BatchNorm2d", "folded into conv", "") in report.replaced
    x = images(2, 3, 6, 6)
    assert_same_model(model, original, x)
    assert runs_no_normalization(model, x)


def test_a_normalization_in_float32_folds_into_a_layer_in_bfloat16():
    original = lived_in(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())).float()
    original[0].bfloat16()
    model = copy.deepcopy(original)
    accelerate(model)
    x = torch.randn(2, 3, 6, 6).bfloat16()
    torch.testing.assert_close(model(x), original(x), rtol=0.05, atol=0.05)


def test_in_training_mode_it_is_left_with_the_reason():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
    (row,) = [row for row in accelerate(model).left if row.kind == "BatchNorm2d"]
    assert row.why == "it is in training mode: call model.eval() first"


def test_without_being_asked_nothing_is_folded():
    model = lived_in(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()))
    accelerate(model)
    fastgen.accelerate(model, verbose=False)
    assert not runs_no_normalization(model, images(1, 3, 5, 5))


@pytest.mark.parametrize("norm", [
    nn.BatchNorm2d(4, track_running_stats=False), nn.InstanceNorm2d(4), nn.GroupNorm(2, 4),
], ids=str)  # fmt: skip
def test_what_depends_on_the_batch_is_not_folded(norm):
    original = nn.Sequential(nn.Conv2d(3, 4, 3), norm, nn.ReLU()).double().eval()
    model = copy.deepcopy(original)
    accelerate(model)
    assert_same_model(model, original, images(3, 3, 6, 6))


def test_a_hook_on_the_normalization_sees_it():
    model = lived_in(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()))
    seen: list[torch.Tensor] = []
    accelerate(model)
    model[1].register_forward_hook(lambda m, i, output: seen.append(output.min()))
    model(images(2, 3, 6, 6))
    assert seen[0] < 0


@torch.no_grad()
def test_folded_weights_are_kept_until_something_changes():
    model = lived_in(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)))
    accelerate(model)
    conv, norm = model
    first = folded(conv, norm)
    assert folded(conv, norm).weight is first.weight
    changes = [
        lambda: conv.weight.mul_(2),
        lambda: norm.weight.add_(1),
        lambda: norm.running_var.mul_(3),
        lambda: conv.load_state_dict({k: v + 1 for k, v in conv.state_dict().items()}),
        lambda: setattr(norm, "bias", nn.Parameter(torch.ones(4, dtype=torch.float64))),
        lambda: setattr(conv.weight, "data", conv.weight.data.clone() * 2),
        lambda: (model.train(), conv.weight.data.mul_(2), model.eval()),
    ]
    plain = copy.deepcopy(model)
    x = images(2, 3, 6, 6)
    for change in changes:
        model(x)
        change()
        plain.load_state_dict(model.state_dict())
        fastgen.restore(plain)
        torch.testing.assert_close(model(x), plain.eval()(x), rtol=1e-12, atol=1e-12)


def test_sampling_under_inference_mode_works_before_and_after_training():
    original = lived_in(dcgan_generator())
    model = copy.deepcopy(original)
    accelerate(model)
    z = images(2, 6, 1, 1)
    with torch.inference_mode():
        torch.testing.assert_close(model(z), original(z))
    assert_same_model(model, original, z)


def test_folded_weights_keep_the_layout_of_the_weights():
    model = lived_in(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))).float()
    accelerate(model)
    for weight in (folded(*model).weight, torch.no_grad()(folded)(*model).weight):
        assert weight.is_contiguous(memory_format=torch.channels_last)
