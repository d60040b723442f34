"""What is replaced, what is left and why, and the report that says so."""

from __future__ import annotations

import copy
import functools

import pytest
import torch
import torch.nn.functional as F
from architectures import PreActivationBlock
from called import functions
from comparing import (
    accelerate,
    accelerated,
    assert_same_model,
    images,
    rows,
)
from torch import nn
from torch.nn.utils import prune

import fastgen
from fastgen.nn import ConvLeakyReLU2d

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


def test_a_sharded_model_is_told_the_layout_that_works_and_not_restored_in_part():
    with Wrapped():
        from torch.distributed.fsdp import fully_shard

        mesh = torch.distributed.init_device_mesh("cpu", (1,))
        sharded = fully_shard(nn.Sequential(nn.Conv2d(3, 3, 1)), mesh=mesh)
        with pytest.raises(
            TypeError, match=r"fastgen.accelerate\(model, channels_last=False\), then"
        ):
            accelerate(sharded)

        original = PreActivationBlock(3, 4).double()
        model, x = copy.deepcopy(original), images(2, 3, 6, 6)
        accelerate(model, channels_last=False)
        fully_shard(model, mesh=mesh)
        for network in (model, original):
            network(x).square().sum().backward()
        for ours, theirs in zip(model.parameters(), original.parameters(), strict=True):
            torch.testing.assert_close(ours.grad.full_tensor(), theirs.grad)
        with pytest.raises(TypeError, match="model has a class derived from its accelerated one"):
            fastgen.restore(model)


@pytest.mark.parametrize("channels_last", [False, True])
def test_code_that_views_weights_works_on_contiguous_ones(channels_last):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
    accelerate(model, channels_last=channels_last)
    optimizer = torch.optim.LBFGS(model.parameters())

    def loss():
        optimizer.zero_grad()
        error = model(torch.ones(2, 3, 5, 5)).square().mean()
        error.backward()
        return error

    if channels_last:  # what docs/accelerate.md says
        with pytest.raises(RuntimeError, match="view"):
            nn.utils.parameters_to_vector(model.parameters())
        with pytest.raises(RuntimeError, match="view"):
            optimizer.step(loss)
        with pytest.raises(RuntimeError, match="view"):
            prune.l1_unstructured(model[0], "weight", 0.3)
        fastgen.restore(model)
    assert len(nn.utils.parameters_to_vector(model.parameters())) == 4 * 27 + 4
    for _ in range(2):  # it remembers numbers too, not tensors alone
        optimizer.step(loss)
    prune.l1_unstructured(model[0], "weight", 0.3)


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


@pytest.mark.parametrize("slope", [0, 0.0, 1, 1.0])
def test_slopes_at_the_ends_are_fastgens(slope):
    said = rows(accelerate(nn.Sequential(nn.LeakyReLU(slope))))
    assert said["0"] == ("fastgen's", "")


def test_a_forward_put_on_the_model_itself_is_left_and_its_layers_replaced():
    model = PreActivationBlock(3, 4)
    original = copy.deepcopy(model)
    for network in (model, original):
        network.forward = functools.partial(PreActivationBlock.forward, network)
    report = accelerate(model)
    said = rows(report)
    assert said["(model)"] == ("", "its forward was replaced on the instance")
    assert {said[name] for name in ("conv1", "conv2")} == {("fastgen's", "")}
    assert type(model) is PreActivationBlock
    x = torch.randn(2, 3, 6, 6)
    torch.testing.assert_close(model(x), original(x))


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
    tanh = isinstance(activation, nn.Tanh)
    why = "only a transposed convolution takes tanh in" if tanh else ""
    assert said["0"] == ("fastgen's", why)
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


BY_FUNCTION = [
    lambda h: F.avg_pool2d(h, 3),
    lambda h: F.avg_pool2d(h, 3, padding=1),
    lambda h: F.avg_pool2d(h, [2, 3], 2, 1, True, False, 7),
    lambda h: F.adaptive_avg_pool2d(h, 4),
    lambda h: F.max_pool2d(h, 3),
    lambda h: F.max_pool2d(h, 3, (2, 1), 1, 1, True),
    lambda h: F.max_pool2d(h, 2, return_indices=True)[0],
]


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("function", BY_FUNCTION, ids=range(len(BY_FUNCTION)))
def test_pooling_functions_have_their_defaults_and_layouts(function, memory_format):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.function = function

        def forward(self, x):
            return self.function(x)

    original = Model()
    model = copy.deepcopy(original)
    assert rows(accelerate(model))["(model)"][0] == "its functions fastgen's"
    x = images(2, 3, 8, 10).contiguous(memory_format=memory_format).requires_grad_()
    for network in (model, original):
        y = network(x)
        (g,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
        (second,) = torch.autograd.grad(g.square().sum(), x)
        network.results = (y, g, second)
    for ours, theirs in zip(model.results, original.results, strict=True):
        torch.testing.assert_close(ours, theirs)
    assert model.results[0].stride() == original.results[0].stride()
    assert model.results[1].stride() == x.stride()
    assert torch.equal(model(x[:0]), original(x[:0]))


def test_pooling_returns_indices_and_takes_single_maps_as_ever():
    model, original, _ = accelerated(nn.Sequential(nn.MaxPool2d(2, return_indices=True)))
    x = images(2, 3, 6, 6).requires_grad_()
    for ours, theirs in zip(model(x), original(x), strict=True):
        assert torch.equal(ours, theirs)
    model, original, _ = accelerated(nn.Sequential(nn.AvgPool2d(2), nn.MaxPool2d(2)))
    x = images(3, 8, 8).requires_grad_()
    assert torch.equal(model(x), original(x))


# --- what they cost the host ---


ALONE = [
    *(kind(inplace=inplace) for kind in (nn.ReLU, nn.LeakyReLU) for inplace in (False, True)),
    nn.MaxPool2d(2),
    nn.AvgPool2d(2),
]


@pytest.mark.parametrize("layer", ALONE, ids=str)
def test_a_layer_alone_applies_its_function_without_looking_at_signatures(layer):
    model, _, _ = accelerated(nn.Sequential(layer, nn.ReLU()))
    x = images(2, 3, 6, 6).requires_grad_()
    calls = functions(lambda: model(x * 1).sum().backward())
    assert calls["applier.<locals>.apply"] == 2
    assert calls["Function.apply"] == 0


@pytest.mark.parametrize("layer", ALONE, ids=str)
def test_a_layer_alone_applies_no_function_without_gradients(layer):
    model, original, _ = accelerated(nn.Sequential(layer))
    x = images(2, 3, 6, 6)
    with torch.no_grad():
        calls = functions(lambda: model(x.clone()))
        assert torch.equal(model(x.clone()), original(x.clone()))
    assert calls["applier.<locals>.apply"] == calls["Function.apply"] == 0


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


@pytest.mark.parametrize(
    ("norm", "moves"),
    [
        (lambda: nn.LayerNorm((8, 16, 16)), False),
        (lambda: nn.LayerNorm((16,)), True),
        (lambda: nn.LayerNorm((16, 16)), True),
        (lambda: nn.InstanceNorm2d(8), False),
        (lambda: nn.GroupNorm(2, 8), True),
        (lambda: nn.BatchNorm2d(8), True),
    ],
    ids=["maps", "rows", "planes", "instance", "group", "batch"],
)
def test_weights_stay_contiguous_beside_a_norm_that_answers_so(norm, moves) -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), norm(), nn.ReLU())
    asked = accelerate(model, channels_last=False, dry_run=True)
    assert not any("contiguous" in row.why for row in asked.left)
    report = accelerate(model)
    moved = model[0].weight.is_contiguous(memory_format=torch.channels_last)
    assert moved == moves
    reasons = [row.kind for row in report.left if "contiguous" in row.why]
    assert reasons == ([] if moves else [type(model[1]).__name__])
    answer = model[:1](torch.randn(2, 3, 16, 16))
    assert answer.is_contiguous(memory_format=torch.channels_last) == moves


def test_layouts_follow_what_accelerating_again_decides() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.Identity())
    strides = model[0].weight.stride()
    accelerate(model)
    moved = model[0].weight.stride()
    assert moved != strides
    accelerate(model, channels_last=False)
    assert model[0].weight.stride() == strides
    accelerate(model)
    assert model[0].weight.stride() == moved
    model[1] = nn.LayerNorm((8, 16, 16))
    accelerate(model)
    assert model[0].weight.stride() == strides
    assert "_accelerated_layout" not in vars(model[0])


def test_elsewhere_than_on_a_cpu_they_move_beside_a_norm_of_whole_maps() -> None:
    with torch.device("meta"):
        model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.LayerNorm((8, 16, 16)))
    report = accelerate(model)
    assert model[0].weight.is_contiguous(memory_format=torch.channels_last)
    assert not any("contiguous" in row.why for row in report.left)


@pytest.mark.parametrize("kind", [nn.Conv2d, nn.ConvTranspose2d])
@pytest.mark.parametrize("sizes", [(8, 4, 1), (1, 4, 3), (4, 1, 1), (1, 1, 3)])
def test_a_weight_contiguous_in_both_formats_moves_too(kind, sizes) -> None:
    model = nn.Sequential(kind(*sizes), nn.ReLU())
    weight, x = model[0].weight, torch.randn(2, sizes[0], 6, 6)
    strides, expected = weight.stride(), model(x)
    expected.sum().backward()
    accelerate(model)
    answer = model(x)
    assert answer.is_contiguous(memory_format=torch.channels_last)
    assert weight.grad.stride() == weight.stride()
    torch.testing.assert_close(answer, expected)
    fastgen.restore(model)
    assert weight.stride() == weight.grad.stride() == strides
