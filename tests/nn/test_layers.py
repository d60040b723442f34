from __future__ import annotations

import copy
import re

import pytest
import torch
from torch import nn

from fastgen.nn import (
    BiasLeakyReLU,
    ConvLeakyReLU2d,
    ConvTransposeLeakyReLU2d,
    LinearLeakyReLU,
    Reparameterize,
)

ACTIVATIONS = [nn.LeakyReLU(0.2), nn.LeakyReLU(0.01), nn.ReLU(), None]
CONVOLUTIONS = [
    nn.Conv2d(3, 6, 3, padding=1),
    nn.Conv2d(3, 6, 4, 2, 1, bias=False),
    nn.Conv2d(3, 6, 3, padding="same", dilation=2),
    nn.Conv2d(3, 6, 3, padding=1, padding_mode="reflect"),
    nn.Conv2d(3, 6, (3, 2), padding=(1, 0), padding_mode="circular", groups=3),
]
TRANSPOSED = [
    nn.ConvTranspose2d(3, 6, 4, 2, 1),
    nn.ConvTranspose2d(3, 6, 3, 2, 1, output_padding=1, groups=3, bias=False),
    nn.ConvTranspose2d(3, 3, 3, 1, 1, dilation=2),
]
PAIRS = [
    *((ConvLeakyReLU2d, conv, (2, 3, 9, 8)) for conv in CONVOLUTIONS),
    *((ConvTransposeLeakyReLU2d, conv, (2, 3, 5, 4)) for conv in TRANSPOSED),
    (LinearLeakyReLU, nn.Linear(7, 5), (4, 7)),
    (LinearLeakyReLU, nn.Linear(7, 5, bias=False), (2, 3, 7)),
]


def sequence(layer, activation):
    return nn.Sequential(layer) if activation is None else nn.Sequential(layer, activation)


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=str)
@pytest.mark.parametrize(
    ("kind", "layer", "shape"), PAIRS, ids=lambda value: getattr(value, "__name__", None)
)
def test_from_torch_computes_the_same_to_the_second_order(kind, layer, shape, activation):
    random_state = torch.get_rng_state()
    fused = kind.from_torch(layer, activation)
    assert type(fused.to_torch()) in (type(layer), nn.Sequential)
    assert torch.equal(torch.get_rng_state(), random_state)
    plain = sequence(layer, activation)
    assert fused.weight is layer.weight
    x = torch.randn(shape, requires_grad=True)

    def derivatives(network):
        y = network(x)
        (g,) = torch.autograd.grad(y.pow(2).sum(), x, create_graph=True)
        (w,) = torch.autograd.grad(g.square().sum(), layer.weight)
        return y, g, w

    for ours, theirs in zip(derivatives(fused), derivatives(plain), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("kind", "layer", "shape"), PAIRS, ids=lambda value: getattr(value, "__name__", None)
)
def test_checkpoints_go_both_ways(kind, layer, shape):
    fused = kind.from_torch(layer, nn.LeakyReLU(0.2))
    assert isinstance(fused, type(layer))
    assert list(fused.state_dict()) == list(layer.state_dict())
    back = fused.to_torch()
    assert type(back[0]) is type(layer)
    assert back[1].negative_slope == 0.2
    x = torch.randn(shape)
    torch.testing.assert_close(back(x), fused(x), rtol=1e-4, atol=1e-5)
    linear = kind.from_torch(layer).to_torch()
    assert type(linear) is type(layer)
    linear.load_state_dict(fused.state_dict())
    evaluated = kind.from_torch(copy.deepcopy(layer).eval(), nn.LeakyReLU(0.2))
    assert not evaluated.training
    assert not evaluated.to_torch()[0].training


def test_constructors_take_the_parents_arguments():
    layer = ConvLeakyReLU2d(3, 8, 4, 2, 1, bias=False, dtype=torch.float64, negative_slope=0.1)
    assert layer.weight.dtype == torch.float64
    assert "negative_slope=0.1" in repr(layer)
    assert layer.negative_slope == 0.1
    assert ConvLeakyReLU2d(3, 8, 4).negative_slope == 0.2
    layer, x = ConvTransposeLeakyReLU2d(3, 2, 4), torch.randn(1, 3, 5, 5)
    plain = nn.functional.conv_transpose2d(x, layer.weight, layer.bias)
    torch.testing.assert_close(layer(x), nn.functional.leaky_relu(plain, 0.2))
    assert repr(layer).endswith("stride=(1, 1), negative_slope=0.2)")
    with pytest.raises(ValueError, match="negative_slope must lie in"):
        ConvLeakyReLU2d(3, 8, 4, negative_slope=2)


@pytest.mark.parametrize(
    ("kind", "arguments"),
    [
        (ConvLeakyReLU2d, (3, 8, 4)),
        (ConvTransposeLeakyReLU2d, (3, 8, 4)),
        (LinearLeakyReLU, (3, 8)),
        (BiasLeakyReLU, (3,)),
    ],
)
def test_initialization_can_be_skipped_and_a_device_given_by_place(kind, arguments):
    layer = nn.utils.skip_init(kind, *arguments, negative_slope=0.1)
    assert layer.negative_slope == 0.1
    assert {p.device.type for p in layer.parameters()} == {"cpu"}
    assert kind(*arguments, device="meta").bias.device.type == "meta"
    if kind is LinearLeakyReLU:
        assert kind(3, 8, True, "meta").weight.device.type == "meta"


def test_output_size_of_a_transposed_convolution_is_honored():
    layer = ConvTransposeLeakyReLU2d(3, 4, 3, stride=2, padding=1)
    assert layer(torch.randn(1, 3, 5, 5), output_size=[10, 10]).shape == (1, 4, 10, 10)


def test_an_activation_without_a_slope_is_refused():
    with pytest.raises(
        TypeError, match=r"activation must be nn.LeakyReLU, nn.ReLU or None \(got Tanh\)"
    ):
        ConvLeakyReLU2d.from_torch(CONVOLUTIONS[0], nn.Tanh())
    with pytest.raises(
        TypeError, match=r"must be nn.LeakyReLU, nn.ReLU, nn.Tanh or None \(got Sigmoid\)"
    ):
        ConvTransposeLeakyReLU2d.from_torch(nn.ConvTranspose2d(3, 4, 3), nn.Sigmoid())


class Standardized(nn.Conv2d):
    def forward(self, input):
        return self._conv_forward(input, self.weight - self.weight.mean(), self.bias)


class Enlarging(nn.ConvTranspose2d):
    def _output_padding(self, *arguments, **options):
        return [1, 1]


class Normalizing(nn.Linear):
    def forward(self, input):
        return super().forward(input / input.norm())


@pytest.mark.parametrize(
    ("kind", "layer", "why"),
    [
        (ConvLeakyReLU2d, ConvLeakyReLU2d(3, 4, 3), "has a forward of its own"),
        (ConvLeakyReLU2d, Standardized(3, 4, 3), "has a forward of its own"),
        (
            ConvLeakyReLU2d,
            nn.ConvTranspose2d(3, 4, 3),
            "must be an nn.Conv2d (got ConvTranspose2d)",
        ),
        (ConvLeakyReLU2d, nn.ReLU(), "must be an nn.Conv2d (got ReLU)"),
        (ConvTransposeLeakyReLU2d, Enlarging(3, 4, 3, 2), "has a _output_padding of its own"),
        (ConvTransposeLeakyReLU2d, nn.Conv2d(3, 4, 3), "must be an nn.ConvTranspose2d"),
        (LinearLeakyReLU, Normalizing(3, 4), "has a forward of its own"),
        (LinearLeakyReLU, nn.Conv2d(3, 4, 3), "must be an nn.Linear"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_from_torch_refuses_what_may_compute_something_else(kind, layer, why):
    with pytest.raises(TypeError, match=re.escape(why)):
        kind.from_torch(layer)


@pytest.mark.parametrize(
    "parametrize",
    [
        torch.nn.utils.parametrizations.spectral_norm,
        torch.nn.utils.parametrizations.weight_norm,
        torch.nn.utils.spectral_norm,
    ],
)
@pytest.mark.parametrize(("kind", "layer", "shape"), [PAIRS[0], PAIRS[5], PAIRS[8]], ids=str)
def test_a_parametrized_weight_is_not_lost_but_refused(parametrize, kind, layer, shape):
    with pytest.raises(TypeError, match="parametrization"):
        kind.from_torch(parametrize(copy.deepcopy(layer)))
    ours = kind.from_torch(layer)
    with pytest.raises(TypeError, match="parametrization"):
        parametrize(ours).to_torch()
    ours = parametrize(kind.from_torch(copy.deepcopy(layer)))  # what the message says to do
    assert ours(torch.randn(shape)).isfinite().all()


def test_spectral_norm_and_pickling_by_state_dict_work():
    layer = torch.nn.utils.parametrizations.spectral_norm(ConvLeakyReLU2d(3, 4, 3))
    for _ in range(30):
        layer(torch.randn(1, 3, 5, 5))
    assert torch.linalg.matrix_norm(layer.weight.flatten(1), 2).item() == pytest.approx(1, abs=1e-2)


def test_bias_leaky_relu_starts_as_leaky_relu_and_learns_its_bias():
    layer = BiasLeakyReLU(3)
    x = torch.randn(2, 3, 4, 4)
    torch.testing.assert_close(layer(x), nn.functional.leaky_relu(x, 0.2))
    layer(x).sum().backward()
    assert layer.bias.grad.shape == (3,)
    assert layer(x.bfloat16()).dtype == torch.bfloat16  # as behind a layer under autocast


def test_reparameterize_draws_in_training_and_returns_the_mean_in_evaluation():
    layer = Reparameterize()
    mu, logvar = torch.randn(4, 3), torch.zeros(4, 3)
    assert not torch.equal(layer(mu, logvar), mu)
    assert torch.equal(layer.eval()(mu, logvar), mu)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_linear_under_autocast_follows_pytorch(dtype):
    layer, x = LinearLeakyReLU(4, 3), torch.randn(2, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
        assert layer(x).dtype == nn.Linear(4, 3)(x).dtype == dtype


def test_linear_has_its_shape_on_other_devices_too():
    layer = LinearLeakyReLU(7, 5, device="meta")
    assert layer(torch.randn(2, 3, 7, device="meta")).shape == (2, 3, 5)


def test_a_transposed_layer_takes_tanh_and_gives_it_back():
    torch.manual_seed(0)
    plain = nn.Sequential(nn.ConvTranspose2d(4, 3, 4, 2, 1), nn.Tanh())
    fused = ConvTransposeLeakyReLU2d.from_torch(*plain)
    x = torch.randn(2, 4, 5, 5)
    torch.testing.assert_close(fused(x), plain(x))
    back = fused.to_torch()
    assert [type(m) for m in back] == [nn.ConvTranspose2d, nn.Tanh]
    assert torch.equal(back(x), plain(x))
    assert "tanh=True" in repr(fused)
