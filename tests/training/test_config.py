"""One table says what each model is trained with, and what may be set."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from fastgen.models import GAN, REGULARIZERS, WGAN, GradientPenalty, Regularizer, SpectralNorm
from fastgen.models import WeightClipping as Clipping
from fastgen.models.adversarial_losses import GAMES
from fastgen.training.config import (
    GAN_LOSSES,
    RECIPES,
    WGAN_REGULARIZERS,
    ConfigError,
    build_model,
    check_device,
    resolve,
    with_data,
)
from fastgen.training.trainer import CAPTURES, PRECISIONS

SMALL = {"image_size": 8, "width": 4, "latent_dim": 3}


def settings(model: str, **given: Any) -> dict[str, Any]:
    small = {
        key: value
        for key, value in SMALL.items()
        if key in {*RECIPES[model].defaults, "image_size"}
    }
    return with_data(resolve(model, {**small, **given}))[0]


def test_the_table_names_what_the_models_know() -> None:
    assert {name.replace("-", "_") for name in GAN_LOSSES} == set(GAMES)
    assert {name.replace("-", "_") for name in (*WGAN_REGULARIZERS, "none")} == set(REGULARIZERS)


@pytest.mark.parametrize("model", RECIPES)
def test_every_model_is_built_from_its_defaults_as_a_function_of_the_seed(model: str) -> None:
    torch.manual_seed(5)
    expected = torch.rand(2)
    torch.manual_seed(5)
    one, same, other = (build_model(settings(model, seed=seed)) for seed in (0, 0, 1))
    assert torch.equal(torch.rand(2), expected)
    pairs = list(zip(one.parameters(), same.parameters(), other.parameters(), strict=True))
    assert all(torch.equal(a, b) for a, b, _ in pairs)
    assert not all(torch.equal(a, c) for a, _, c in pairs)


@pytest.mark.parametrize(
    ("text", "spelled", "built"),
    [
        ("gradient-penalty", "gradient-penalty:10", GradientPenalty(10)),
        ("gradient_penalty:2.50", "gradient-penalty:2.5", GradientPenalty(2.5)),
        ("weight-clipping:0.05", "weight-clipping:0.05", Clipping(0.05)),
        ("spectral-norm", "spectral-norm", SpectralNorm()),
    ],
)
def test_regularizers_of_a_wgan(text: str, spelled: str, built: Regularizer) -> None:
    chosen = settings("wgan", regularizer=text)
    assert chosen["regularizer"] == spelled
    model = build_model(chosen)
    assert isinstance(model, WGAN)
    assert model.regularizer == built


@pytest.mark.parametrize(
    ("text", "spelled", "r1", "r2"),
    [
        ("r1", "r1:1", 1, 0),
        ("r1:0.1", "r1:0.1", 0.1, 0),
        ("r2:3", "r2:3", 0, 3),
        ("r1:1, r2:0.5", "r1:1,r2:0.5", 1, 0.5),
        ("r1:0.12345678,r2:1234567.5", "r1:0.12345678,r2:1234567.5", 0.12345678, 1234567.5),
        ("none", "none", 0, 0),
    ],
)
def test_penalties_of_a_gan(text: str, spelled: str, r1: float, r2: float) -> None:
    chosen = settings("gan", regularizer=text, loss="non_saturating")
    assert (chosen["regularizer"], chosen["loss"]) == (spelled, "non-saturating")
    model = build_model(chosen)
    assert isinstance(model, GAN)
    assert (model.r1, model.r2, model.loss) == (r1, r2, "non_saturating")


@pytest.mark.parametrize(
    ("model", "given", "message"),
    [
        ("vae", {"critic_steps": 3}, "--critic-steps means nothing for vae: it is for wgan"),
        ("wgan", {"loss": "hinge"}, "--loss means nothing for wgan: it is for gan"),
        ("classifier", {"latent_dim": 3}, "it is for gan, wgan, autoencoder, vae"),
        ("gan", {"loss": "lsgan"}, "--loss must be one of non-saturating, minimax, hinge, rel"),
        ("gan", {"regularizer": "gradient-penalty"}, r"must be none, r1:1, r2:1 or several"),
        ("gan", {"regularizer": "r1:1,r1:2"}, r"--regularizer must be"),
        ("wgan", {"regularizer": "r1:1"}, r"must be none, gradient-penalty:10, weight-clip"),
        ("wgan", {"regularizer": "gradient-penalty,weight-clipping"}, r"--regularizer must be"),
        ("wgan", {"regularizer": "spectral-norm:3"}, r"--regularizer must be"),
        ("wgan", {"regularizer": "gradient-penalty:much"}, "'much' is not a number"),
        ("vae", {"lr": 0.0}, r"--lr must be a finite number above 0 \(got 0.0\)"),
        ("gan", {"ema": 1.0}, r"--ema must be a number from 0 up to, but not including, 1 \(got"),
        ("vae", {"precision": "fp16"}, r"--precision must be fp32 or bf16 \(got 'fp16'\)"),
    ],
)
def test_what_means_nothing_is_refused(model: str, given: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        resolve(model, given)


def test_what_can_be_chosen_is_what_the_trainer_knows() -> None:
    for known in PRECISIONS:
        assert resolve("vae", {"precision": known})["precision"] == known
    for known in CAPTURES:
        check_device("cuda:1", known)
    for device, capture in (("gpu", "auto"), ("cuda:x", "auto"), ("cpu", "yes")):
        with pytest.raises(ConfigError, match=r"--(device|capture) must be"):
            check_device(device, capture)


def test_data_means_the_same_in_every_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    specs = {
        "digits": "digits",
        "faces": f"{tmp_path}/faces",
        "./a/../b.npz": f"{tmp_path}/b.npz",
        "mnist:mnist": f"mnist:{tmp_path}/mnist",
        "cifar10:~/c": f"cifar10:{Path.home()}/c",
    }
    assert {spec: resolve("vae", {"data": spec})["data"] for spec in specs} == specs


def test_the_size_of_the_data_and_the_same_size_given_are_one_configuration() -> None:
    assert (
        settings("vae", image_size=16)
        == with_data(resolve("vae", {"width": 4, "latent_dim": 3}))[0]
    )
