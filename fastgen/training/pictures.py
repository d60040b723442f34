"""What a model draws, as PNG files."""

from __future__ import annotations

from collections.abc import Iterable
from io import BytesIO
from math import pi
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastgen.data import to_uint8
from fastgen.files import replace_file

Picture = NDArray[np.uint8]
"""Height x width x channels (1 gray, 2 gray and alpha, 3 RGB, 4 RGBA)."""

COLUMNS, ROWS, PATHS = 8, 8, 3
READABLE = 48
"""Smaller tiles are enlarged by a whole factor: 8x8 digits are too small to look at."""
GAP, GRAY = 2, 128
PICTURE_SEED = 0
AT_ONCE = 256
"""How many images are decoded together: what bounds the memory of a large picture."""


@runtime_checkable
class DrawsImages(Protocol):
    """A model with latents that it turns into images."""

    def sample(self, n: int, *, seed: int | None = None) -> Tensor: ...
    def latent(self, n: int, *, seed: int | None = None) -> Tensor: ...
    def decode(self, z: Tensor) -> Tensor: ...


@runtime_checkable
class Reconstructs(Protocol):
    """A model that passes images through a bottleneck."""

    def reconstruct(self, x: Tensor) -> Tensor: ...


def pictures_of(model: object, originals: Tensor) -> dict[str, Picture]:
    """Every picture that this model can give, always from the same noise.

    Returns:
        ``"samples"``: a grid of samples, below it rows of interpolations; ``"reconstructions"``:
        each of the originals with its reconstruction below it. Empty for a classifier.
    """
    pictures: dict[str, Picture] = {}
    if isinstance(model, DrawsImages):
        drawn = tiles(model.sample(ROWS * COLUMNS, seed=PICTURE_SEED))
        paths = tiles(interpolations(model, PATHS * COLUMNS, seed=PICTURE_SEED + 1))
        pictures["samples"] = stack(drawn, paths)
    if isinstance(model, Reconstructs):
        pictures["reconstructions"] = _pairs(originals, model.reconstruct(originals))
    return pictures


def _pairs(originals: Tensor, reconstructions: Tensor) -> Picture:
    """Rows of originals, below each the row of their reconstructions."""
    columns = min(COLUMNS, len(originals))
    shown = len(originals) // columns * columns
    rows = [torch.split(images[:shown], columns) for images in (originals, reconstructions)]
    return tiles(torch.cat([row for pair in zip(*rows, strict=True) for row in pair]), columns)


def samples(model: DrawsImages, count: int, *, seed: int) -> Tensor:
    """The images of ``model.sample(count, seed=seed)``, in evaluation mode, a few at a time."""
    return _decoded(model, model.latent(count, seed=seed))


def interpolations(model: DrawsImages, count: int, *, seed: int) -> Tensor:
    """Rows of `COLUMNS` images, each along the arc from one random latent to another.

    Returns:
        `count` images; the last row may be cut short.
    """
    rows = -(-count // COLUMNS)
    starts, ends = model.latent(2 * rows, seed=seed).chunk(2)
    paths = [spherical_path(start, end, COLUMNS) for start, end in zip(starts, ends, strict=True)]
    return _decoded(model, torch.cat(paths)[:count])


@torch.no_grad()
def _decoded(model: DrawsImages, latents: Tensor) -> Tensor:
    # Parts of one size: a small one behind might be computed another way, and be rounded otherwise.
    parts = torch.chunk(latents, -(-len(latents) // AT_ONCE))
    return torch.cat([model.decode(part) for part in parts])


def spherical_path(start: Tensor, end: Tensor, points: int) -> Tensor:
    r"""Points from z_0 to z_1, their directions u along a great arc [Shoemake 1985]:

    .. math:: z_t = \big((1 - t) |z_0| + t |z_1|\big)
              \frac{\sin((1 - t) \omega)\, u_0 + \sin(t \omega)\, u_1}{\sin \omega}, \qquad
              u_i = \frac{z_i}{|z_i|}, \quad \cos \omega = u_0 \cdot u_1

    N(0, I) in d dimensions lives near a sphere of radius sqrt(d): a straight line would leave it
    and pass through latents that the model has never seen. Shape (points, \*start.shape).
    """
    lengths = [z.norm() for z in (start, end)]
    # A latent of 0 has no direction; whatever stands for it is multiplied by 0 at that end.
    first, last = (
        z / length.clamp_min(torch.finfo(z.dtype).tiny)
        for z, length in zip((start, end), lengths, strict=True)
    )
    # On one ray the formula is 0 / 0, and the arc a line; a small angle computes just that. So does
    # one short of pi for opposite ends, between which there are many arcs: the line through 0.
    omega = (first * last).sum().clamp(-1, 1).arccos().clamp(1e-3, pi - 1e-3)
    t = torch.linspace(0, 1, points, device=start.device, dtype=start.dtype)
    t = t.view(-1, *[1] * start.dim())
    direction = (((1 - t) * omega).sin() * first + (t * omega).sin() * last) / omega.sin()
    path: Tensor = ((1 - t) * lengths[0] + t * lengths[1]) * direction
    return path


def tiles(images: Tensor, columns: int = COLUMNS) -> Picture:
    """Images (N, C, H, W) in [-1, 1] side by side, `columns` to a row, small ones enlarged."""
    pixels = to_uint8(images.detach().float().cpu()).numpy()
    scale = max(1, READABLE // max(pixels.shape[2:]))
    pixels = pixels.repeat(scale, axis=2).repeat(scale, axis=3)
    n, channels, height, width = pixels.shape

    rows = -(-n // columns)
    picture = np.full(
        (rows * (height + GAP) + GAP, columns * (width + GAP) + GAP, channels), GRAY, np.uint8
    )
    for i, tile in enumerate(pixels):
        top = GAP + i // columns * (height + GAP)
        left = GAP + i % columns * (width + GAP)
        picture[top : top + height, left : left + width] = tile.transpose(1, 2, 0)
    return picture


def stack(*parts: Picture) -> Picture:
    """Pictures of the same width, one below the other with a wider gap."""
    gap = np.full((4 * GAP, *parts[0].shape[1:]), GRAY, np.uint8)
    spaced: Iterable[Picture] = (piece for part in parts for piece in (part, gap))
    return np.concatenate(list(spaced)[:-1])


def png(picture: Picture) -> bytes:
    """A picture as a PNG file's content."""
    from PIL import Image

    buffer = BytesIO()
    plain: Any = picture[:, :, 0] if picture.shape[2] == 1 else picture
    Image.fromarray(plain).save(buffer, format="png")
    return buffer.getvalue()


def save_png(path: Path, picture: Picture) -> None:
    """Write a picture, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, png(picture))
