"""PyTorch's counter finds as many multiplications in fastgen's layers as in the layers they are."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from fastgen.nn import ConvLeakyReLU2d, ConvTransposeLeakyReLU2d
from fastgen.ops import flops

NETWORKS = {
    "critic": (
        lambda: nn.Sequential(
            ConvLeakyReLU2d(3, 16, 4, stride=2, padding=1),
            ConvLeakyReLU2d(16, 32, 4, stride=2, padding=1),
            ConvLeakyReLU2d(32, 32, 5, stride=2, padding=2),
            ConvLeakyReLU2d(32, 1, 4, negative_slope=1),
        ),
        (4, 3, 32, 32),
    ),
    "generator": (
        lambda: nn.Sequential(
            ConvTransposeLeakyReLU2d(8, 64, 4),
            ConvTransposeLeakyReLU2d(64, 32, 4, stride=2, padding=1),
            ConvTransposeLeakyReLU2d(32, 3, 4, stride=2, padding=1, tanh=True),
        ),
        (4, 8, 1, 1),
    ),
    "stride 1": (
        lambda: nn.Sequential(
            ConvLeakyReLU2d(3, 32, 3, padding=1),
            ConvLeakyReLU2d(32, 32, 3, padding=1),
            ConvLeakyReLU2d(32, 24, 3, padding=1, groups=4),
            ConvLeakyReLU2d(24, 24, 3),
            ConvLeakyReLU2d(24, 3, 3, padding=1),
            ConvTransposeLeakyReLU2d(3, 32, 3, padding=1),
            ConvTransposeLeakyReLU2d(32, 3, 3),
        ),
        (4, 3, 24, 24),
    ),
}


def counted(network: nn.Module, x: torch.Tensor, *, backward: bool) -> int:
    with FlopCounterMode(display=False) as counter, torch.set_grad_enabled(backward):
        y = network(x)
        if backward:
            y.sum().backward()
    return counter.get_total_flops()


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_counts_as_pytorchs_own_layers(name, backward, layout):
    make, shape = NETWORKS[name]
    ours = make().to(memory_format=layout)
    theirs = nn.Sequential(*(layer.to_torch() for layer in ours))
    x = torch.randn(shape).to(memory_format=layout).requires_grad_(backward)
    number = counted(ours, x, backward=backward)
    assert number == counted(theirs, x, backward=backward) > 0


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("winograd_conv2d", ((2, 16, 8, 8), (32, 16, 4, 4))),
        ("winograd_conv2d_weight_gradient", ((2, 16, 8, 8), (2, 32, 4, 4))),
        ("winograd_conv_transpose2d", ((2, 32, 4, 4), (32, 16, 4, 4))),
    ],
)
def test_a_pass_counts_the_products_of_its_definition(name, arguments):
    results = {
        "winograd_conv2d": (2, 32, 4, 4),
        "winograd_conv2d_weight_gradient": (32, 16, 4, 4),
        "winograd_conv_transpose2d": (2, 16, 8, 8),
    }
    formula = flops.FORMULAS["fastgen"][name]
    assert formula(*arguments, out_shape=results[name]) == 2 * 2 * (4 * 4) * 32 * 16 * (4 * 4)


def test_the_counter_is_imported_by_nobody_who_does_not_count():
    code = "import sys, fastgen.nn; sys.exit('torch.utils.flop_counter' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
