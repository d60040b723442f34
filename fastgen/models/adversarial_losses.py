"""The games a discriminator and a generator can play, as losses of logits.

All are written with softplus(t) = log(1 + e^t), so log D = -softplus(-logit) and log(1 - D) =
-softplus(logit): no probability is ever rounded to 0 or 1, and both value and gradient stay right
at logits of +-10,000.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class Game:
    """What each side minimizes: from logits of real and of generated images to a 0-dim loss."""

    discriminator: Callable[[Tensor, Tensor], Tensor]
    generator: Callable[[Tensor, Tensor], Tensor]
    generator_needs_real: bool = False
    """Whether the generator's loss looks at real images too."""


def value(real: Tensor, fake: Tensor) -> Tensor:
    """V = mean log D(x_i) + mean log(1 - D(G(z_i))); -log 4 where D cannot tell."""
    return -F.softplus(-real).mean() - F.softplus(fake).mean()


def _climb_value(real: Tensor, fake: Tensor) -> Tensor:
    return -value(real, fake)


def _descend_value(real: Tensor, fake: Tensor) -> Tensor:
    return -F.softplus(fake).mean()


def _climb_log_d(real: Tensor, fake: Tensor) -> Tensor:
    return F.softplus(-fake).mean()


def _hinge(real: Tensor, fake: Tensor) -> Tensor:
    return F.relu(1 - real).mean() + F.relu(1 + fake).mean()


def _climb_logit(real: Tensor, fake: Tensor) -> Tensor:
    return -fake.mean()


def _beat(winner: Tensor, loser: Tensor) -> Tensor:
    if winner.shape != loser.shape:
        raise ValueError(
            "the relativistic loss pairs each real image with a generated one, "
            f"so there must be as many (got batches of {len(winner)} and {len(loser)})"
        )
    return F.softplus(loser - winner).mean()


def _real_beats_fake(real: Tensor, fake: Tensor) -> Tensor:
    return _beat(real, fake)


def _fake_beats_real(real: Tensor, fake: Tensor) -> Tensor:
    return _beat(fake, real)


GAMES = {
    "non_saturating": Game(_climb_value, _climb_log_d),
    "minimax": Game(_climb_value, _descend_value),
    "hinge": Game(_hinge, _climb_logit),
    "relativistic": Game(_real_beats_fake, _fake_beats_real, generator_needs_real=True),
}
