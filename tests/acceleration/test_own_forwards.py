"""Forwards of the user's own: what they call is found and means what it meant."""

from __future__ import annotations

import copy
import functools
import gc
import threading
from collections import OrderedDict, deque

import architectures
import pytest
import torch
import torch.nn.functional as F
from architectures import PreActivationBlock, VariationalAutoencoder
from comparing import (
    accelerate,
    accelerated,
    assert_same,
    assert_same_model,
    derivatives,
    images,
)
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import fastgen


def activated(x):
    return F.leaky_relu(x, 0.1)


def relu_method(x):
    return x.relu()


def relu_method_(x):
    return x.relu_()


class Branching(nn.Module):
    def __init__(self, function=activated):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.last = nn.Conv2d(4, 2, 1)
        self.function = function

    def forward(self, x):
        h = self.conv(x)
        if self.training:
            h = self.function(h)
        return self.last(activated(h) if self.training else h)


def test_both_ways_through_a_branching_forward_are_right():
    model, original, said = accelerated(Branching())
    assert said["conv"] == ("fastgen's", "")
    assert "branches or loops" in said["(model)"][1]
    for training in (True, False):
        x = images(2, 3, 6, 6)
        assert_same_model(model.train(training), original.train(training), x)


RECTIFIES = [True]


def rectified_or_not(h):
    return F.relu(h) if RECTIFIES else torch.tanh(h)


class BranchingElsewhere(nn.Module):
    """The forward has one way through, a function that it calls has two."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x):
        return rectified_or_not(self.conv(x))


def test_a_branch_in_a_function_that_is_called_counts():
    model, original, said = accelerated(BranchingElsewhere())
    assert said["conv"] == ("fastgen's", "")
    assert "branches or loops" in said["(model)"][1]
    x = images(2, 3, 6, 6)
    assert_same_model(model, original, x)
    RECTIFIES.clear()
    assert_same_model(model, original, x)
    RECTIFIES.append(True)


class Holding(nn.Module):
    """Its activation is a function that it holds."""

    def __init__(self, function):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.last = nn.Conv2d(4, 2, 1)
        self.function = function

    def forward(self, x):
        return self.last(self.function(self.conv(x)))


FUNCTIONS = [
    F.relu, torch.relu, torch.relu_, relu_method, relu_method_, F.leaky_relu, F.leaky_relu_,
    functools.partial(F.leaky_relu, negative_slope=0.3, inplace=True),
    functools.partial(F.relu, inplace=True), activated, F.elu, torch.tanh,
]  # fmt: skip


@pytest.mark.parametrize("function", FUNCTIONS, ids=range(len(FUNCTIONS)))
def test_functions_and_methods_are_found(function):
    model, original, said = accelerated(Holding(function))
    fused = function not in (F.elu, torch.tanh)
    assert said["conv"][0].startswith("fastgen's, with") == fused
    assert_same_model(model, original, images(2, 3, 6, 6))


def nodes_of_a_penalty(model, x):
    """The kinds of the nodes that the backward of a penalty runs through."""
    x = x.requires_grad_()
    (g,) = torch.autograd.grad(model(x).sum(), x, create_graph=True)
    seen, waiting = set(), [g.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        waiting += [following for following, _ in node.next_functions]
    return {type(node).__name__ for node in seen}


@pytest.mark.parametrize("function", [f for f in FUNCTIONS if f not in (F.elu, torch.tanh)])
def test_no_leaky_relu_of_pytorchs_is_left_in_the_second_order(function):
    model, original, _ = accelerated(Branching(function))
    x = images(2, 3, 6, 6)
    assert any("Relu" in name for name in nodes_of_a_penalty(original, x.clone()))
    nodes = nodes_of_a_penalty(model, x)
    # PyTorch numbers its own nodes; fastgen's Functions have no number.
    assert nodes
    assert not {name for name in nodes if name.endswith("0")}


def test_a_forward_that_no_longer_does_what_it_was_planned_for_is_an_error():
    model, _, said = accelerated(Holding(F.relu))
    assert said["conv"][0] == "fastgen's, with ReLU"
    model.function = torch.sigmoid
    with pytest.raises(RuntimeError, match=r"Call fastgen\.restore"):
        model(images(1, 3, 5, 5))
    accelerate(model)
    assert model(images(1, 3, 5, 5)).shape == (1, 2, 3, 3)


def test_parts_taken_away_later_are_not_missed():
    model, original, _ = accelerated(PreActivationBlock(3, 4))
    for network in (model, original):
        network.conv2 = nn.Identity()
    assert_same_model(model, original, images(2, 3, 6, 6))
    for network in (model, original):
        network.conv1 = nn.Conv2d(3, 4, 1).double()
        network.conv2 = nn.Conv2d(4, 4, 1).double()
    model.load_state_dict(original.state_dict())
    assert_same_model(model, original, images(2, 3, 6, 6))


class Final(nn.Module):
    """A class that wants no subclasses."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def __init_subclass__(cls):
        raise ValueError("no subclasses")

    def forward(self, x):
        return F.relu(self.conv(x))


def test_a_class_that_refuses_subclasses_is_left_and_its_layers_replaced():
    model, original, said = accelerated(nn.Sequential(Final(), nn.Conv2d(4, 2, 1)))
    assert said["0"] == ("", "its class refuses a subclass (ValueError)")
    assert said["0.conv"][0].startswith("fastgen's")
    assert type(model[0]) is Final
    assert_same_model(model, original, images(2, 3, 6, 6))


def test_activations_with_an_out_argument_write_there():
    class Out(nn.Module):
        def forward(self, x):
            result = torch.empty_like(x)
            torch.tanh(F.relu(x), out=result)
            return result

    model, original, _ = accelerated(Out())
    x = images(2, 3)
    assert torch.equal(model(x), original(x))


def test_an_error_inside_a_forward_leaves_nothing_behind():
    model, original, _ = accelerated(PreActivationBlock(3, 4))
    with pytest.raises(ValueError, match="channels"):
        model(images(2, 2, 6, 6))
    assert_same_model(model, original, images(2, 3, 6, 6))


class Counting(nn.Module):
    """Its forward leaves traces: in a buffer, in attributes, in the random numbers."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.register_buffer("calls", torch.zeros(1))
        self.history, self.steps, self.last = [], 0, deque(maxlen=2)

    def forward(self, x):
        self.calls += 1
        self.steps += 1
        self.history.append(self.steps)
        self.last.append(x)
        return F.relu(self.conv(x)) + torch.rand(1)


def test_looking_at_a_forward_leaves_no_trace_of_it():
    model = Counting()
    before = torch.get_rng_state()
    accelerate(model, dry_run=True)
    accelerate(model)
    assert (model.calls.item(), model.steps, model.history, len(model.last)) == (0, 0, [], 0)
    assert torch.equal(torch.get_rng_state(), before)
    x = torch.randn(1, 3, 5, 5)
    assert not torch.equal(model(x), model(x))
    assert (model.calls.item(), model.steps, model.history) == (2, 2, [1, 2])


class Functional(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 3, 3, 3))

    def forward(self, x):
        unbatched = torch.conv2d(x[0], self.weight, None, 1, "same")
        with pytest.raises((RuntimeError, TypeError)):
            F.conv2d(x.float(), self.weight)
        with torch.no_grad():
            complex_ = F.conv2d(*(t.to(torch.complex128) for t in (x, self.weight)), stride=2)
        mean, variance = torch.zeros(4).to(x), torch.ones(4).to(x)
        normal = F.batch_norm(input=complex_.real, running_mean=mean, running_var=variance)
        return F.conv2d(input=x, weight=self.weight, stride=2) + normal + unbatched.mean()


def test_functional_convolutions_keep_their_meanings_and_errors():
    model, original, said = accelerated(Functional())
    assert said["(model)"][0] == "its functions fastgen's"
    x = images(2, 3, 6, 6)
    assert_same_model(model, original, x)
    assert not any(name.startswith("Convolution") and name.endswith("0")
                   for name in nodes_of_a_penalty(model, x))  # fmt: skip


def test_methods_beside_forward_work_on_channels_last_maps():
    """A VAE's encode flattens by `view`, which PyTorch refuses there."""
    model, original, _ = accelerated(VariationalAutoencoder())
    x = images(2, 3, 32, 32)
    assert model.encoder(x).is_contiguous(memory_format=torch.channels_last)
    for ours, theirs in zip(model.encode(x), original.encode(x), strict=True):
        torch.testing.assert_close(ours, theirs)
    z = images(2, 5)
    torch.testing.assert_close(model.decode(z), original.decode(z))
    shape = torch.zeros(4).view
    assert shape(2, 2).shape == (2, 2)


class Views(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x):
        h = self.conv(x)
        with pytest.raises(RuntimeError):
            h.view(7, -1)
        return h.view(len(x), -1), h.view([len(x), 4, -1]), h.view(torch.int64), h.view(h.shape)


def test_view_keeps_its_other_meanings_and_its_errors():
    model, original, _ = accelerated(Views())
    x = images(2, 3, 6, 6)
    for ours, theirs in zip(model(x), original(x), strict=True):
        assert ours.dtype == theirs.dtype
        assert ours.shape == theirs.shape
    torch.testing.assert_close(model(x)[0], original(x)[0])


class Flattening(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x):
        return self.flatten(self.conv(x))


HELD = {"flat": lambda h: h.view(len(h), -1)}
FLATTEN = {
    "static": staticmethod(HELD["flat"]),
    "of the class": classmethod(lambda cls, h: h.view(len(h), -1)),
    "of a module": lambda self, h: architectures.flat(h),
    "held": lambda self, h: HELD["flat"](h),
    "view_as": lambda self, h: h.view_as(h.new_zeros(len(h), h[0].numel())),
    "by name": lambda self, h: h.view(size=(len(h), -1)),
}


@pytest.mark.parametrize("way", FLATTEN)
def test_view_copies_however_it_is_reached(way):
    kind = type("OneWay", (Flattening,), {"flatten": FLATTEN[way]})
    model, original, _ = accelerated(kind())
    assert_same_model(model, original, images(2, 3, 6, 6))
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    x = images(2, 3, 6, 6)
    torch.testing.assert_close(compiled(x), original(x))
    grad = torch.func.grad(lambda x: model(x).square().sum())(x)
    torch.testing.assert_close(grad, torch.func.grad(lambda x: original(x).square().sum())(x))
    fastgen.restore(model)
    assert type(model) is kind


def add_to_view(h):
    h.view(len(h), -1).add_(1)
    return h


def set_in_view(h):
    h.view(len(h), -1)[:, 0] = 7
    return {"whole": [h]}


def relu_of_view(h):
    F.relu(h.view(len(h), -1), inplace=True)
    return (h * 2,)


def write_out_to_view(h):
    torch.neg(h, out=h.view(h.shape[0], -1).view_as(h))
    return torch.cat([h, h])


def add_to_map(h):
    flat = h.view(len(h), -1)
    h += 1
    return flat.sum()


def module_on_view(h):
    nn.ReLU(inplace=True)(h.view(len(h), -1))
    return h.sum()


def other_activation_of_view(h):
    nn.ELU(inplace=True)(h.view(len(h), -1))
    return h[:, 1:]


def add_to_views_of_two(h):
    other = h * 2
    for map_ in (h, other):
        map_.view(len(map_), -1).add_(1)
    return other + 1


def use_view_alone(h):
    flat = h.view(len(h), -1)
    flat += 1
    assert (h.dim(), len(h), h.dtype) == (4, 2, torch.float64)
    h.is_contiguous()
    rows = F.leaky_relu_(flat, 0.1).view(h.shape[0], *h.size()[1:])
    return (rows + torch.ones_like(h))[:, 1:]


def only_read_view(h):
    flat = h.view(len(h), -1)
    return F.relu(flat) + F.elu(flat), h * 2


class Writing(nn.Module):
    def __init__(self, write):
        super().__init__()
        self.conv, self.write = nn.Conv2d(3, 4, 3), write

    def forward(self, x):
        return self.write(self.conv(x))


class WritingByLayer(Writing):
    """The layer that writes to the view is one of the model's own."""

    def __init__(self, layer):
        super().__init__(self.write_to_view)
        self.layer = layer

    def write_to_view(self, h):
        self.layer(h.view(len(h), -1))
        return h


WRITING = [
    *map(Writing, (add_to_view, set_in_view, relu_of_view, write_out_to_view, add_to_map)),
    *map(Writing, (module_on_view, other_activation_of_view, add_to_views_of_two)),
    *map(WritingByLayer, (nn.ReLU(True), nn.LeakyReLU(0.2, True), nn.Hardtanh(inplace=True))),
]


@pytest.mark.parametrize("network", WRITING, ids=range(len(WRITING)))
def test_what_is_written_to_a_view_that_is_a_copy_is_not_lost_silently(network):
    model, original, _ = accelerated(network)
    x = images(2, 3, 6, 6)
    with torch.no_grad():
        original(x)
        for _ in range(2):  # an error leaves nothing behind
            with pytest.raises(RuntimeError, match="channels_last=False"):
                model(x)
        fastgen.restore(model)
        accelerate(model, channels_last=False)
        torch.testing.assert_close(model(x), original(x))


@pytest.mark.parametrize("use", [use_view_alone, only_read_view])
def test_a_copy_that_is_used_alone_or_only_read_is_no_error(use):
    model, original, _ = accelerated(Writing(use))
    assert_same_model(model, original, images(2, 3, 6, 6))


class Annealed(nn.Module):
    """Its activation is what its attributes say at each call."""

    def __init__(self):
        super().__init__()
        self.conv, self.last, self.slope, self.act = (
            nn.Conv2d(3, 4, 3),
            nn.Conv2d(4, 4, 1),
            0.2,
            F.relu,
        )

    def forward(self, x):
        return self.act(self.last(F.leaky_relu(self.conv(x), self.slope, True)))


@pytest.mark.parametrize("change", [{"slope": 0.9}, {"act": torch.tanh}, {"act": torch.sin}])
def test_an_activation_that_has_changed_is_an_error_until_accelerated_again(change):
    model, original, said = accelerated(Annealed())
    x = images(2, 3, 6, 6)
    assert said["conv"][0] == "fastgen's, with LeakyReLU(0.2)"
    assert said["last"][0] == "fastgen's, with ReLU"
    assert_same_model(model, original, x)
    for network in (model, original):
        vars(network).update(change)
    with pytest.raises(RuntimeError, match=r"fastgen\.restore\(model\)"):
        model(x)
    fastgen.restore(model)
    accelerate(model)
    assert_same_model(model, original, x)


class Straight(nn.Module):
    """Layers of every kind, each with a module behind it."""

    def __init__(self, act=None):
        super().__init__()
        self.act = act or nn.LeakyReLU(0.2, inplace=True)
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        self.up = nn.ConvTranspose2d(4, 4, 3, stride=2, padding=1)
        self.last = nn.Linear(10, 3)

    def forward(self, x):
        h = self.act(self.norm(self.conv(x)))
        h = self.act(self.up(h, output_size=[10, 10]))
        return self.act(self.last(h))


class Doubled(nn.LeakyReLU):
    def forward(self, input):
        return 2 * super().forward(input)


CHANGES = {
    "nothing": lambda model: None,
    "slope": lambda model: setattr(model.act, "negative_slope", 0.9),
    "slope outside": lambda model: setattr(model.act, "negative_slope", 1.5),
    "tanh": lambda model: setattr(model, "act", nn.Tanh()),
    "another activation": lambda model: setattr(model, "act", nn.Softplus()),
    "a class of its own": lambda model: setattr(model, "act", Doubled(0.1)),
    "a forward of its own": lambda model: setattr(model.act, "forward", torch.sin),
    "training": lambda model: model.train(),
    "no norm": lambda model: setattr(model, "norm", nn.Identity()),
}


@pytest.mark.parametrize("fold", [False, True])
@pytest.mark.parametrize("change", CHANGES)
def test_what_stands_behind_the_layers_of_a_forward_may_change_later(change, fold):
    original = Straight().double().eval()
    original.norm.running_var.uniform_(0.5, 2)
    model = copy.deepcopy(original)
    report = accelerate(model, fold_batchnorm=fold)
    fused = [row.name for row in report.replaced if "with LeakyReLU(0.2)" in row.became]
    assert fused == (["conv", "up", "last"] if fold else ["up", "last"])
    x = images(2, 3, 7, 7)
    assert_same_model(model, original, x)
    for network in (model, original):
        CHANGES[change](network)
    assert_same_model(model, original, x)


def in_sequence() -> nn.Sequential:
    first, second = nn.Conv2d(3, 4, 3), nn.ConvTranspose2d(4, 4, 3, stride=2, padding=1)
    return nn.Sequential(
        OrderedDict(conv=first, norm=nn.BatchNorm2d(4), up=second, act=nn.LeakyReLU(0.2))
    )


@pytest.mark.parametrize("network", [lambda: Straight(nn.LeakyReLU(0.2)), in_sequence])
@pytest.mark.parametrize("place", ["conv", "norm", "up", "act"])
@pytest.mark.parametrize(
    "kind", ["forward", "forward_pre", "forward_pre kwargs", "full_backward", "full_backward_pre"]
)
def test_hooks_registered_later_see_what_they_would_see_in_the_original(network, place, kind):
    original = network().double().eval()
    model = copy.deepcopy(original)
    accelerate(model, fold_batchnorm=True)
    seen: tuple[list, list] = ([], [])
    kind, *kwargs = kind.split()
    for network, found in zip((model, original), seen, strict=True):

        def note(module, *values, found=found):
            for value in values:
                found.extend(value if isinstance(value, tuple) else [value])

        register = getattr(network.get_submodule(place), f"register_{kind}_hook")
        register(note, **({"with_kwargs": True} if kwargs else {}))
        torch.manual_seed(0)
        network(images(2, 3, 7, 7).requires_grad_()).square().sum().backward()
    assert len(seen[0]) == len(seen[1]) > 0
    for ours, theirs in zip(*seen, strict=True):
        if isinstance(theirs, torch.Tensor):
            torch.testing.assert_close(ours, theirs)
        else:
            assert ours == theirs  # keyword arguments


class Scaled(nn.Sequential):
    """A sequence with a forward of its own around the one that it inherits."""

    def forward(self, x):
        return 2 * super().forward(F.leaky_relu(x, 0.3)) + self[0](x)


def test_a_sequence_with_a_forward_of_its_own_runs_it():
    model, original, _ = accelerated(nn.Sequential(Scaled(nn.Conv2d(3, 4, 3), nn.LeakyReLU(0.2))))
    assert_same_model(model, original, images(2, 3, 6, 6))


@pytest.mark.parametrize(
    "pool",
    [nn.MaxPool2d(2), nn.AvgPool2d(2), nn.AdaptiveAvgPool2d(2)],
    ids=lambda p: type(p).__name__,
)
def test_function_transforms_differentiate_pooling(pool):
    model, original, _ = accelerated(nn.Sequential(pool))
    x = images(2, 3, 6, 6)

    def second(network):
        first = torch.func.grad(lambda x: network(x).square().sum())
        return torch.func.grad(lambda x: first(x).square().sum())(x)

    torch.testing.assert_close(second(model), second(original))


class Overwriting(nn.Module):
    """PyTorch's LeakyReLU keeps its input, so its output may be overwritten."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.LeakyReLU(0.2))
        self.conv = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x):
        h = self.net(x)
        h += x
        h = F.leaky_relu(self.conv(h), 0.1)
        read = h + x
        h.mul_(2)
        return h + read


def test_what_comes_behind_a_leaky_relu_may_overwrite_its_output():
    model, original, said = accelerated(Overwriting())
    for name in ("net.0", "conv"):
        assert said[name][0] == "fastgen's"
        assert "overwrite" in said[name][1]
    x = images(2, 3, 6, 6)
    assert_same_model(model, original, x)
    with torch.no_grad():
        torch.testing.assert_close(model(x), original(x))


def increased(h, x):
    h += x
    return h


def decreased(h, x):
    h -= x
    return h


def scaled(h, x):
    h *= x
    return h


@pytest.mark.parametrize("write", [increased, decreased, scaled])
@pytest.mark.parametrize("slope", [0.1, 0.2])
def test_an_operator_in_place_overwrites_what_stands_before_it(write, slope):
    class Writing(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = (nn.Conv2d(3, 3, 3, padding=1) for _ in range(2))
            self.act = nn.LeakyReLU(slope)

        def forward(self, x):
            h = self.act(self.first(x))
            return write(self.act(self.second(h)), h)

    model, original, said = accelerated(Writing())
    assert said["first"] == (f"fastgen's, with LeakyReLU({slope})", "")
    assert said["second"][0] == "fastgen's"
    assert "fused only under no_grad" in said["second"][1]
    x = images(2, 3, 6, 6)
    assert_same_model(model, original, x)
    with torch.no_grad():
        torch.testing.assert_close(model(x), original(x))


READ = [
    [nn.Flatten(), nn.Linear(64, 2)],
    [nn.Identity(), nn.Dropout2d(0.0), nn.Flatten(), nn.Linear(64, 2)],
    [nn.AvgPool2d(2)],
]
OVERWRITTEN = [[], [nn.Flatten()], [nn.Dropout(0.0, inplace=True), nn.AvgPool2d(2)], [nn.ELU()]]


@pytest.mark.parametrize("behind", [*READ, *OVERWRITTEN], ids=str)
def test_a_sequence_fuses_a_leaky_relu_that_is_surely_only_read_else_under_no_grad(behind):
    model, original, said = accelerated(
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.LeakyReLU(0.2), *behind)
    )
    if behind in READ:
        assert said["0"] == ("fastgen's, with LeakyReLU(0.2)", "")
        assert said["1"] == ("part of 0", "")
    else:
        assert said["0"][0] == said["1"][0] == "fastgen's"
        assert "fused only under no_grad" in said["0"][1]
    x = images(2, 3, 6, 6)
    assert_same_model(model, original, x)
    asked = []
    model[0].register_forward_pre_hook(lambda module, inputs: asked.append(module))
    for recorded in (True, False):
        with torch.set_grad_enabled(recorded), Calls() as calls:
            torch.testing.assert_close(model(x), original(x))
        # The original's, and one of the model's own that writes a new tensor.
        alone = recorded and behind in OVERWRITTEN
        assert calls.names.count("aten.leaky_relu.default") == 1 + alone
    assert len(asked) == 2


class Calls(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


def test_an_activation_in_place_still_changes_what_it_is_given():
    for x in (images(2, 3, 5, 5), images(2, 3, 5, 5).requires_grad_() * 2):
        for activation in (nn.ReLU(True), nn.LeakyReLU(0.2, True)):
            model, ours, theirs = nn.Sequential(activation), x.clone(), x.clone()
            expected = copy.deepcopy(model)(theirs)
            accelerate(model)
            assert model(ours) is ours
            assert torch.equal(ours, expected)
    leaf = images(2, 3).requires_grad_()
    with pytest.raises(RuntimeError, match="leaf"):
        model(leaf)


def relu_in_place(h):
    F.relu_(h)
    return h * 2


def leaky_relu_in_place(h):
    F.leaky_relu_(h, 0.1)
    return h * 2


def inplace_by_place(h):
    F.leaky_relu(h, 0.1, True)
    return h * 2


@pytest.mark.parametrize("write", [relu_in_place, leaky_relu_in_place, inplace_by_place])
@pytest.mark.parametrize("fused", [False, True])
def test_a_function_in_place_changes_what_it_is_given_although_nobody_takes_its_result(
    write, fused
):
    class Pointwise(nn.Module):
        def forward(self, x):
            return write(x * 3)

    model, original, _ = accelerated(Writing(write) if fused else Pointwise())
    assert_same_model(model, original, images(2, 3, 6, 6))


def test_several_threads_run_one_model():
    model, original, _ = accelerated(PreActivationBlock(3, 4))
    xs = [images(2, 3, 6, 6) for _ in range(8)]
    results: dict[int, dict[str, torch.Tensor]] = {}

    def work(i):
        for _ in range(3):
            results[i] = derivatives(model, xs[i])

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(xs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i, x in enumerate(xs):
        assert_same(results[i], derivatives(original, x))


def test_recomputed_activations_are_the_same():
    model, original, _ = accelerated(PreActivationBlock(3, 4))
    x = images(2, 3, 6, 6).requires_grad_()
    grads = []
    for network in (model, original):
        y = torch.utils.checkpoint.checkpoint(network, x, use_reentrant=False)
        grads.append(torch.autograd.grad(y.square().sum(), [x, *network.parameters()]))
    for ours, theirs in zip(*grads, strict=True):
        torch.testing.assert_close(ours, theirs)


class Recomputing(nn.Module):
    """Its forward has a part of itself recomputed, which it writes as a function or as a method."""

    def __init__(self, function, *, by_method, reentrant):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.last = nn.Conv2d(4, 2, 1)
        self.register_buffer("blur", torch.rand(4, 1, 3, 3))
        self.function, self.by_method, self.reentrant = function, by_method, reentrant

    def method(self, x):
        h = self.function(self, self.norm(self.conv(x)))
        return self.last(F.max_pool2d(F.avg_pool2d(h, 2), 2))

    def forward(self, x):
        def part(x):
            h = self.function(self, self.norm(self.conv(x)))
            return self.last(F.max_pool2d(F.avg_pool2d(h, 2), 2))

        run = self.method if self.by_method else part
        return torch.utils.checkpoint.checkpoint(run, x, use_reentrant=self.reentrant)


@pytest.mark.parametrize(
    "function",
    [
        lambda model, h: F.relu(h),
        lambda model, h: F.leaky_relu(h, 0.2, inplace=True),
        lambda model, h: F.conv2d(h, model.blur, groups=4),
    ],
    ids=["relu", "leaky_relu_", "conv2d"],
)
@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("by_method", [False, True])
def test_a_part_of_a_forward_may_be_recomputed(function, by_method, reentrant):
    original = Recomputing(function, by_method=by_method, reentrant=reentrant).double().eval()
    model = copy.deepcopy(original)
    accelerate(model, fold_batchnorm=True)
    x = images(2, 3, 20, 20)
    for network in (model, original):
        x.grad = None
        network(x.requires_grad_()).square().sum().backward()
        network.x_grad = x.grad
    torch.testing.assert_close(model.x_grad, original.x_grad)
    for ours, theirs in zip(model.parameters(), original.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad)


class RecomputingStraight(Straight):
    """Its forward has one way through, and has a part of it recomputed."""

    def part(self, x):
        return self.up(self.act(self.norm(self.conv(x))))

    def forward(self, x):
        return torch.tanh(torch.utils.checkpoint.checkpoint(self.part, x, use_reentrant=False))


@pytest.mark.parametrize("act", [nn.ReLU(), nn.LeakyReLU(0.2), nn.LeakyReLU(0.2, True)], ids=str)
def test_a_part_of_a_forward_that_takes_activations_in_may_be_recomputed(act):
    original = RecomputingStraight(act).double().eval()
    del original.last
    original.norm.running_var.uniform_(0.5, 2)
    model = copy.deepcopy(original)
    accelerate(model, dry_run=True)  # what a checkpoint does the first time has branches
    report = accelerate(model, fold_batchnorm=True)
    assert ("norm", "BatchNorm2d", "folded into conv", "") in report.replaced
    assert_same(*(first_order(network, images(2, 3, 7, 7)) for network in (model, original)))


def first_order(model, x):
    torch.manual_seed(1)
    x = torch.randn_like(x).requires_grad_()
    wanted = {"input": x, **dict(model.named_parameters())}
    grads = torch.autograd.grad(model(x).square().sum(), list(wanted.values()))
    return dict(zip(wanted, grads, strict=True))


def test_an_accelerated_model_compiles_whole_and_exports():
    model, original, _ = accelerated(VariationalAutoencoder())
    model, x = model.float(), torch.randn(2, 3, 32, 32)
    expected = original.float()(x)
    for compiled in (
        torch.compile(model, fullgraph=True, backend="aot_eager"),
        torch.export.export(model, (x,)).module(),
    ):
        for ours, theirs in zip(compiled(x), expected, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_a_sequence_compiles_whole_with_sizes_and_slopes_that_are_symbols():
    model, original, _ = accelerated(
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.LeakyReLU(0.2), nn.Conv2d(4, 2, 3), nn.LeakyReLU(0.1))
    )
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend="aot_eager")
    for n, size in ((2, 8), (3, 9)):
        x = images(n, 3, size, size)
        torch.testing.assert_close(compiled(x), original(x))


def to_nested(x):
    return torch.nested.nested_tensor(list(x))


class Subclassed(torch.Tensor):
    pass


def to_integers(x):
    return (4 * x).int()


def to_subclass(x):
    return x.as_subclass(Subclassed)


@pytest.mark.parametrize(
    "convert",
    [torch.Tensor.to_sparse, torch.Tensor.to_mkldnn, to_nested, to_integers, to_subclass],
    ids=lambda f: f.__name__,
)
@pytest.mark.parametrize("function", [F.relu, torch.relu_, nn.ReLU()], ids=range(3))
@pytest.mark.filterwarnings("ignore::UserWarning")  # that the API of nested tensors is a prototype
def test_tensors_of_other_kinds_are_pytorchs(convert, function):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)
            self.function = copy.deepcopy(function)

        def forward(self, x):
            return self.function(convert(x)), F.relu(self.conv(x))

    x = torch.randn(2, 3, 6, 6)
    model = Model()
    expected = model(x)[0]
    accelerate(model)
    ours = model(x)[0]
    assert type(ours) is type(expected)
    if ours.is_nested:
        ours, expected = ours.to_padded_tensor(0), expected.to_padded_tensor(0)
    if ours.layout != torch.strided:
        ours, expected = ours.to_dense(), expected.to_dense()
    torch.testing.assert_close(ours, expected)


def test_what_runs_when_garbage_is_collected_is_no_part_of_a_forward():
    """Libraries hang callbacks on the collector, and it may run in the middle of a trace."""

    def branching(phase, facts):
        return phase if facts else None

    gc.callbacks.append(branching)
    before = gc.get_threshold()
    gc.set_threshold(1)
    try:
        _, _, said = accelerated(Holding(F.relu))
    finally:
        gc.set_threshold(*before)
        gc.callbacks.remove(branching)
    assert said["conv"][0] == "fastgen's, with ReLU"
    assert gc.isenabled()
