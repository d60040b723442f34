"""Pictures show the images that they are made of, pixel for pixel."""

from __future__ import annotations

from io import BytesIO
from math import pi

import numpy as np
import pytest
import torch
from PIL import Image
from toys import models

from fastgen.data import Splits, to_float
from fastgen.training.pictures import (
    GAP,
    GRAY,
    interpolations,
    pictures_of,
    png,
    samples,
    spherical_path,
    stack,
    tiles,
)


def pixels(*shape: int) -> torch.Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8)


@pytest.mark.parametrize("kind", ["gan", "vae"])
def test_samples_are_the_models_own_and_decoded_a_few_at_a_time(
    kind: str, digits: Splits, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, count = models(digits)[kind](), 515
    whole, decode, asked = model.sample(count, seed=5), model.decode, []

    def noted(z: torch.Tensor) -> torch.Tensor:
        asked.append(len(z))
        return decode(z)

    monkeypatch.setattr(model, "decode", noted)
    assert torch.equal(samples(model, count, seed=5), whole)
    assert asked == [172, 172, 171]
    interpolations(model, count, seed=5)
    assert asked[3:] == [172, 172, 171]


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (2, "LA"), (3, "RGB"), (4, "RGBA")])
def test_every_pixel_of_every_image_is_in_the_png_at_its_place(channels: int, mode: str) -> None:
    images, side = pixels(5, channels, 50, 60), (50, 60)
    image = Image.open(BytesIO(png(tiles(to_float(images), columns=3))))
    assert image.mode == mode
    picture = np.asarray(image).reshape(image.height, image.width, channels)
    assert picture.shape[:2] == (2 * (50 + GAP) + GAP, 3 * (60 + GAP) + GAP)
    for i in range(5):
        top, left = GAP + i // 3 * (50 + GAP), GAP + i % 3 * (60 + GAP)
        tile = picture[top : top + side[0], left : left + side[1]]
        assert np.array_equal(tile, images[i].permute(1, 2, 0).numpy())
    assert np.all(picture[-1] == GRAY)


def test_small_images_are_enlarged_by_a_whole_factor() -> None:
    images = pixels(1, 1, 8, 6)
    picture = tiles(to_float(images), columns=1)[GAP:-GAP, GAP:-GAP, 0]
    assert picture.shape == (48, 36)
    assert np.array_equal(picture[::6, ::6], images[0, 0].numpy())


def test_a_spherical_path_keeps_the_length_and_moves_by_equal_angles() -> None:
    start, end = torch.tensor([3.0, 0, 0]).double(), torch.tensor([0, 3.0, 0]).double()
    path = spherical_path(start, end, 7)
    angles = torch.linspace(0, pi / 2, 7, dtype=torch.float64)
    expected = 3 * torch.stack((angles.cos(), angles.sin(), 0 * angles), dim=1)
    torch.testing.assert_close(path, expected)


@pytest.mark.parametrize("factor", [1.0, 2.0, -1.0])
def test_a_path_between_latents_on_one_line_stays_finite(factor: float) -> None:
    start = torch.randn(4, 1, 2)
    path = spherical_path(start, factor * start, 5)
    assert path.shape == (5, 4, 1, 2)
    torch.testing.assert_close(path[0], start)
    torch.testing.assert_close(path[-1], factor * start)


@pytest.mark.parametrize("latent_dim", [1, 2, 3])
def test_a_path_between_unlike_latents_stays_between_their_lengths(latent_dim: int) -> None:
    for start, end in torch.randn(200, 2, latent_dim, dtype=torch.float64):
        path = spherical_path(start, end, 9)
        longest = torch.maximum(start.norm(), end.norm())
        assert (path.norm(dim=1) <= longest * (1 + 1e-9)).all()
        torch.testing.assert_close(path[[0, -1]], torch.stack((start, end)))
        if latent_dim > 1:  # in one dimension opposite latents have only the line through 0
            expected = torch.lerp(start.norm(), end.norm(), torch.linspace(0, 1, 9).double())
            torch.testing.assert_close(path.norm(dim=1), expected, rtol=1e-5, atol=1e-5)


def test_interpolations_start_and_end_at_samples_of_the_model(digits: Splits) -> None:
    model = models(digits)["vae"]()
    rows = interpolations(model, 12, seed=3)  # type: ignore[arg-type]
    assert len(rows) == 12
    ends = model.decode(model.latent(4, seed=3))  # type: ignore[operator]
    torch.testing.assert_close(rows[0], ends[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(rows[7], ends[2], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(rows[8], ends[1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("gan", {"samples"}),
        ("wgan", {"samples"}),
        ("vae", {"samples", "reconstructions"}),
        ("autoencoder", {"reconstructions"}),
        ("classifier", set()),
    ],
)
def test_every_model_shows_what_it_can(digits: Splits, kind: str, expected: set[str]) -> None:
    originals = to_float(torch.from_numpy(digits.train.gather(range(20))))
    pictures = pictures_of(models(digits)[kind](), originals)
    assert set(pictures) == expected


def test_originals_stand_above_their_reconstructions() -> None:
    class Negative:
        def reconstruct(self, x: torch.Tensor) -> torch.Tensor:
            return -x

    originals = to_float(pixels(19, 1, 48, 48))
    picture = pictures_of(Negative(), originals)["reconstructions"]
    shown = [originals[:8], -originals[:8], originals[8:16], -originals[8:16]]
    assert np.array_equal(picture, tiles(torch.cat(shown)))


def test_stacked_pictures_are_whole() -> None:
    above, below = tiles(to_float(pixels(8, 3, 48, 48))), tiles(to_float(pixels(3, 3, 48, 48)))
    both = stack(above, below)
    assert np.array_equal(both[: len(above)], above)
    assert np.array_equal(both[-len(below) :], below)
    assert np.all(both[len(above) : -len(below)] == GRAY)
