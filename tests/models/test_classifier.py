from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, log_loss
from torch import nn

from fastgen.models import BottomUp, Classifier

SHAPE = (1, 8, 8)


def test_the_loss_and_accuracy_are_those_of_its_probabilities() -> None:
    model = Classifier.for_images(SHAPE, 5, width=4).double()
    x, labels = torch.randn(40, *SHAPE, dtype=torch.float64), torch.arange(40) % 5
    probabilities, predicted = model.probabilities(x), model.predict(x)
    losses = model.phases()[0].loss(x, labels)

    assert probabilities.shape == (40, 5)
    assert predicted.dtype == torch.int64
    expected = log_loss(labels.numpy(), probabilities.numpy(), labels=np.arange(5))
    assert losses["loss"].item() == pytest.approx(expected, rel=1e-5)
    assert model.loss(x, labels).item() == losses["loss"].item()
    expected = accuracy_score(labels.numpy(), predicted.numpy())
    assert losses["accuracy"].item() == pytest.approx(expected)


def test_prediction_runs_in_evaluation_mode_and_leaves_the_mode() -> None:
    network = BottomUp(SHAPE, width=4)
    network.stages.append(nn.Dropout(0.5))
    model = Classifier(network, 3)
    x = torch.randn(8, *SHAPE)
    assert torch.equal(model.probabilities(x), model.probabilities(x))
    assert not torch.equal(model(x), model(x))
    assert model.training
    assert not model.probabilities(x).requires_grad


def test_thought_vectors_are_the_networks() -> None:
    model = Classifier.for_images((3, 32, 32), 4, width=2)
    x = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(model.thought_vectors(x), BottomUp.thought_vectors(model.network, x))  # type: ignore[arg-type]


def test_any_network_that_says_its_features_is_classified() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 7), nn.ReLU())
    network.features = 7  # type: ignore[assignment]
    assert Classifier(network, 3)(torch.randn(4, *SHAPE)).shape == (4, 3)
    with pytest.raises(ValueError, match="integer attribute `features` \\(got None from Linear\\)"):
        Classifier(nn.Linear(3, 2), 3)


def test_it_learns_to_tell_four_corners() -> None:
    labels = torch.arange(64) % 4
    x = 0.1 * torch.randn(64, *SHAPE) - 1
    for image, label in zip(x, labels.tolist(), strict=True):
        image[0, label // 2 * 4 :, label % 2 * 4 :][:4, :4] += 1
    model = Classifier.for_images(SHAPE, 4, width=4)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(30):
        optimizer.zero_grad()
        model.loss(x, labels).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    assert torch.equal(model.predict(x), labels)


def test_it_needs_labels_and_two_classes() -> None:
    model = Classifier.for_images(SHAPE, 2, width=2)
    with pytest.raises(ValueError, match="learns from labels"):
        model.phases()[0].loss(torch.zeros(2, *SHAPE), None)
    with pytest.raises(ValueError, match=r"labels must lie in 0 \.\. 1 \(got 0 \.\. 7\)"):
        model.phases()[0].loss(torch.zeros(2, *SHAPE), torch.tensor([0, 7]))
    assert model.loss(torch.zeros(2, *SHAPE), torch.tensor([0, -100])).isfinite()  # ignored ones
    with pytest.raises(ValueError, match="at least 2 classes"):
        Classifier.for_images(SHAPE, 1)
