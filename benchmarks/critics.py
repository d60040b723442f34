"""The critics that the penalty benchmarks differentiate twice, from torch.nn layers or from
fastgen's.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fastgen.bench.steps import compiled_penalty
from fastgen.nn import ConvLeakyReLU2d, LinearLeakyReLU


class Critic(NamedTuple):
    """Kernel, padding and widths of a stack of stride-2 convolutions, and the pictures that it
    sees.
    """

    kernel: int
    padding: int
    widths: tuple[int, ...]
    image_size: int
    batch_size: int


CRITICS = {
    # Radford, Metz, Chintala 2016, at the width and batch size of a two-core machine.
    "dcgan-64": Critic(
        kernel=4, padding=1, widths=(32, 64, 128, 256), image_size=64, batch_size=32
    ),
    # Gulrajani et al. 2017, the CIFAR-10 critic without residual blocks: 5x5, stride 2, width 128.
    "wgan-gp-32": Critic(kernel=5, padding=2, widths=(128, 256, 512), image_size=32, batch_size=32),
}


def build(name: str, *, fused: bool) -> nn.Sequential:
    """The critic from fastgen's layers, or from torch.nn's with LeakyReLU in place."""
    critic = CRITICS[name]
    layers: list[nn.Module] = []
    channels = 3
    for width in critic.widths:
        shape = (channels, width, critic.kernel, 2, critic.padding)
        if fused:
            layers.append(ConvLeakyReLU2d(*shape))
        else:
            layers += [nn.Conv2d(*shape), nn.LeakyReLU(0.2, inplace=True)]
        channels = width
    features = channels * (critic.image_size // 2 ** len(critic.widths)) ** 2
    head = LinearLeakyReLU(features, 1, negative_slope=1) if fused else nn.Linear(features, 1)
    return nn.Sequential(*layers, nn.Flatten(), head)


def pair(
    name: str, dtype: torch.dtype, memory_format: torch.memory_format
) -> tuple[nn.Module, nn.Module, Tensor]:
    """(PyTorch's critic, fastgen's with the same weights, images), in one dtype and layout."""
    torch.manual_seed(0)
    critic = CRITICS[name]
    eager, fused = build(name, fused=False), build(name, fused=True)
    for target, source in zip(fused.parameters(), eager.parameters(), strict=True):
        target.data.copy_(source.data)
    images = torch.randn(critic.batch_size, 3, critic.image_size, critic.image_size, dtype=dtype)
    eager.to(dtype=dtype, memory_format=memory_format)
    fused.to(dtype=dtype, memory_format=memory_format)
    return eager, fused, images.contiguous(memory_format=memory_format)


def penalty(critic: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    """The gradient penalty mean (|grad f(x)| - 1)^2, ready for a backward."""
    return _penalty_at(critic, images.detach().requires_grad_())


def _penalty_at(critic: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    (gradient,) = torch.autograd.grad(critic(images).sum(), images, create_graph=True)
    return (gradient.float().square().sum((1, 2, 3)).sqrt() - 1).square().mean()


def penalty_step(critic: nn.Module, images: Tensor) -> None:
    """Penalty and backward: the gradients end up in the parameters."""
    critic.zero_grad()
    penalty(critic, images).backward()


def compiled_penalty_step(critic: torch.nn.Module, images: torch.Tensor) -> Callable[[], None]:
    """The whole penalty compiled; it needs the images to require a gradient from outside."""
    compiled = compiled_penalty(partial(_penalty_at, critic))

    def step() -> None:
        critic.zero_grad()
        compiled(images.detach().requires_grad_()).backward()

    return step
