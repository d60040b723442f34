"""What a model is made of, before it is trained."""

from __future__ import annotations

import pytest
import torch
from toys import models

from fastgen.data import Batches, Splits
from fastgen.training.summary import describe, layers, networks


@pytest.mark.parametrize("kind", ["gan", "wgan", "spectral", "vae", "autoencoder", "classifier"])
def test_every_parameter_is_in_a_layer_and_nothing_changes(kind: str, digits: Splits) -> None:
    model = models(digits)[kind]()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    batch = Batches(digits.train, 2, seed=0).batch(0)
    listed = layers(model, batch.images, batch.labels)
    total = sum(parameter.numel() for parameter in model.parameters())
    assert sum(layer.parameters for layer in listed) == total
    assert sum(count for _, count in networks(model)) == total
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in before.items())


def test_shapes_are_those_of_one_image(digits: Splits) -> None:
    model = models(digits)["gan"]()
    text = describe(model, {"model": "gan", "width": 4}, digits)
    lines = [line.split() for line in text.splitlines()]
    # 8x8 digits, width 4: one stage of 4 channels on a 4x4 map; z of length 3.
    assert ["generator.top", "LinearLeakyReLU", "64", str(3 * 64 + 64)] in lines
    assert ["generator.stages.0", "ConvTransposeLeakyReLU2d", "1x8x8", str(4 * 16 + 1)] in lines
    assert ["discriminator.stages.0", "ConvLeakyReLU2d", "4x4x4", str(4 * 16 + 4)] in lines
    assert ["discriminator.head", "LinearLeakyReLU", "1", str(64 + 1)] in lines
    assert ["total", str(256 + 65 + 68 + 65)] in lines
    assert ["width", "4"] in lines
