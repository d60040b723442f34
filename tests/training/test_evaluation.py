"""Numbers of a trained model, compared with what can be computed otherwise."""

from __future__ import annotations

import threading
from collections.abc import Callable
from math import log, log2, pi
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from toys import Regression, models

from fastgen.data import ImageDataset, Splits, to_float
from fastgen.models import GAN, VAE, Autoencoder, Classifier
from fastgen.training import evaluate
from fastgen.training.evaluation import EvaluationError, FeatureRecipe, feature_classifier


def floats(dataset: ImageDataset) -> Tensor:
    return to_float(torch.from_numpy(np.ascontiguousarray(dataset.images)))


class Half(nn.Module):
    """The left half of an image as its code."""

    def forward(self, x: Tensor) -> Tensor:
        return x[..., :4].flatten(1)


class Mirror(nn.Module):
    """An image from its left half; one weight, so that the model has a device, and no shape."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, z: Tensor) -> Tensor:
        left = self.scale * z.unflatten(1, (1, 8, 4))
        return torch.cat((left, left.flip(3)), dim=3)


class Replay(nn.Module):
    """Draws training images, chosen by the latent, with noise of a given strength."""

    def __init__(self, images: Tensor, noise: float) -> None:
        super().__init__()
        self.images = nn.Parameter(images)
        self.noise = noise

    def forward(self, z: Tensor) -> Tensor:
        chosen = (z[:, 0].mul(1e4).long() % len(self.images)).abs()
        return self.images[chosen] + self.noise * z[:, 1:].unflatten(1, self.images.shape[1:])


def test_accuracy_is_the_share_of_right_classes(digits: Splits) -> None:
    model = models(digits)["classifier"]()
    assert isinstance(model, Classifier)
    with torch.no_grad():
        predicted = model(floats(digits.held_out)).argmax(1).numpy()
    expected = float((predicted == digits.held_out.labels).mean())
    assert evaluate(model, digits) == {"accuracy": expected, "images": 359}


def test_the_squared_error_is_numpys(digits: Splits) -> None:
    model = Autoencoder(Half(), Mirror(), latent_dim=32)
    x = digits.held_out.images.astype(np.float64) / 127.5 - 1
    mirrored = np.concatenate((x[..., :4], x[..., 3::-1]), axis=3)
    expected = ((x - mirrored) ** 2).sum(axis=(1, 2, 3)).mean()
    numbers = evaluate(model, digits)
    assert numbers["squared_error"] == pytest.approx(expected, rel=1e-6)
    assert numbers["squared_error_per_pixel"] == pytest.approx(expected / 64, rel=1e-6)


def test_the_numbers_of_a_vae_are_those_of_its_formulas(digits: Splits) -> None:
    """q is narrow (tau = 1e-3): then the ELBO has almost no noise and a closed form."""
    sigma, tau, d, k = 0.5, 1e-3, 64, 32
    model = VAE(Half(), Mirror(), latent_dim=k, sigma=sigma, tau=tau)
    x = digits.held_out.images.astype(np.float64) / 127.5 - 1
    mu = x[..., :4].reshape(len(x), -1)
    mirrored = np.concatenate((x[..., :4], x[..., 3::-1]), axis=3)
    error = ((x - mirrored) ** 2).sum(axis=(1, 2, 3))
    log_p = -error / (2 * sigma**2) - d / 2 * log(2 * pi * sigma**2)
    kl = 0.5 * (mu**2 + tau**2 - 1 - 2 * log(tau)).sum(axis=1)
    numbers = evaluate(model, digits)
    elbo = (log_p - kl).mean()
    assert numbers["elbo"] == pytest.approx(elbo, abs=0.05)
    assert numbers["elbo_bits_per_dim"] == pytest.approx(-elbo / d / log(2) + log2(127.5), abs=1e-3)
    assert numbers["elbo"] < numbers["log_likelihood"]
    assert numbers["sigma"] == pytest.approx(sigma)
    assert numbers["squared_error"] == pytest.approx(error.mean(), rel=1e-6)
    assert evaluate(model, digits) == numbers


QUICK = FeatureRecipe(width=8, steps=60)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feature_classifier, "__defaults__", (lambda line: None, QUICK))


@pytest.mark.usefixtures("_quick")
def test_a_perfect_generator_reaches_the_floor_and_a_noisy_one_does_not(
    digits: Splits, cache: Path
) -> None:
    def measured(noise: float) -> dict[str, float]:
        model = GAN(Replay(floats(digits.train), noise), nn.Linear(1, 1), latent_dim=65)
        return evaluate(model, digits, cache=cache)

    perfect, noisy = measured(0.0), measured(0.7)
    assert perfect["images"] == len(digits.train) // 2
    assert perfect["frechet_distance_floor"] == noisy["frechet_distance_floor"] > 0
    assert perfect["frechet_distance"] < 2 * perfect["frechet_distance_floor"]
    assert noisy["frechet_distance"] > 20 * noisy["frechet_distance_floor"]
    assert perfect["precision"] > 0.8
    assert noisy["precision"] < 0.8 * perfect["precision"]
    assert perfect["recall_ceiling"] > 0.8
    assert perfect["feature_classifier_accuracy"] > 0.7


@pytest.mark.usefixtures("_quick")
def test_the_feature_classifier_is_trained_once_and_again_for_other_data(
    digits: Splits, tmp_path: Path
) -> None:
    said: list[str] = []

    def weights(dataset: ImageDataset) -> dict[str, Tensor]:
        device = torch.device("cpu")
        recipe = FeatureRecipe(width=4, steps=2)
        return feature_classifier(dataset, device, tmp_path, said.append, recipe).state_dict()

    torch.manual_seed(1)
    first = weights(digits.train)
    torch.manual_seed(2)
    again = weights(digits.train)
    assert all(torch.equal(again[name], tensor) for name, tensor in first.items())
    assert len(said) == 1
    weights(digits.train.select(range(500)))
    assert len(said) == 2
    (folder,) = {
        path.parent for path in tmp_path.rglob("*.safetensors") if str(path.parent) in said[0]
    }
    (folder / "model.safetensors").write_bytes(b"damaged")
    assert all(torch.equal(weights(digits.train)[name], tensor) for name, tensor in first.items())
    assert len(said) == 3


def test_of_two_that_want_a_feature_classifier_one_trains_it_and_the_other_waits(
    digits: Splits, tmp_path: Path
) -> None:
    recipe, spoken = FeatureRecipe(width=4, steps=2), threading.Event()
    said: list[str] = []
    found: list[Classifier] = []

    def classifier(say: Callable[[str], None]) -> None:
        device = torch.device("cpu")
        found.append(feature_classifier(digits.train, device, tmp_path, say, recipe))

    def say_second(line: str) -> None:
        said.append(line)
        spoken.set()

    second = threading.Thread(target=classifier, args=(say_second,))

    def say_first(line: str) -> None:
        second.start()
        assert spoken.wait(60)

    classifier(say_first)
    second.join(60)
    assert [line.partition(",")[0] for line in said] == ["waiting for another process"]
    one, other = (each.state_dict() for each in found)
    assert all(torch.equal(one[name], tensor) for name, tensor in other.items())


def test_a_feature_classifier_that_cannot_be_kept_is_trained_all_the_same(
    digits: Splits, tmp_path: Path
) -> None:
    recipe, device = FeatureRecipe(width=4, steps=2), torch.device("cpu")
    said: list[str] = []
    kept = feature_classifier(digits.train, device, tmp_path / "cache", recipe=recipe)
    (tmp_path / "file").write_text("")
    found = feature_classifier(digits.train, device, tmp_path / "file", said.append, recipe)
    weights = kept.state_dict()
    assert all(torch.equal(weights[name], tensor) for name, tensor in found.state_dict().items())
    refused, training = said
    assert refused.startswith(f"{tmp_path}/file/feature-classifiers: Not a directory; ")
    assert "set XDG_CACHE_HOME" in refused
    assert training == "training the classifier whose thought vectors are compared"


def test_without_labels_a_gan_is_not_measured(digits: Splits, tmp_path: Path) -> None:
    bare = Splits(
        *(ImageDataset(np.ascontiguousarray(part.images), description="~/faces") for part in digits)
    )
    how = "needs labels, and ~/faces has none: put the pictures into one sub-folder per class"
    with pytest.raises(EvaluationError, match=f"a gan or wgan is measured with .* which {how}"):
        evaluate(models(digits)["gan"](), bare, cache=tmp_path)
    with pytest.raises(EvaluationError, match=f"accuracy {how}"):
        evaluate(models(digits)["classifier"](), bare)


def test_another_kind_of_model_is_refused(digits: Splits) -> None:
    with pytest.raises(EvaluationError, match="Regression cannot be evaluated: only Classifier"):
        evaluate(Regression(), digits)
