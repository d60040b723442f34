"""Print what a layer costs the host beside its kernels, and small critics over eager PyTorch.

    python benchmarks/small_layers.py [--rounds 300]

Medians of process time over interleaved rounds on a CPU, one thread, channels_last, float32. The
other side is `torch.nn.Conv2d` with `torch.nn.LeakyReLU` in place.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable

import torch
from critics import penalty
from torch import Tensor, nn

import fastgen
from fastgen.bench.timing import measure
from fastgen.nn import ConvLeakyReLU2d

LAYERS = ((8, 4, 1), (16, 8, 1), (16, 8, 4), (16, 16, 8))  # channels, height and width, pictures
CRITICS = ((4, 1), (8, 4), (8, 16), (16, 16))  # channels of the first layer, pictures of 16x16


def layer_pair(channels: int) -> dict[str, nn.Module]:
    """A 3x3 layer of ours and PyTorch's, of the same weights."""
    ours = ConvLeakyReLU2d(channels, channels, 3, padding=1).to(memory_format=torch.channels_last)
    eager = copy.deepcopy(ours).to_torch()
    eager[1].inplace = True
    return {"eager": eager, "fastgen": ours}


def critic_pair(width: int) -> dict[str, nn.Module]:
    """A critic of three layers and a score, eager and accelerated."""
    eager = nn.Sequential(
        nn.Conv2d(1, width, 4, 2, 1), nn.LeakyReLU(0.2, inplace=True),
        nn.Conv2d(width, 2 * width, 4, 2, 1), nn.LeakyReLU(0.2, inplace=True),
        nn.Conv2d(2 * width, 4 * width, 3, 1, 1), nn.LeakyReLU(0.2, inplace=True),
        nn.Conv2d(4 * width, 1, 4),
    ).to(memory_format=torch.channels_last)  # fmt: skip
    ours = copy.deepcopy(eager)
    fastgen.accelerate(ours, verbose=False)
    return {"eager": eager, "fastgen": ours}


def images(pictures: int, channels: int, size: int) -> Tensor:
    batch = torch.randn(pictures, channels, size, size)
    return batch.contiguous(memory_format=torch.channels_last)


def call(module: nn.Module, batch: Tensor) -> None:
    with torch.no_grad():
        module(batch)


def forward(module: nn.Module, batch: Tensor) -> None:
    module(batch.detach().requires_grad_())


def step(module: nn.Module, batch: Tensor) -> None:
    """Forward and backward, the gradient of the pictures too."""
    module.zero_grad()
    output = module(batch.detach().requires_grad_())
    output.backward(torch.ones_like(output))


def first_order(critic: nn.Module, batch: Tensor) -> None:
    critic.zero_grad()
    critic(batch).mean().backward()


def second_order(critic: nn.Module, batch: Tensor) -> None:
    """A critic step with its gradient penalty."""
    critic.zero_grad()
    (critic(batch).mean() + penalty(critic, batch)).backward()


def medians(
    work: Callable[[nn.Module, Tensor], None],
    modules: dict[str, nn.Module],
    batch: Tensor,
    rounds: int,
) -> tuple[float, float]:
    """Microseconds of eager PyTorch and of fastgen."""
    calls = {name: lambda module=module: work(module, batch) for name, module in modules.items()}
    times = measure(calls, device="cpu", rounds=rounds)
    return 1e6 * times["eager"].median_s, 1e6 * times["fastgen"].median_s


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=300)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    torch.manual_seed(0)
    for channels, size, pictures in LAYERS:
        modules, batch = layer_pair(channels), images(pictures, channels, size)
        for work in (call, forward, step):
            eager, ours = medians(work, modules, batch, rounds)
            print(
                f"3x3, {channels} channels, {size}x{size}, batch {pictures}, {work.__name__}: "
                f"eager {eager:.1f} us, fastgen {ours - eager:+.1f} us"
            )
    for width, pictures in CRITICS:
        modules, batch = critic_pair(width), images(pictures, 1, 16)
        for work in (first_order, second_order):
            eager, ours = medians(work, modules, batch, rounds)
            print(
                f"critic from {width} channels, batch {pictures}, {work.__name__}: "
                f"eager {eager:.0f} us, {eager / ours:.2f} times as fast"
            )


if __name__ == "__main__":
    main()
