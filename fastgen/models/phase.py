"""What a model tells a trainer: which parameters move, by which loss, how often."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain

from torch import Tensor, nn

Losses = dict[str, Tensor]
"""Named 0-dim tensors: ``"loss"`` is minimized, every other entry is detached and only logged."""


@dataclass(frozen=True)
class Phase:
    """One part of a training step: descend one loss in one set of parameters.

    A phase owns its parameters. The loss may also depend on others (a generator's loss runs through
    the discriminator); a trainer asks for ``torch.autograd.grad(losses["loss"],
    phase.parameters)``, so theirs are never computed and nothing has to be frozen.

    Attributes:
        name: what the phase trains; log entries are grouped under it.
        parameters: what moves.
        loss: from (images, labels) to the losses of this batch. It draws the noise it needs from
            torch's default generator of the model's device.
        repeats: how many times the phase runs in one step, each time on a fresh batch.
        after_step: runs after each update of the parameters, for constraints such as weight
            clipping.
    """

    name: str
    parameters: tuple[nn.Parameter, ...]
    loss: Callable[[Tensor, Tensor | None], Losses]
    repeats: int = 1
    after_step: Callable[[], None] | None = None


def trainable(*modules: nn.Module) -> tuple[nn.Parameter, ...]:
    """Every parameter of the modules that requires a gradient, each once."""
    parameters: Iterator[nn.Parameter] = chain.from_iterable(
        module.parameters() for module in modules
    )
    return tuple(dict.fromkeys(parameter for parameter in parameters if parameter.requires_grad))
