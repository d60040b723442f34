"""Thirteen real architectures compute the same, accelerated, to the second order."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from architectures import ARCHITECTURES, ResidualCritic, SpectralCritic, WassersteinCritic
from comparing import assert_same, assert_same_model, derivatives, tensors
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import fastgen
from fastgen.nn import ConvLeakyReLU2d, LinearLeakyReLU

FUSED = {
    "DCGAN discriminator": 1,
    "DCGAN generator": 1,
    "WGAN-GP critic": 2,
    "WGAN-GP residual critic": 2,
    "SNGAN critic": 4,
    "VAE": 5,
    "PatchGAN": 1,
    "U-Net": 2,
    "StyleGAN2 discriminator": 4,
    "VGG features": 5,
    "ResNet classifier": 0,
    "CycleGAN generator": 2,
    "progressive generator": 0,
}
"""How many layers take in the activation behind them where gradients are recorded."""

every_architecture = pytest.mark.parametrize("name", ARCHITECTURES)


def pair(name: str) -> tuple[nn.Module, nn.Module, torch.Tensor]:
    """(a model accelerated, the same untouched, an input), in float64."""
    make, shape = ARCHITECTURES[name]
    original = make().double()
    model = copy.deepcopy(original)
    fastgen.accelerate(model, verbose=False)
    return model, original, torch.randn(shape, dtype=torch.float64)


@every_architecture
@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("channels_last", [True, False])
def test_outputs_and_gradients_to_the_second_order_are_the_originals(name, training, channels_last):
    model, original, x = pair(name)
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    assert_same_model(model.train(training), original.train(training), x)


@every_architecture
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_a_recording_of_torch_jit_trace_is_the_originals(name):
    model, original, x = pair(name)
    recorded = torch.jit.trace(model.eval(), x, check_trace=False)
    for ours, expected in zip(tensors(recorded(x)), tensors(original.eval()(x)), strict=True):
        torch.testing.assert_close(ours, expected, check_stride=False)


@every_architecture
def test_contiguous_weights_stay_so_if_asked(name):
    make, shape = ARCHITECTURES[name]
    original = make().double()
    model = copy.deepcopy(original)
    fastgen.accelerate(model, channels_last=False, verbose=False)
    assert all(p.is_contiguous() for p in model.parameters())
    assert_same_model(model, original, torch.randn(shape, dtype=torch.float64))


@every_architecture
def test_the_report_says_how_many_layers_took_an_activation_in(name):
    report = fastgen.accelerate(ARCHITECTURES[name][0](), verbose=False)
    fused = [row for row in report.replaced if ", with " in row.became]
    assert len(fused) == FUSED[name]


def activations_in_graph(output: torch.Tensor) -> int:
    """How many nodes of a graph are activations and nothing else."""
    kinds = ("ReluBackward", "LeakyReluBackward", "TanhBackward")
    ours = ("BiasLeakyReLUBackward", "InPlaceBackward", "KeepsInputBackward")
    waiting, seen = [y.grad_fn for y in tensors(output)], set()
    while waiting:
        node = waiting.pop()
        if node is not None and node not in seen:
            seen.add(node)
            waiting += [following for following, _ in node.next_functions]
    return sum(type(node).__name__.startswith((*kinds, *ours)) for node in seen)


@every_architecture
def test_layers_really_take_in_what_the_report_says(name):
    model, original, x = pair(name)
    report = fastgen.accelerate(original, dry_run=True, verbose=False)
    # Behind a product, that of a Linear, it is a node of its own there too.
    fused = [row for row in report if ", with " in row.became and row.kind != "Linear"]
    left = activations_in_graph(model(x.clone()))
    assert activations_in_graph(original(x.clone())) - left == len(fused)


@every_architecture
def test_no_convolution_and_no_leaky_relu_of_these_is_left(name):
    report = fastgen.accelerate(ARCHITECTURES[name][0](), verbose=False)
    left = [row.kind for row in report.left]
    assert not {"Conv2d", "ConvTranspose2d", "ReLU", "LeakyReLU"} & set(left)


@every_architecture
def test_checkpoints_go_both_ways(name):
    model, original, _ = pair(name)
    theirs = original.state_dict()
    assert list(model.state_dict()) == list(theirs)
    for key, value in model.state_dict().items():
        assert torch.equal(value, theirs[key]), key
    other = ARCHITECTURES[name][0]().double()
    other.load_state_dict(model.state_dict(), strict=True)
    model.load_state_dict(other.state_dict(), strict=True)


@every_architecture
def test_parameters_names_and_places_stay(name):
    model = ARCHITECTURES[name][0]()
    modules, parameters = dict(model.named_modules()), dict(model.named_parameters())
    fastgen.accelerate(model, verbose=False)
    after = dict(model.named_modules())
    assert list(after) == list(modules)
    assert all(after[key] is module for key, module in modules.items())
    assert list(dict(model.named_parameters())) == list(parameters)
    assert all(p is parameters[key] for key, p in model.named_parameters())
    assert all(p.is_leaf for p in model.parameters())


@every_architecture
def test_restored_models_are_bit_equal_to_the_original(name):
    model, original, x = pair(name)
    report = fastgen.accelerate(original, dry_run=True, verbose=False)
    assert report.replaced
    fastgen.restore(model)
    for (key, ours), theirs in zip(model.named_modules(), original.modules(), strict=True):
        if not hasattr(theirs, "parametrizations"):
            assert type(ours) is type(theirs), key
        assert vars(ours).keys() == vars(theirs).keys(), key
    for ours, theirs in zip(model.parameters(), original.parameters(), strict=True):
        assert ours.stride() == theirs.stride()
    for ours, theirs in zip(tensors(model(x)), tensors(original(x)), strict=True):
        assert torch.equal(ours, theirs)


@every_architecture
def test_a_dry_run_changes_nothing_and_reports_the_same(name):
    model = ARCHITECTURES[name][0]()
    before = {key: (type(m), dict(vars(m))) for key, m in model.named_modules()}
    state = copy.deepcopy(model.state_dict())
    strides = [p.stride() for p in model.parameters()]
    random_state = torch.get_rng_state()
    dry = fastgen.accelerate(model, dry_run=True, verbose=False)
    assert {key: (type(m), dict(vars(m))) for key, m in model.named_modules()} == before
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert [p.stride() for p in model.parameters()] == strides
    assert torch.equal(torch.get_rng_state(), random_state)
    real = fastgen.accelerate(model, verbose=False)
    assert (dry.replaced, dry.left) == (real.replaced, real.left)
    again = fastgen.accelerate(model, verbose=False)
    assert (again.replaced, again.left) == (real.replaced, real.left)


@every_architecture
def test_copies_and_pickles_are_accelerated_and_restorable(name, tmp_path):
    model, original, x = pair(name)
    model.eval(), original.eval()
    copies = [copy.deepcopy(model)]
    if name != "SNGAN critic":  # PyTorch itself refuses to pickle parametrized modules
        file = io.BytesIO()
        torch.save(model, file)
        file.seek(0)
        copies.append(torch.load(file, weights_only=False))
    for copied in copies:
        assert not {id(m) for m in model.modules()} & {id(m) for m in copied.modules()}
        types = [type(m) for m in copied.modules() if not hasattr(m, "parametrizations")]
        assert types == [type(m) for m in model.modules() if not hasattr(m, "parametrizations")]
        assert_same_model(copied, original, x)
        fastgen.restore(copied)
        for ours, theirs in zip(tensors(copied(x)), tensors(original(x)), strict=True):
            assert torch.equal(ours, theirs)
        # The one it was copied from is as accelerated as before.
        assert_same_model(model, original, x)


@every_architecture
def test_training_goes_on_with_the_same_optimizer(name):
    """Two steps before, two accelerated, two restored: the weights are the original's."""
    make, shape = ARCHITECTURES[name]
    original = make().double()
    model = copy.deepcopy(original)
    optimizers = [torch.optim.Adam(m.parameters(), lr=1e-3) for m in (model, original)]
    for change in (lambda m: None, lambda m: fastgen.accelerate(m, verbose=False), fastgen.restore):
        change(model)
        for _ in range(2):
            x = torch.randn(shape, dtype=torch.float64)
            for network, optimizer in zip((model, original), optimizers, strict=True):
                optimizer.zero_grad()
                sum(y.square().mean() for y in tensors(network(x.clone()))).backward()
                optimizer.step()
    for ours, theirs in zip(model.parameters(), original.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-7)


class Convolutions(TorchDispatchMode):
    """Counts the convolutions that really run, whichever operator computes them."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.name()
        if "convolution_backward" in name:
            self.count += sum(args[-1][:2])
        elif "convolution" in name or (name.startswith("fastgen::") and "conv" in name):
            self.count += 1
        return func(*args, **(kwargs or {}))


def convolutions_of_a_penalty(model: nn.Module, x: torch.Tensor) -> int:
    x = x.detach().requires_grad_()
    with Convolutions() as counted:
        (g,) = torch.autograd.grad(model(x).sum(), x, create_graph=True)
        (g.flatten(1).norm(dim=1) - 1).square().mean().backward()
    return counted.count


def test_a_residual_critics_penalty_costs_four_convolutions_a_layer():
    """Functional activations, skips and average pooling push no zeros through the first forward."""
    # So many pictures that no 1x1 convolution is computed as a matrix product.
    critic, x = ResidualCritic(), torch.randn(80, 3, 16, 16)
    layers = sum(isinstance(module, nn.Conv2d) for module in critic.modules())
    eager = convolutions_of_a_penalty(critic, x)
    fastgen.accelerate(critic, verbose=False)
    assert convolutions_of_a_penalty(critic, x) == 4 * layers < eager


@pytest.mark.parametrize("pool", [nn.AvgPool2d(2), nn.AdaptiveAvgPool2d(4), nn.MaxPool2d(2)])
def test_pooling_and_activations_on_their_own_push_no_zeros_through_the_first_forward(pool):
    between = nn.Unflatten(1, (16, 1)), nn.Flatten(1, 2)  # so that nothing is taken in
    critic = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), *between, nn.LeakyReLU(0.2), pool,
        nn.Conv2d(16, 16, 3, padding=1), *between, nn.LeakyReLU(0.1), nn.Conv2d(16, 1, 4),
    )  # fmt: skip
    x = torch.randn(2, 3, 8, 8)
    eager = convolutions_of_a_penalty(critic, x)
    fastgen.accelerate(critic, verbose=False)
    assert convolutions_of_a_penalty(critic, x) == 4 * 3 - 1 < eager


def test_an_accelerated_critics_penalty_costs_the_convolutions_that_fastgens_own_costs():
    torch.manual_seed(0)
    critic = WassersteinCritic()
    x = torch.randn(2, 3, 32, 32)
    convolutions = copy.deepcopy(critic).main[::2]
    layers = [ConvLeakyReLU2d.from_torch(conv, nn.LeakyReLU(0.2)) for conv in convolutions]
    own = nn.Sequential(*layers, nn.Flatten(), LinearLeakyReLU(256, 1, negative_slope=1))
    eager = convolutions_of_a_penalty(critic, x)
    fastgen.accelerate(critic, verbose=False)
    accelerated = convolutions_of_a_penalty(critic, x)
    assert accelerated == convolutions_of_a_penalty(own, x) == 4 * 3
    assert eager > accelerated


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_other_dtypes_compute_what_the_original_computes(dtype):
    for name in ("WGAN-GP critic", "StyleGAN2 discriminator", "U-Net"):
        make, shape = ARCHITECTURES[name]
        truth = make().double()
        original = copy.deepcopy(truth).to(dtype)
        truth.load_state_dict(original.state_dict())
        model = copy.deepcopy(original)
        fastgen.accelerate(model, verbose=False)
        x = torch.randn(shape).to(dtype)
        exact, theirs, ours = truth(x.double()), original(x.clone()), model(x.clone())
        assert ours.dtype == dtype
        allowed = 2 * (theirs - exact).abs().max() + torch.finfo(dtype).eps * exact.abs().max()
        assert (ours - exact).abs().max() <= allowed


def test_autocast_works_as_in_the_original():
    model, original, x = pair("WGAN-GP residual critic")
    model, original, x = model.float(), original.float(), x.float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ours, theirs = model(x), original(x)
    assert ours.dtype == theirs.dtype
    torch.testing.assert_close(ours, theirs, rtol=0.05, atol=0.02)


def test_old_style_spectral_norm_keeps_working_and_is_accelerated():
    original = SpectralCritic(norm=torch.nn.utils.spectral_norm).double()
    model = SpectralCritic(norm=torch.nn.utils.spectral_norm).double()
    model.load_state_dict(original.state_dict())
    report = fastgen.accelerate(model, verbose=False)
    assert sum(row.kind == "Conv2d" for row in report.replaced) == 4
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    for _ in range(3):
        assert_same(derivatives(model, x), derivatives(original, x))
    fastgen.restore(model)
    assert_same(derivatives(model, x), derivatives(original, x))
