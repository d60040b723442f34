from __future__ import annotations

from collections.abc import Callable
from math import log

import numpy as np
import pytest
import torch
from scipy.special import expit, log_expit

from fastgen.models.adversarial_losses import GAMES, value

BIG = 1e4
Formula = Callable[[np.ndarray, np.ndarray], float]

# Per loss: what each side minimizes, in plain probabilities [NumPy].
FORMULAS: dict[str, tuple[Formula, Formula]] = {
    "non_saturating": (
        lambda real, fake: -(np.log(expit(real)).mean() + np.log(1 - expit(fake)).mean()),
        lambda real, fake: -np.log(expit(fake)).mean(),
    ),
    "minimax": (
        lambda real, fake: -(np.log(expit(real)).mean() + np.log(1 - expit(fake)).mean()),
        lambda real, fake: np.log(1 - expit(fake)).mean(),
    ),
    "hinge": (
        lambda real, fake: np.maximum(0, 1 - real).mean() + np.maximum(0, 1 + fake).mean(),
        lambda real, fake: -fake.mean(),
    ),
    "relativistic": (
        lambda real, fake: -np.log(expit(real - fake)).mean(),
        lambda real, fake: -np.log(expit(fake - real)).mean(),
    ),
}

# Per loss at (real, fake) logits: the discriminator's loss and its gradient in both, then the same
# for the generator (whose real logits are data: no gradient is asked there).
EXTREMES = {
    ("non_saturating", BIG, -BIG): ((0, 0, 0), (BIG, -1)),
    ("non_saturating", -BIG, BIG): ((2 * BIG, -1, 1), (0, 0)),
    ("minimax", BIG, -BIG): ((0, 0, 0), (0, 0)),
    ("minimax", -BIG, BIG): ((2 * BIG, -1, 1), (-BIG, -1)),
    ("hinge", BIG, -BIG): ((0, 0, 0), (BIG, -1)),
    ("hinge", -BIG, BIG): ((2 * BIG + 2, -1, 1), (-BIG, -1)),
    ("relativistic", BIG, -BIG): ((0, 0, 0), (2 * BIG, -1)),
    ("relativistic", -BIG, BIG): ((2 * BIG, -1, 1), (0, 0)),
}


@pytest.mark.parametrize("name", GAMES)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_each_game_is_its_formula(name: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    real, fake = rng.normal(size=17), rng.normal(size=17)
    game = GAMES[name]
    of_discriminator, of_generator = FORMULAS[name]
    logits = torch.tensor(real), torch.tensor(fake)
    assert game.discriminator(*logits).item() == pytest.approx(of_discriminator(real, fake))
    assert game.generator(*logits).item() == pytest.approx(of_generator(real, fake))


@pytest.mark.parametrize(("name", "real", "fake"), EXTREMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_losses_and_gradients_are_right_at_extreme_logits(
    name: str, real: float, fake: float, dtype: torch.dtype
) -> None:
    game = GAMES[name]
    (loss, d_real, d_fake), (generator_loss, d_generator) = EXTREMES[name, real, fake]
    logits = [torch.full((3,), t, dtype=dtype, requires_grad=True) for t in (real, fake)]

    result = game.discriminator(*logits)
    gradients = torch.autograd.grad(result, logits)
    assert result.item() == loss
    assert [g.sum().item() for g in gradients] == pytest.approx([d_real, d_fake])

    result = game.generator(*logits)
    (gradient,) = torch.autograd.grad(result, logits[1])
    assert result.item() == generator_loss
    assert gradient.sum().item() == pytest.approx(d_generator)


def test_the_value_keeps_its_digits_in_the_tails() -> None:
    """In float32 1 - sigmoid(20) is 2e-9, which 1 - D rounds to 0; softplus does not."""
    logits = torch.linspace(-80, 80, 41)
    for logit in logits:
        exact = log_expit(logit.item()) + log_expit(-logit.item())
        assert value(logit[None], logit[None]).item() == pytest.approx(exact, rel=1e-6)


@pytest.mark.parametrize("n", [1, 3, 128])
def test_the_value_is_minus_log_4_where_d_cannot_tell(n: int) -> None:
    zero = torch.zeros(n, dtype=torch.float64)
    assert value(zero, zero).item() == pytest.approx(-log(4), abs=1e-15)


def test_batches_of_different_sizes_play_every_game_but_the_paired_one() -> None:
    real, fake = torch.randn(3), torch.randn(5)
    for name, game in GAMES.items():
        if name == "relativistic":
            with pytest.raises(ValueError, match="batches of 3 and 5"):
                game.discriminator(real, fake)
            with pytest.raises(ValueError, match="pairs each real image"):
                game.generator(real, fake)
        else:
            assert game.discriminator(real, fake).isfinite()
