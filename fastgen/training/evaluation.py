"""A trained model's numbers: on held-out images, of a GAN or WGAN beside the training images."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from hashlib import blake2b
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from fastgen.data import ImageDataset, Splits, fingerprint, to_float, to_uint8
from fastgen.files import cache_folder, locked
from fastgen.metrics import frechet_distance, precision_recall
from fastgen.models import GAN, VAE, WGAN, Autoencoder, Classifier, Model, evaluation

from .checkpoint import (
    Checkpoint,
    CheckpointError,
    DamagedCheckpoint,
    discard_damaged,
    read_checkpoint,
    write_checkpoint,
)
from .config import TO_LABEL
from .seeds import own_generators, seed_generators, step_seed
from .trainer import Trainer

Numbers = dict[str, float]

AT_ONCE = 256
LIKELIHOOD_SAMPLES = 64
ELBO_DRAWS = 8
MOST_IMAGES = 10_000
"""Of each half of the real images that generated ones are compared with."""


class FeatureRecipe(NamedTuple):
    """How the classifier is trained whose thought vectors are compared."""

    width: int = 32
    steps: int = 400
    batch_size: int = 64
    lr: float = 1e-3
    seed: int = 0


class EvaluationError(ValueError):
    """There is no way to measure this model on this data.

    The message says what is missing.
    """


def evaluate(
    model: Model,
    splits: Splits,
    *,
    cache: Path | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> Numbers:
    """Measure a model in evaluation mode with the weights it has.

    ============  ===============================================================================
    `Classifier`  accuracy on the held-out images
    `Autoencoder` squared error |x - G(M(x))|^2 of held-out images, and per pixel
    `VAE`         on held-out images, nats per image: ELBO (mean of 8 draws), importance-weighted
                  log-likelihood (64 samples), both in bits per dimension too; squared error
    `GAN, WGAN`   n generated images against a half A of n real training images, in the thought
                  vectors of a classifier of the same data: Frechet distance, precision, recall.
                  Beside them the same numbers for the other half B of the real images: the floor
                  of the distance and the ceiling of the others at this n.
    ============  ===============================================================================

    The thought vectors are the classifier's deepest, averaged over the positions. A GAN is compared
    with training images, as is usual for these numbers: they need many images, in two halves, and
    few are held out. So a generator that repeats training images is not found out.

    Args:
        model: on any device.
        splits: the data that it was trained on and the images held out.
        cache: where feature classifiers are kept, by default ``fastgen/`` in the user's cache
            folder.
        say: what to do with a line for the user.

    Raises:
        EvaluationError: a GAN or WGAN on data without labels, or another kind of model.
    """
    measure = next((how for kind, how in MEASURES if isinstance(model, kind)), None)
    if measure is None:
        known = ", ".join(kind.__name__ for kind, _ in MEASURES)
        raise EvaluationError(f"{type(model).__name__} cannot be evaluated: only {known} can")
    with own_generators(_device(model)), evaluation(model):
        seed_generators(step_seed(0, 0), _device(model))
        return measure(model, splits, cache or cache_folder(), say)


def _classifier(model: Model, splits: Splits, cache: Path, say: Callable[[str], None]) -> Numbers:
    assert isinstance(model, Classifier)
    labels = splits.held_out.labels
    if labels is None:
        raise EvaluationError(
            f"accuracy needs labels, and {splits.held_out.description} has none: {TO_LABEL}"
        )
    predicted = torch.cat([model.predict(x).cpu() for x in _batches(splits.held_out, model)])
    return {"accuracy": float((predicted.numpy() == labels).mean()), "images": len(labels)}


def _autoencoder(model: Model, splits: Splits, cache: Path, say: Callable[[str], None]) -> Numbers:
    assert isinstance(model, Autoencoder)
    return {**_squared_error(model, splits.held_out), "images": len(splits.held_out)}


def _vae(model: Model, splits: Splits, cache: Path, say: Callable[[str], None]) -> Numbers:
    assert isinstance(model, VAE)
    elbo = _mean(
        torch.stack([model.elbo(x) for _ in range(ELBO_DRAWS)]).mean(0)
        for x in _batches(splits.held_out, model)
    )
    log_likelihood = _mean(
        model.log_likelihood(x, LIKELIHOOD_SAMPLES) for x in _batches(splits.held_out, model)
    )
    dimensions = int(np.prod(splits.held_out.image_shape))
    return {
        "elbo": elbo,
        "log_likelihood": log_likelihood,
        "elbo_bits_per_dim": model.bits_per_dim(elbo, dimensions=dimensions),
        "log_likelihood_bits_per_dim": model.bits_per_dim(log_likelihood, dimensions=dimensions),
        "sigma": float(model.sigma),
        **_squared_error(model, splits.held_out),
        "images": len(splits.held_out),
    }


def _adversarial(model: Model, splits: Splits, cache: Path, say: Callable[[str], None]) -> Numbers:
    assert isinstance(model, (GAN, WGAN))
    if splits.train.labels is None:
        raise EvaluationError(
            "a gan or wgan is measured with a classifier of the same data, which needs labels, and "
            f"{splits.train.description} has none: {TO_LABEL}"
        )
    half_a, half_b = _halves(splits.train)
    classifier = feature_classifier(splits.train, _device(model), cache, say)
    with evaluation(classifier):
        accuracy = _classifier(classifier, splits, cache, say)["accuracy"]
        real = _features(classifier, _batches(half_a, model))
        other = _features(classifier, _batches(half_b, model))
        fake = _features(classifier, _samples(model, len(half_a)))

    generated, ceiling = precision_recall(real, fake), precision_recall(real, other)
    return {
        "frechet_distance": frechet_distance(real, fake),
        "frechet_distance_floor": frechet_distance(real, other),
        "precision": generated.precision,
        "precision_ceiling": ceiling.precision,
        "recall": generated.recall,
        "recall_ceiling": ceiling.recall,
        "images": len(half_a),
        "feature_classifier_accuracy": accuracy,
    }


MEASURES: tuple[tuple[type[Model], Callable[..., Numbers]], ...] = (
    (Classifier, _classifier),
    (VAE, _vae),
    (Autoencoder, _autoencoder),
    (GAN, _adversarial),
    (WGAN, _adversarial),
)


def feature_classifier(
    dataset: ImageDataset,
    device: torch.device,
    cache: Path,
    say: Callable[[str], None] = lambda line: None,
    recipe: FeatureRecipe = FeatureRecipe(),  # noqa: B008 (immutable)
) -> Classifier:
    """The classifier whose thought vectors are compared: trained once for each set of images.

    It lies in the cache as a checkpoint, under a digest of the images and the recipe. Of several
    processes that look for it at one time one trains it, and the others wait. Where the cache
    cannot be written it is trained each time.
    """
    known = {**recipe._asdict(), "classes": dataset.classes, "data": fingerprint(dataset)}
    key = blake2b(repr(sorted(known.items())).encode(), digest_size=8).hexdigest()
    path = cache / "feature-classifiers" / key
    with own_generators(device):
        torch.manual_seed(recipe.seed)
        classifier = Classifier.for_images(dataset.image_shape, dataset.classes, width=recipe.width)
    found = _whole(path)
    if found is None:

        def busy() -> None:
            say(f"waiting for another process, which is training the classifier {path}")

        def trained(where: str) -> Checkpoint:
            say(f"training the classifier whose thought vectors are compared{where}")
            _train(classifier, dataset, device, recipe)
            return Checkpoint({"model": classifier.state_dict()}, {"recipe": known})

        try:
            with locked(path.with_name(f".{key}.lock"), busy):
                found = _whole(path)
                if found is None:
                    found = trained(f", once: {path}")
                    if path.exists():
                        discard_damaged(path)
                    write_checkpoint(path, found)
        except (OSError, CheckpointError) as error:
            why = f"{error.filename}: {error.strerror}" if isinstance(error, OSError) else error
            say(f"{why}; to keep it, set XDG_CACHE_HOME to a folder that can be written")
            found = found or trained("")
    classifier.load_state_dict(found.tensors["model"])
    return classifier.to(device)


def _whole(path: Path) -> Checkpoint | None:
    try:
        return read_checkpoint(path)
    except DamagedCheckpoint:  # or none at all
        return None


def _train(
    classifier: Classifier, dataset: ImageDataset, device: torch.device, recipe: FeatureRecipe
) -> None:
    with torch.enable_grad():
        Trainer(
            classifier,
            dataset,
            batch_size=recipe.batch_size,
            lr=recipe.lr,
            betas=(0.9, 0.999),
            seed=recipe.seed,
            device=device,
            progress=False,
            processes="one",  # also where a script asks in one process of several
        ).fit(recipe.steps)


def _halves(dataset: ImageDataset) -> tuple[ImageDataset, ImageDataset]:
    """Two disjoint random parts of equal size: what is compared must have as many images."""
    order = np.random.default_rng(0).permutation(len(dataset))
    size = min(len(dataset) // 2, MOST_IMAGES)
    return dataset.select(order[:size]), dataset.select(order[size : 2 * size])


def _features(classifier: Classifier, batches: Iterator[Tensor]) -> Tensor:
    thoughts = [classifier.thought_vectors(images)[-1].mean((2, 3)) for images in batches]
    return torch.cat(thoughts)


def _batches(dataset: ImageDataset, model: Model) -> Iterator[Tensor]:
    for start in range(0, len(dataset), AT_ONCE):
        pixels = dataset.gather(np.arange(start, min(start + AT_ONCE, len(dataset))))
        yield to_float(torch.from_numpy(pixels).to(_device(model)))


def _samples(model: GAN | WGAN, count: int) -> Iterator[Tensor]:
    # Rounded to bytes, as the real images are.
    for start in range(0, count, AT_ONCE):
        images = model.sample(min(AT_ONCE, count - start), seed=step_seed(0, start))
        yield to_float(to_uint8(images))


def _squared_error(model: VAE | Autoencoder, dataset: ImageDataset) -> Numbers:
    error = _mean(
        (x - model.reconstruct(x)).square().flatten(1).sum(1) for x in _batches(dataset, model)
    )
    pixels = int(np.prod(dataset.image_shape))
    return {"squared_error": error, "squared_error_per_pixel": error / pixels}


def _mean(parts: Iterator[Tensor]) -> float:
    return float(torch.cat([part.double() for part in parts]).mean())


def _device(model: Model) -> torch.device:
    return next(model.parameters()).device
