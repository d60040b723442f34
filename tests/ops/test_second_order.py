"""What a gradient penalty costs: counted calls, kept layouts, saved bytes. No clock."""

from __future__ import annotations

import itertools
from collections import Counter
from contextlib import contextmanager

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from fastgen.nn import ConvLeakyReLU2d, ConvTransposeLeakyReLU2d

BATCH = 5  # no other dimension is 5 or more in a way that could be taken for it


COPIES = ("aten::clone", "aten::_to_copy", "aten::copy_")


class Recorder(TorchDispatchMode):
    """Counts convolutions by kind and keeps every four-dimensional activation that an operator
    returns.
    """

    def __init__(self, *, transposed: bool) -> None:
        super().__init__()
        self.transposed = transposed
        self.calls: Counter[str] = Counter()
        self.activations: list[torch.Tensor] = []
        self.layout_conversions: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        output = func(*args, **(kwargs or {}))
        name = func.name()
        if name in ("mkldnn::_convolution_pointwise", "mkldnn::_convolution_transpose_pointwise"):
            self.calls["forward"] += 1
        elif name == "aten::convolution":
            backwards = args[6] != self.transposed
            self.calls["input gradient" if backwards else "forward"] += 1
        elif name == "aten::convolution_backward":
            for wanted, kind in zip(
                args[-1], ("input gradient", "weight gradient", "bias gradient"), strict=True
            ):
                if wanted:
                    self.calls[kind] += 1
        elif name.startswith("fastgen::") and name.endswith(("conv2d", "conv_transpose2d")):
            backwards = name.endswith("conv_transpose2d") != self.transposed
            # The last layer's convolution is a transposed one turned round, and so its gradient.
            picture = args[0] if name.endswith("conv2d") else output
            if "image_edge" in name and picture.shape[1] == LEAST_CHANNELS and not self.transposed:
                backwards = not backwards
            self.calls["input gradient" if backwards else "forward"] += 1
        elif name.endswith("conv2d_weight_gradient") or name == "aten::mm":
            self.calls["weight gradient"] += 1
        for result in output if isinstance(output, tuple | list) else [output]:
            if isinstance(result, torch.Tensor) and result.dim() == 4 and len(result) == BATCH:
                self.activations.append(result)
                if (
                    name in COPIES
                    and args[0].shape == result.shape
                    and args[0].stride() != result.stride()
                    and 0 not in args[0].stride()  # an expanded tensor has no layout
                ):
                    self.layout_conversions.append(name)
        return output


CASES = [
    # (stride, kernel, padding, groups, bias[, how much wider])
    pytest.param((1, 3, 1, 1, True), id="stride1-kernel3"),
    pytest.param((2, 4, 1, 1, True), id="stride2-kernel4"),
    pytest.param((2, 4, 1, 1, False), id="stride2-no-bias"),
    pytest.param((2, 5, 2, 1, True), id="stride2-kernel5"),
    pytest.param((1, 3, 1, 2, True), id="groups2"),
    pytest.param((2, 3, 1, 2, False), id="stride2-kernel3-groups2"),
    pytest.param((1, 3, 1, 1, True, 16), id="stride1-kernel3-wide"),
    pytest.param((2, 4, 1, 1, True, 16), id="stride2-kernel4-wide"),
]
MOST_CHANNELS = 8  # of an activation, times how much wider
LEAST_CHANNELS = 2  # of the output, times how much wider


def stack(stride, kernel, padding, groups, bias, wider=1, *, transposed, layout):
    """Four layers, the last one linear, and a batch of inputs."""
    layer = ConvTransposeLeakyReLU2d if transposed else ConvLeakyReLU2d
    widths = [wider * width for width in (4, 6, MOST_CHANNELS, 6, LEAST_CHANNELS)]
    layers = [
        layer(
            a,
            b,
            kernel,
            stride,
            padding,
            groups=groups,
            bias=bias,
            negative_slope=1.0 if b == widths[-1] else 0.2,
        )
        for a, b in itertools.pairwise(widths)
    ]
    size = 3 if transposed else 32 if stride == 2 else 7
    images = torch.randn(BATCH, widths[0], size, size).contiguous(memory_format=layout)
    return nn.Sequential(*layers).to(memory_format=layout), images


def penalty(network, images):
    """R1 at `images`, or a gradient penalty: the cost is the same."""
    images = images.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(network(images).sum(), images, create_graph=True)
    return (gradient.square().sum((1, 2, 3)).sqrt() - 1).square().mean()


@pytest.mark.parametrize(
    "layout", [torch.contiguous_format, torch.channels_last], ids=["contiguous", "channels_last"]
)
@pytest.mark.parametrize("transposed", [False, True], ids=["conv", "transposed"])
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_penalty_costs_four_convolutions_per_layer(case, transposed, layout, dtype):
    """L forwards, L input gradients, L - 1 tangent forwards, L weight gradients.

    The tangent of the last layer would be the derivative with respect to the ones that the inner
    gradient starts from, which are constant.
    """
    network, images = stack(*case, transposed=transposed, layout=layout)
    network, images = network.to(dtype), images.to(dtype)
    layers = len(network)
    with Recorder(transposed=transposed) as recorder:
        value = penalty(network, images)
        inner = Counter(recorder.calls)
        value.backward()

    assert inner == {"forward": layers, "input gradient": layers}
    assert recorder.calls == {
        "forward": 2 * layers - 1,
        "input gradient": layers,
        "weight gradient": layers,
    }
    assert all(
        parameter.grad is not None
        for name, parameter in network.named_parameters()
        if "weight" in name
    )


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("transposed", [False, True], ids=["conv", "transposed"])
def test_a_start_that_needs_gradients_adds_the_last_tangent_and_nothing_else(case, transposed):
    network, images = stack(*case, transposed=transposed, layout=torch.channels_last)
    layers = len(network)
    images.requires_grad_()
    with Recorder(transposed=transposed) as recorder:
        scores = network(images)
        start = torch.ones_like(scores, requires_grad=True)
        (gradient,) = torch.autograd.grad(scores, images, start, create_graph=True)
        gradient.square().sum().backward()
    assert recorder.calls == {
        "forward": 2 * layers,
        "input gradient": layers,
        "weight gradient": layers,
    }


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("transposed", [False, True], ids=["conv", "transposed"])
@pytest.mark.parametrize("channels_last", [True, False])
def test_no_layout_changes_in_any_order_of_gradient(case, transposed, channels_last):
    layout = torch.channels_last if channels_last else torch.contiguous_format
    network, images = stack(*case, transposed=transposed, layout=layout)
    with Recorder(transposed=transposed) as recorder:
        penalty(network, images).backward()
        network(images).square().sum().backward()

    assert recorder.layout_conversions == []
    assert len(recorder.activations) > 4 * len(network)
    for activation in recorder.activations:
        if 0 in activation.stride():  # the ones that the derivative of a sum starts from
            continue
        if (
            activation.shape[1] > MOST_CHANNELS * (*case, 1)[5]
        ):  # (N, H, W, C), on the way through the shuffle of the phases
            continue
        assert activation.is_contiguous(memory_format=layout), (
            activation.shape,
            activation.stride(),
        )
    for parameter in network.parameters():
        if parameter.dim() == 4:
            assert parameter.grad.stride() == parameter.stride()


def test_a_gradient_that_arrives_in_another_layout_takes_the_activations():
    network, images = stack(2, 4, 1, 1, True, transposed=False, layout=torch.channels_last)
    network[3].negative_slope = 0.2
    with Recorder(transposed=False) as recorder:
        output = network(images)
        output.backward(torch.randn(output.shape))  # contiguous
    wide = [a for a in recorder.activations if a.shape[1] in (4, 6, 8)]
    assert all(a.is_contiguous(memory_format=torch.channels_last) for a in wide)


@contextmanager
def saved_bytes():
    """The distinct bytes that autograd saves in the block, in the list of one that it yields."""
    storages: dict[int, int] = {}
    total = [0]

    def pack(tensor):
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield total
    total[0] = sum(storages.values())


def test_saves_no_more_than_leaky_relu_in_place_and_1_8_times_less_than_out_of_place():
    """Everything counts: the images, the weights, each activation once or twice."""
    images = torch.randn(32, 3, 64, 64)

    def critic(fused, **activation):
        layers = []
        for below, above in ((3, 64), (64, 128)):
            if fused:
                layers.append(ConvLeakyReLU2d(below, above, 4, 2, 1))
            else:
                layers += [nn.Conv2d(below, above, 4, 2, 1), nn.LeakyReLU(0.2, **activation)]
        return nn.Sequential(*layers, ConvLeakyReLU2d(128, 1, 16, negative_slope=1))

    networks = {
        "fused": critic(True),
        "in place": critic(False, inplace=True),
        "out of place": critic(False),
    }
    totals = {}
    for name, network in networks.items():
        with saved_bytes() as total:
            kept = network(images)  # its graph keeps the saved tensors, so no storage is used twice
        totals[name] = total[0]
        del kept
    assert totals["fused"] <= totals["in place"]
    assert totals["out of place"] >= 1.8 * totals["fused"]


@pytest.mark.parametrize("transposed", [False, True], ids=["conv", "transposed"])
def test_penalty_gradients_equal_pytorchs(transposed):
    network, images = stack(2, 4, 1, 1, True, transposed=transposed, layout=torch.channels_last)
    network, images = network.double(), images.double()
    plain = nn.Sequential(*(module for layer in network for module in _flat(layer.to_torch())))
    ours = torch.autograd.grad(penalty(network, images), [layer.weight for layer in network])
    theirs = torch.autograd.grad(
        penalty(plain, images), [m.weight for m in plain if hasattr(m, "weight")]
    )
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b)


def _flat(module):
    return list(module) if isinstance(module, nn.Sequential) else [module]


def test_the_outer_backward_computes_only_what_is_asked():
    network, images = stack(2, 4, 1, 1, True, transposed=False, layout=torch.channels_last)
    with Recorder(transposed=False) as recorder:
        value = penalty(network, images)
        recorder.calls.clear()
        torch.autograd.grad(value, network[0].weight)
    # The first layer's weight gradient, and no tangent beyond it: dgrad(g, w) alone holds w of
    # layer 1, but g runs through the tangent of the layers behind it only when their weights are
    # asked for.
    assert recorder.calls["weight gradient"] == 1
    assert recorder.calls["input gradient"] == 0
