from __future__ import annotations

import math

import pytest
import torch
from scipy import ndimage

from fastgen.data.augmentation import AffineJitter


def test_no_jitter_changes_nothing():
    images = torch.rand(3, 2, 9, 8)
    torch.testing.assert_close(AffineJitter(0, 0, 0)(images), images)


def test_what_comes_in_from_outside_repeats_the_border():
    images = torch.full((4, 1, 9, 8), 0.75)
    moved = AffineJitter(rotation=0.5, scale=0.5, shift=0.5)(images)
    torch.testing.assert_close(moved, images)


def test_each_image_gets_its_own_change_and_the_seed_decides():
    images = torch.rand(1, 1, 16, 16).expand(4, -1, -1, -1)
    torch.manual_seed(1)
    first = AffineJitter()(images)
    torch.manual_seed(1)
    assert torch.equal(AffineJitter()(images), first)
    assert not torch.allclose(first[0], first[1])


@pytest.mark.parametrize(("height", "width"), [(33, 33), (33, 65), (81, 33)])
@pytest.mark.parametrize("seed", range(3))
def test_the_change_is_scipys_affine_transform(seed, height, width):
    """Rotation, scale and shift as scipy understands them, away from the border."""
    image = torch.rand(1, 1, height, width, generator=torch.Generator().manual_seed(seed))
    jitter = AffineJitter(rotation=0.15, scale=0.1, shift=0.06)
    torch.manual_seed(seed)
    ours = jitter(image)[0, 0]

    torch.manual_seed(seed)
    draws = [torch.rand(shape) * 2 - 1 for shape in ((1,), (1,), (1, 2, 1))]
    angle, size = 0.15 * draws[0].item(), 1 + 0.1 * draws[1].item()
    shift_x, shift_y = (0.06 * draws[2].flatten() * torch.tensor([width, height])).tolist()
    cosine, sine = size * torch.tensor(angle).cos().item(), size * torch.tensor(angle).sin().item()
    matrix = [[cosine, sine], [-sine, cosine]]  # rows first: scipy's axes are (y, x)
    y, x = (height - 1) / 2, (width - 1) / 2
    offset = [
        y - matrix[0][0] * y - matrix[0][1] * x + shift_y,
        x - matrix[1][0] * y - matrix[1][1] * x + shift_x,
    ]
    theirs = ndimage.affine_transform(image[0, 0].numpy(), matrix, offset, order=1)
    inner = slice(12, -12), slice(12, -12)
    torch.testing.assert_close(ours[inner], torch.from_numpy(theirs)[inner], atol=1e-3, rtol=0)


def test_a_square_in_an_oblong_image_stays_a_square(monkeypatch):
    monkeypatch.setattr(torch, "rand", lambda shape, device: torch.ones(shape))
    image = torch.zeros(1, 1, 16, 48)
    image[..., 4:12, 20:28] = 1
    turned = AffineJitter(rotation=math.pi / 4, scale=0, shift=0)(image)[0, 0] > 0.5
    rows, columns = turned.any(1).sum().item(), turned.any(0).sum().item()
    assert rows == columns == pytest.approx(8 * math.sqrt(2), abs=1.5)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_shape_dtype_range_and_layout_stay(dtype, layout):
    images = (torch.rand(2, 3, 8, 8) * 2 - 1).to(dtype).contiguous(memory_format=layout)
    moved = AffineJitter()(images)
    assert moved.shape == images.shape
    assert moved.dtype == dtype
    assert moved.stride() == images.stride()
    assert moved.abs().max() <= 1
