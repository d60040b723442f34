"""What is replaced, what is left and why; what a user's model may rely on."""

from __future__ import annotations

import copy
import functools
import gc
import threading

import pytest
import torch
import torch.nn.functional as F
from architectures import PreActivationBlock, VariationalAutoencoder
from comparing import assert_same, assert_same_model, derivatives
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm, weight_norm

import fastgen
from fastgen.nn import ConvLeakyReLU2d

accelerate = functools.partial(fastgen.accelerate, verbose=False)


def images(*shape: int) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float64)


def rows(report) -> dict[str, tuple[str, str]]:
    return {row.name: (row.became, row.why) for row in report}


def accelerated(model: nn.Module) -> tuple[nn.Module, nn.Module, dict[str, tuple[str, str]]]:
    """(the model in float64 and accelerated, the same untouched, the report by name)."""
    original = model.double()
    model = copy.deepcopy(original)
    return model, original, rows(accelerate(model))


# --- whole models that are refused ---


class Wrapped:
    """One process that calls itself a process group."""

    def __enter__(self):
        store = torch.distributed.HashStore()
        torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)

    def __exit__(self, *error):
        torch.distributed.destroy_process_group()


def test_what_is_no_module_is_refused():
    with pytest.raises(TypeError, match=r"model must be a torch.nn.Module \(got list\)"):
        fastgen.accelerate([nn.Conv2d(3, 3, 1)])
    with pytest.raises(TypeError, match=r"model must be a torch.nn.Module \(got NoneType\)"):
        fastgen.restore(None)


def test_a_distributed_model_is_refused_and_told_the_order_that_works():
    with Wrapped():
        wrapped = nn.parallel.DistributedDataParallel(nn.Sequential(nn.Conv2d(3, 3, 1)))
        with pytest.raises(TypeError, match=r"first, fastgen.accelerate\(model\), then Distrib"):
            accelerate(wrapped)
        with pytest.raises(TypeError, match="inner is wrapped by DistributedDataParallel"):
            accelerate(nn.ModuleDict({"inner": wrapped}))

        model, original, _ = accelerated(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()))
        wrapped, x = nn.parallel.DistributedDataParallel(model), images(2, 3, 5, 5)
        wrapped(x).square().sum().backward()
        original(x).square().sum().backward()
        for ours, theirs in zip(model.parameters(), original.parameters(), strict=True):
            torch.testing.assert_close(ours.grad, theirs.grad)


def test_a_compiled_model_is_refused():
    with pytest.raises(TypeError, match=r"then torch.compile\(...\)"):
        accelerate(torch.compile(nn.Sequential(nn.Conv2d(3, 3, 1))))
    model = nn.Sequential(nn.Conv2d(3, 3, 1))
    model.compile()
    with pytest.raises(TypeError, match=r"then model.compile\(\)"):
        accelerate(model)


def test_a_data_parallel_model_is_refused():
    with pytest.raises(TypeError, match=r"then DataParallel"):
        accelerate(nn.DataParallel(nn.Conv2d(3, 3, 1)))


def test_a_scripted_model_is_refused_and_a_scripted_part_left():
    scripted = torch.jit.script(nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU()))
    with pytest.raises(TypeError, match="must not be scripted"):
        accelerate(scripted)
    model = nn.Sequential(nn.Conv2d(3, 3, 1), scripted)
    x = torch.randn(1, 3, 4, 4)
    before = model(x)
    assert rows(accelerate(model))["0"][0] == "fastgen's"
    torch.testing.assert_close(model(x), before)


def test_nothing_is_changed_when_a_part_is_refused():
    model = nn.Sequential(nn.Conv2d(3, 3, 1), torch.compile(nn.Conv2d(3, 3, 1)))
    with pytest.raises(TypeError, match="1 is wrapped by"):
        accelerate(model)
    assert type(model[0]) is nn.Conv2d


# --- layers that are left, each with its reason ---


class OwnForward(nn.Conv2d):
    def forward(self, input):
        return 2 * super().forward(input)


class OwnConvForward(nn.Conv2d):
    def _conv_forward(self, input, weight, bias):
        return super()._conv_forward(input, 2 * weight, bias)


class OnlyAnotherStart(nn.Conv2d):
    def reset_parameters(self):
        nn.init.normal_(self.weight)
        nn.init.zeros_(self.bias)


def replaced_on_the_instance():
    layer = nn.Conv2d(3, 3, 1)
    layer.forward = lambda x: x + 1
    return layer


LEFT = {
    "OwnForward": (lambda: OwnForward(3, 3, 1), "a forward of its own"),
    "OwnConvForward": (lambda: OwnConvForward(3, 3, 1), "a forward of its own"),
    "instance": (replaced_on_the_instance, "its forward was replaced on the instance"),
    "reflect": (
        lambda: nn.Conv2d(3, 3, 3, padding=1, padding_mode="reflect"),
        "padding_mode is not 'zeros'",
    ),
    "PReLU": (nn.PReLU, "its slope is learned"),
    "negative slope": (lambda: nn.LeakyReLU(-0.1), "outside of [0, 1]"),
    "slope above 1": (lambda: nn.LeakyReLU(1.5), "outside of [0, 1]"),
    "lazy": (lambda: nn.LazyConv2d(3, 1), "run one batch, then accelerate"),
    "fastgen's": (lambda: ConvLeakyReLU2d(3, 3, 1), "fastgen's already"),
    "complex": (lambda: nn.Conv2d(3, 3, 1).to(torch.complex64), "no plain floating-point"),
    "linear": (lambda: nn.Linear(5, 5), "no activation that it could take in"),
    "normalization": (lambda: nn.BatchNorm2d(3), "fold_batchnorm=True"),
    "quantized": (lambda: torch.ao.nn.quantized.Conv2d(3, 3, 1), "quantized"),
}


@pytest.mark.parametrize("case", LEFT)
def test_a_layer_that_is_left_is_left_as_it_is_and_the_report_says_why(case):
    make, reason = LEFT[case]
    layer = make()
    kind, attributes = type(layer), dict(vars(layer))
    became, why = rows(accelerate(nn.Sequential(layer)))["0"]
    assert became == ""
    assert reason in why
    assert type(layer) is kind
    assert vars(layer) == attributes


@pytest.mark.parametrize("kind", [nn.Conv1d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose3d])
def test_convolutions_of_other_dimensions_are_left(kind):
    model, original, said = accelerated(nn.Sequential(kind(2, 3, 3), nn.LeakyReLU(0.2)))
    assert said["0"] == ("", "only two-dimensional convolutions have a fused form")
    assert said["1"][0] == "fastgen's"
    x = images(2, 2, *[5] * (1 if "1d" in kind.__name__ else 3))
    assert_same_model(model, original, x)


def test_a_subclass_that_computes_the_same_is_replaced_and_stays_a_subclass():
    model, original, said = accelerated(nn.Sequential(OnlyAnotherStart(3, 4, 3), nn.ReLU()))
    assert said["0"][0] == "fastgen's, with ReLU"
    assert isinstance(model[0], OnlyAnotherStart)
    assert isinstance(model[0], ConvLeakyReLU2d)
    assert_same_model(model, original, images(2, 3, 6, 6))
    fastgen.restore(model)
    assert type(model[0]) is OnlyAnotherStart


def test_a_lazy_layer_is_replaced_once_it_has_weights():
    model = nn.Sequential(nn.LazyConv2d(3, 1))
    accelerate(model)
    model(torch.randn(1, 2, 4, 4))
    assert rows(accelerate(model))["0"][0] == "fastgen's"


@pytest.mark.parametrize("activation", [nn.Tanh(), nn.LeakyReLU(1.5), nn.PReLU(), nn.ELU()])
def test_a_convolution_before_another_activation_computes_the_same_without_it(activation):
    model, original, said = accelerated(nn.Sequential(nn.Conv2d(3, 4, 3), activation))
    assert said["0"][0] == "fastgen's"
    assert_same_model(model, original, images(2, 3, 6, 6))


LAYERS = [
    nn.Conv2d(4, 6, 3),
    nn.Conv2d(4, 6, (3, 2), stride=(2, 1), padding=(1, 0), dilation=(1, 2), groups=2, bias=False),
    nn.Conv2d(4, 6, 3, padding="same"),
    nn.ConvTranspose2d(4, 6, 4, 2, 1),
    nn.ConvTranspose2d(4, 6, 3, 2, 1, output_padding=1, groups=2, bias=False),
]
ACTIVATIONS = [
    nn.ReLU(),
    nn.ReLU(True),
    nn.LeakyReLU(0.2),
    nn.LeakyReLU(0.1, inplace=True),
    nn.LeakyReLU(0.0),
    nn.LeakyReLU(1.0),
    nn.Tanh(),
    nn.Identity(),
]


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=str)
@pytest.mark.parametrize("layer", LAYERS, ids=str)
def test_every_pair_computes_the_same(layer, activation):
    model, original, _ = accelerated(nn.Sequential(layer, activation, nn.Conv2d(6, 2, 1)))
    assert_same_model(model, original, images(2, 4, 7, 8))


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=str)
def test_linear_layers_compute_the_same(activation):
    model, original, _ = accelerated(
        nn.Sequential(nn.Linear(7, 5), activation, nn.Linear(5, 3, bias=False), activation)
    )
    assert_same_model(model, original, images(4, 7))
    assert_same_model(model, original, images(2, 3, 7))


POOLS = [
    nn.AvgPool2d(2),
    nn.AvgPool2d(3, 2, 1, ceil_mode=True, count_include_pad=False),
    nn.AvgPool2d((2, 3), (1, 2), divisor_override=5),
    nn.AdaptiveAvgPool2d(3),
    nn.AdaptiveAvgPool2d((2, None)),
    nn.AdaptiveAvgPool2d(1),
    nn.MaxPool2d(2),
    nn.MaxPool2d(3, 2, 1, dilation=(1, 2), ceil_mode=True),
    nn.MaxPool2d((2, 3), (1, 2)),
]


class Pooling(nn.Module):
    """The same by functions."""

    def __init__(self, pool):
        super().__init__()
        self.conv = nn.Conv2d(4, 3, 3)
        self.pool = vars(pool)
        for name in [name for name in self.pool if name.startswith("_") or name == "training"]:
            del self.pool[name]
        self.function = {
            nn.AvgPool2d: F.avg_pool2d,
            nn.AdaptiveAvgPool2d: F.adaptive_avg_pool2d,
            nn.MaxPool2d: F.max_pool2d,
        }[type(pool)]

    def forward(self, x):
        return self.function(self.conv(x).tanh(), **self.pool)


@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize("pool", POOLS, ids=str)
def test_pooling_computes_the_same(pool, channels_last):
    for original in (
        nn.Sequential(nn.Conv2d(4, 3, 3), nn.Tanh(), pool).double(),
        Pooling(copy.deepcopy(pool)).double(),
    ):
        model = copy.deepcopy(original)
        fastgen.accelerate(model, channels_last, verbose=False)
        x = images(2, 4, 9, 11)
        assert_same_model(model, original, x)
        assert (
            model(x.requires_grad_()).stride()
            == (original.to(memory_format=torch.channels_last) if channels_last else original)(
                x
            ).stride()
        )
        assert torch.autograd.gradgradcheck(model, images(1, 4, 7, 8).requires_grad_())


def test_pooling_returns_indices_and_takes_single_maps_as_ever():
    model, original, _ = accelerated(nn.Sequential(nn.MaxPool2d(2, return_indices=True)))
    x = images(2, 3, 6, 6).requires_grad_()
    for ours, theirs in zip(model(x), original(x), strict=True):
        assert torch.equal(ours, theirs)
    model, original, _ = accelerated(nn.Sequential(nn.AvgPool2d(2), nn.MaxPool2d(2)))
    x = images(3, 8, 8).requires_grad_()
    assert torch.equal(model(x), original(x))


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


@pytest.mark.parametrize(
    ("kind", "reason"),
    [(Twice, "used at several places"), (Skip, "also used elsewhere")],
)
def test_a_layer_whose_output_is_used_otherwise_takes_nothing_in(kind, reason):
    model, original, said = accelerated(kind())
    assert said["conv"][0] == "fastgen's"
    assert reason in said["conv"][1]
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


# --- forwards of the user's own ---


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
        self.history, self.steps = [], 0

    def forward(self, x):
        self.calls += 1
        self.steps += 1
        self.history.append(self.steps)
        return F.relu(self.conv(x)) + torch.rand(1)


def test_looking_at_a_forward_leaves_no_trace_of_it():
    model = Counting()
    before = torch.get_rng_state()
    accelerate(model, dry_run=True)
    accelerate(model)
    assert (model.calls.item(), model.steps, model.history) == (0, 0, [])
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
        return F.conv2d(input=x, weight=self.weight, stride=2) + unbatched.mean()


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
        h.mul_(2)
        return h


def test_what_comes_behind_a_leaky_relu_may_overwrite_its_output():
    model, original, said = accelerated(Overwriting())
    assert "overwrite" in said["net.0"][1]
    assert "overwrite" in said["conv"][1]
    x = images(2, 3, 6, 6)
    assert_same_model(model, original, x)
    with torch.no_grad():
        torch.testing.assert_close(model(x), original(x))


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


# --- flags, copies, layouts ---


def test_flags_devices_and_visits_work_as_ever():
    model, original, _ = accelerated(PreActivationBlock(3, 4))
    model.conv1.weight.requires_grad_(False)
    assert not any(m.training for m in model.eval().modules())
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


# --- the report ---


def test_the_report_is_printed_as_an_aligned_table_unless_told_not_to(capsys):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.LeakyReLU(0.2, True), nn.PReLU())
    report = fastgen.accelerate(model, dry_run=True)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "fastgen.accelerate would replace 2 modules, left 1"
    assert lines[1].split() == ["name", "was", "now", "why"]
    kinds = zip(lines[2:], ("Conv", "Leaky", "PReLU"), strict=True)
    assert {line.index(kind) for line, kind in kinds} == {lines[1].index("was")}
    assert str(report) == "\n".join(lines)
    assert [row.name for row in report.replaced] == ["0", "1"]
    assert [row.kind for row in report.left] == ["PReLU"]
    fastgen.accelerate(model, verbose=False)
    assert capsys.readouterr().out == ""


def test_a_model_that_is_one_layer_is_replaced():
    model, original, said = accelerated(nn.Conv2d(3, 4, 3))
    assert said["(model)"][0] == "fastgen's"
    assert_same_model(model, original, images(2, 3, 6, 6))


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
