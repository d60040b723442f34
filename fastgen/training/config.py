"""How each model is built and trained by default, and what may be set: one table, `RECIPES`.

Nothing here imports torch until a model is built, so that the command line answers at once.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import inf
from typing import TYPE_CHECKING, Any

from .run_folder import Settings

if TYPE_CHECKING:
    from fastgen.data import Splits
    from fastgen.models import Model


class ConfigError(ValueError):
    """A setting is unknown, or means nothing for this model."""


@dataclass(frozen=True)
class Recipe:
    """One model: what it is, the settings that it has with their defaults, how it is built."""

    summary: str
    defaults: Mapping[str, Any]
    build: Callable[[Settings], Model]


def resolve(model: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """All settings of a training: those given, the model's defaults for the others.

    Args:
        model: a name in `RECIPES`.
        given: settings by name; None means not given.

    Raises:
        ConfigError: a setting that this model does not have, or a value that makes no sense.
    """
    if model not in RECIPES:
        raise ConfigError(f"the model must be one of {', '.join(RECIPES)} (got {model!r})")
    defaults = {**COMMON, **RECIPES[model].defaults}
    chosen = {option: value for option, value in given.items() if value is not None}
    for option in chosen:
        if option not in defaults:
            owners = [name for name, recipe in RECIPES.items() if option in recipe.defaults]
            flag = "--" + option.replace("_", "-")
            raise ConfigError(f"{flag} means nothing for {model}: it is for {', '.join(owners)}")
        if option in ALLOWED:
            _check(option, chosen[option])
    settings = {"model": model, **defaults, **chosen}
    settings["data"] = absolute_data(settings["data"])
    for option, spell in SPELLINGS.get(model, {}).items():
        settings[option] = spell(settings[option])
    return settings


def check_device(device: str, capture: str = "auto") -> None:
    """Make sure that ``--device`` and ``--capture`` have a meaning, on whatever machine.

    Raises:
        ConfigError: one of them has none.
    """
    _check("device", device)
    _check("capture", capture)


def check_seed(seed: int) -> None:
    """Make sure that ``--seed`` is one that torch can take.

    Raises:
        ConfigError: it is not.
    """
    _check("seed", seed)


def with_data(settings: Mapping[str, Any]) -> tuple[dict[str, Any], Splits]:
    """Load the data that settings name, and add to them what a model must know of it.

    Raises:
        DataError: the data cannot be used.
        ConfigError: a classifier without labels.
    """
    from fastgen.data import fingerprint, load

    splits = load(settings["data"], image_size=settings["image_size"])
    channels, height, width = splits.train.image_shape
    known = {
        # A size that was not given and one that is the data's own are the same setting.
        "image_size": height if height == width else None,
        "image_shape": [channels, height, width],
        "data_fingerprint": fingerprint(splits.train),
    }
    if settings["model"] == "classifier":
        if splits.train.labels is None:
            raise ConfigError(
                f"a classifier needs labels, and {settings['data']} has none: {TO_LABEL}"
            )
        known["classes"] = splits.train.classes
    return {**settings, **known}, splits


def build_model(settings: Settings) -> Model:
    """Build the model that settings describe, with weights that are a function of the seed.

    Raises:
        ValueError: images of this size or classes of this number are impossible for it.
    """
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings["seed"])
        return RECIPES[settings["model"]].build(settings)


def absolute_data(spec: str) -> str:
    """A data specification that means the same in every working folder.

    Raises:
        ConfigError: it is empty.
    """
    from fastgen.data import SOURCES

    name, _, folder = spec.partition(":")
    if not spec:  # an unset variable of the shell, and not the working folder
        raise ConfigError("--data must say where the images are (got an empty text)")
    if name not in SOURCES:
        return os.path.abspath(os.path.expanduser(spec))
    if not (folder and SOURCES[name].folder):  # `load` says what is wrong with it, if anything is
        return spec
    return f"{name}:{os.path.abspath(os.path.expanduser(folder))}"


def parse_terms(
    text: str, known: Mapping[str, float | None], *, several: bool = False
) -> dict[str, float | None]:
    """Read ``"name"``, ``"name:number"`` or, if several are allowed, a list with commas.

    Args:
        known: the names and their default numbers; None for a name that takes no number.

    Returns:
        The numbers by name; empty for ``"none"``.

    Raises:
        ConfigError: something else; the message says what can be written.
    """
    terms: dict[str, float | None] = {}
    for term in [] if text == "none" else text.replace("_", "-").split(","):
        name, colon, number = term.strip().partition(":")
        meant = name in known and name not in terms and not (colon and known[name] is None)
        if not meant or (terms and not several):
            raise ConfigError(
                f"--regularizer must be {term_forms(known, several=several)} (got {text!r})"
            )
        try:
            terms[name] = float(number) if colon else known[name]
        except ValueError as error:
            raise ConfigError(f"--regularizer {text}: {number!r} is not a number") from error
    return terms


def spell_terms(known: Mapping[str, float | None], *, several: bool) -> Callable[[str], str]:
    """What gives terms their one spelling: ``"R1 "`` and ``"r1:1"`` must not look different."""

    def spell(text: str) -> str:
        terms = parse_terms(text, known, several=several)
        spelled = [
            name if number is None else f"{name}:{_shortest(number)}"
            for name, number in terms.items()
        ]
        return ",".join(spelled) or "none"

    return spell


def _shortest(number: float) -> str:
    short = f"{number:g}"  # six digits
    return short if float(short) == number else repr(number)


def spell_loss(text: str) -> str:
    """The one spelling of a GAN's loss."""
    name = text.replace("_", "-")
    if name not in GAN_LOSSES:
        raise ConfigError(f"--loss must be one of {', '.join(GAN_LOSSES)} (got {text!r})")
    return name


def term_forms(known: Mapping[str, float | None], *, several: bool = False) -> str:
    """What can be written for terms, for messages."""
    forms = [name if number is None else f"{name}:{number:g}" for name, number in known.items()]
    return f"none, {', '.join(forms)}" + (" or several joined by commas" if several else "")


def _check(option: str, value: Any) -> None:
    words, allowed = ALLOWED[option]
    if not allowed(value):
        raise ConfigError(f"--{option} must be {words} (got {value!r})")


def _gan(settings: Settings) -> Model:
    from fastgen.models import GAN

    penalties = parse_terms(settings["regularizer"], GAN_PENALTIES, several=True)
    return GAN.for_images(
        settings["image_shape"],
        latent_dim=settings["latent_dim"],
        width=settings["width"],
        loss=settings["loss"].replace("-", "_"),
        r1=penalties.get("r1") or 0.0,
        r2=penalties.get("r2") or 0.0,
    )


def _wgan(settings: Settings) -> Model:
    from fastgen.models import REGULARIZERS, WGAN

    terms = parse_terms(settings["regularizer"], WGAN_REGULARIZERS)
    made = [
        REGULARIZERS[name.replace("-", "_")](*([] if number is None else [number]))
        for name, number in terms.items()
    ]
    return WGAN.for_images(
        settings["image_shape"],
        latent_dim=settings["latent_dim"],
        width=settings["width"],
        regularizer=made[0] if made else None,
        critic_steps=settings["critic_steps"],
    )


def _autoencoder(settings: Settings) -> Model:
    from fastgen.models import Autoencoder

    return Autoencoder.for_images(
        settings["image_shape"], latent_dim=settings["latent_dim"], width=settings["width"]
    )


def _vae(settings: Settings) -> Model:
    from fastgen.models import VAE

    return VAE.for_images(
        settings["image_shape"], latent_dim=settings["latent_dim"], width=settings["width"]
    )


def _classifier(settings: Settings) -> Model:
    from fastgen.models import Classifier

    return Classifier.for_images(
        settings["image_shape"], settings["classes"], width=settings["width"]
    )


GAN_LOSSES = ("non-saturating", "minimax", "hinge", "relativistic")
GAN_PENALTIES = {"r1": 1.0, "r2": 1.0}
WGAN_REGULARIZERS = {"gradient-penalty": 10.0, "weight-clipping": 0.01, "spectral-norm": None}

SPELLINGS: dict[str, dict[str, Callable[[str], str]]] = {
    "gan": {"loss": spell_loss, "regularizer": spell_terms(GAN_PENALTIES, several=True)},
    "wgan": {"regularizer": spell_terms(WGAN_REGULARIZERS, several=False)},
}

TO_LABEL = "put the pictures into one sub-folder per class, or images and labels into a FILE.npz"
"""How data gets labels, for messages."""

ALLOWED: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "lr": ("a finite number above 0", lambda lr: 0 < lr < inf),
    "ema": ("a number from 0 up to, but not including, 1", lambda ema: 0 <= ema < 1),
    "seed": (f"a whole number from 0 to {2**64 - 1}", lambda seed: 0 <= seed < 2**64),
    "precision": ("fp32 or bf16", ("fp32", "bf16").__contains__),
    "device": (
        "auto, cpu, cuda or a GPU by its number, as cuda:1",
        lambda device: re.fullmatch(r"auto|cpu|cuda(:\d+)?", device) is not None,
    ),
    "capture": ("auto, off or on", ("auto", "off", "on").__contains__),
}
"""What an option may be beyond its type, in words and as a test."""

COMMON: dict[str, Any] = {
    "data": "digits",
    "image_size": None,
    "batch_size": 64,
    "seed": 0,
    "precision": "fp32",
}

RECIPES: dict[str, Recipe] = {
    "gan": Recipe(
        "a generator against a discriminator",
        {
            "steps": 4000,
            "width": 32,
            "latent_dim": 64,
            "loss": "non-saturating",
            "regularizer": "r1:1",
            "lr": 1e-3,
            "betas": [0.0, 0.99],
            "ema": 0.999,
        },
        _gan,
    ),
    "wgan": Recipe(
        "a generator against a critic, the Wasserstein distance",
        {
            "steps": 3000,
            "width": 32,
            "latent_dim": 64,
            "regularizer": "gradient-penalty:10",
            "critic_steps": 2,
            "lr": 5e-4,
            "betas": [0.0, 0.9],
            "ema": 0.999,
        },
        _wgan,
    ),
    "autoencoder": Recipe(
        "a bottleneck",
        {"steps": 2000, "width": 32, "latent_dim": 16, "lr": 1e-3, "betas": [0.9, 0.999]},
        _autoencoder,
    ),
    "vae": Recipe(
        "a probabilistic autoencoder with a likelihood",
        {"steps": 2000, "width": 32, "latent_dim": 16, "lr": 1e-3, "betas": [0.9, 0.999]},
        _vae,
    ),
    "classifier": Recipe(
        "class probabilities",
        {"steps": 1500, "width": 32, "augment": True, "lr": 1e-3, "betas": [0.9, 0.999]},
        _classifier,
    ),
}
"""Adding a model to the command line is one entry here.

The numbers were chosen on digits of 16x16, for one or two minutes on two cores. With seed 0:
Frechet distances of 0.11 (gan) and 0.13 (wgan) beside a floor of 0.027, and a test ELBO of 136 nats
(vae) where probabilistic PCA with as many latents reaches 51.
"""
