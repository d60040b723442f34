"""Whole training steps: losses, gradients and optimizer, PyTorch's and fastgen's.

Both sides train the same networks with the same losses, fused Adam and precision. PyTorch's side is
what a careful user writes: plain layers, LeakyReLU in place.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fastgen.models import GAN, VAE, WGAN, Model, Phase

from . import peers
from .work import Work, work_per_batch

LATENTS = 128
BETAS = (0.5, 0.9)
Losses = list[tuple[Callable[[Tensor], Tensor], list[nn.Parameter]]]
"""What a step minimizes, one loss after the other, each with the parameters that it moves."""


class Step(NamedTuple):
    """A model, its batch and the size of its pictures and networks."""

    name: str
    model: type[Model]
    batch: int
    size: int = 64
    width: int = 64

    def build(self) -> Any:
        """The model, with the same weights every time."""
        torch.manual_seed(0)
        return self.model.for_images(  # type: ignore[attr-defined]
            (3, self.size, self.size), latent_dim=LATENTS, width=self.width
        )

    def images(self, device: torch.device, layout: torch.memory_format) -> Tensor:
        """Random pictures with values in [-1, 1], one batch."""
        shape = (self.batch, 3, self.size, self.size)
        images = torch.rand(shape, device=device).mul_(2).sub_(1)
        return images.contiguous(memory_format=layout)


class CriticAlone(WGAN):
    """A Wasserstein GAN that trains its critic only: one update with the gradient penalty."""

    def phases(self) -> list[Phase]:
        return [replace(super().phases()[0], repeats=1)]


STEPS = {
    "dcgan-64": Step("DCGAN-64 step", GAN, 128),
    "critic": Step("WGAN-GP critic step", CriticAlone, 64),
    "vae": Step("VAE step", VAE, 128),
}
"""As a GPU trains them."""

CPU_STEPS = {kind: step._replace(batch=64, width=32) for kind, step in STEPS.items()}
"""As two cores train them."""

PENALTY = "compile penalty"
"""The mode in which the loss behind a critic's pictures is compiled, by a private flag of PyTorch's
that lets torch.compile trace `torch.autograd.grad`."""

COMPILED = {
    "dcgan-64": ("compile", "compile max-autotune"),
    "critic": (PENALTY,),  # torch.compile refuses a gradient of a gradient
    "vae": ("compile", "compile max-autotune"),
}
"""The modes of torch.compile in which each kind of step can be compiled."""


class Loop:
    """A hand-written training step: losses, each with its parameters and an optimizer."""

    def __init__(self, losses: Losses, images: Tensor, precision: str, *, capturable: bool = False):
        self.images, self._mixed = images, precision == "bfloat16"
        self._losses = [
            (
                loss,
                parameters,
                torch.optim.Adam(
                    parameters, lr=2e-4, betas=BETAS, fused=True, capturable=capturable
                ),
            )
            for loss, parameters in losses
        ]

    def step(self, images: Tensor) -> list[Tensor]:
        """One step; the losses before it."""
        values = []
        for loss, parameters, optimizer in self._losses:
            torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
            with torch.autocast(images.device.type, torch.bfloat16, self._mixed):
                value = loss(images)
            gradients = torch.autograd.grad(value, parameters)
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.grad = gradient
            optimizer.step()
            values.append(value.detach())
        return values

    def run(self, steps: int) -> None:
        for _ in range(steps):
            self.step(self.images)


def loop(
    kind: str,
    step: Step,
    precision: str,
    mode: str | None,
    device: torch.device,
    layout: torch.memory_format = torch.channels_last,
) -> Loop:
    """PyTorch's loop of one kind of step, eager or through torch.compile in a mode."""
    model = step.build()
    losses = _peer_losses(kind, model, mode, device, layout)
    return Loop(losses, step.images(device, layout), precision)


def fastgen_loop(
    step: Step, precision: str, device: torch.device, *, capturable: bool = False
) -> Loop:
    """The same step by fastgen's model, as its trainer runs it, channels_last."""
    model = step.build().to(device=device, memory_format=torch.channels_last)
    images = step.images(device, torch.channels_last)
    return Loop(fastgen_losses(model), images, precision, capturable=capturable)


def fastgen_losses(model: Model) -> Losses:
    """The losses of a model's phases."""

    def loss(phase: Phase, images: Tensor) -> Tensor:
        return phase.loss(images, None)["loss"]

    return [(partial(loss, phase), list(phase.parameters)) for phase in model.phases()]


def work(step: Step) -> Work:
    """The products of one step's losses and gradients; the optimizer's pass is left out."""

    def losses_of(batch: int) -> Callable[[], object]:
        part = step._replace(batch=batch)
        made = fastgen_loop(part, "float32", torch.device("cpu"))
        return partial(made.step, made.images)

    return work_per_batch(losses_of, step.batch)


def _peer_losses(
    kind: str, model: Any, mode: str | None, device: torch.device, layout: torch.memory_format
) -> Losses:
    wrap: Any = partial(torch.compile, mode=peers.COMPILE_MODES.get(mode)) if mode else _as_it_is

    def network(module: nn.Module) -> nn.Module:
        return peers.plain(module).to(device=device, memory_format=layout)  # type: ignore[call-overload, no-any-return]

    def noise(x: Tensor) -> Tensor:
        return torch.randn(len(x), LATENTS, device=x.device)

    if kind == "vae":
        encoder, decoder = network(model.encoder), network(model.decoder)
        log_sigma = nn.Parameter(model.pixel_noise.log_sigma.detach().clone().to(device))
        parameters = [*encoder.parameters(), *decoder.parameters(), log_sigma]
        bound = wrap(lambda x: peers.vae_loss(encoder, decoder, log_sigma, x, noise(x)))
        return [(bound, parameters)]
    if kind == "critic":
        critic, generator = network(model.critic), network(model.generator)
        loss_at: Callable[..., Tensor] = partial(peers.critic_loss_at, critic)
        if mode == PENALTY:
            loss_at = compiled_penalty(loss_at)

        def critic_loss(x: Tensor) -> Tensor:
            u = torch.rand(len(x), 1, 1, 1, device=x.device)
            value: Tensor = loss_at(x, *peers.critic_images(generator, x, noise(x), u))
            return value

        return [(critic_loss, list(critic.parameters()))]
    judge, generator = network(model.discriminator), network(model.generator)
    return [
        (
            wrap(lambda x: peers.discriminator_loss(judge, generator, x, noise(x))),
            list(judge.parameters()),
        ),
        (
            wrap(lambda x: peers.generator_loss(judge, generator, noise(x))),
            list(generator.parameters()),
        ),
    ]


def _as_it_is(function: Any) -> Any:
    return function


def compiled_penalty(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A function with `torch.autograd.grad` inside through torch.compile, by its private flag.

    What the gradient is taken in must require it from outside.
    """
    compiled = torch.compile(function)

    def call(*arguments: Tensor) -> Tensor:
        with torch._dynamo.config.patch(trace_autograd_ops=True):
            value: Tensor = compiled(*arguments)
        return value

    return call
