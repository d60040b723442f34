from __future__ import annotations

import re

import pytest

from fastgen.models.pyramid import pyramid


@pytest.mark.parametrize(
    ("size", "stages", "top"),
    [
        ((8, 8), 1, (4, 4)),
        ((16, 16), 2, (4, 4)),
        ((28, 28), 2, (7, 7)),
        ((32, 32), 3, (4, 4)),
        ((48, 48), 4, (3, 3)),
        ((64, 64), 4, (4, 4)),
        ((128, 128), 5, (4, 4)),
        ((6, 6), 1, (3, 3)),
        ((16, 64), 2, (4, 16)),
        ((64, 48), 4, (4, 3)),
        ((16, 18), 1, (8, 9)),
    ],
)
def test_images_are_halved_to_a_small_top(
    size: tuple[int, int], stages: int, top: tuple[int, int]
) -> None:
    plan = pyramid((3, *size), 16)
    assert (len(plan.channels), plan.top) == (stages, top)


def test_channels_double_up_to_eight_times_the_width() -> None:
    assert pyramid((3, 128, 128), 10).channels == (10, 20, 40, 80, 80)


@pytest.mark.parametrize(
    ("size", "suggested"),
    [
        ((17, 17), "16x16 or 20x20"),
        ((34, 34), "32x32 or 40x40"),
        ((100, 100), "96x96 or 112x112"),
        ((4, 4), "6x6"),
        ((1, 1), "6x6"),
        ((7, 64), "6x32 or 12x64"),
    ],
)
def test_a_size_that_cannot_be_is_refused_with_the_nearest_that_can(
    size: tuple[int, int], suggested: str
) -> None:
    with pytest.raises(ValueError, match=f"for example to {re.escape(suggested)}\\."):
        pyramid((1, *size), 8)


def test_a_sliver_is_refused() -> None:
    with pytest.raises(ValueError, match="6x100 do not halve evenly"):
        pyramid((1, 6, 100), 8)


def test_every_size_is_either_halved_exactly_or_gets_suggestions_that_are() -> None:
    for height in range(1, 66, 3):
        for width in range(1, 66):
            try:
                plan = pyramid((1, height, width), 8)
            except ValueError as error:
                suggestions = re.findall(r"(\d+)x(\d+)", str(error).split("for example")[1])
                assert suggestions
                for suggestion in suggestions:
                    pyramid((1, int(suggestion[0]), int(suggestion[1])), 8)
            else:
                scale = 2 ** len(plan.channels)
                assert (plan.top[0] * scale, plan.top[1] * scale) == (height, width)


@pytest.mark.parametrize(
    ("shape", "width", "complaint"),
    [
        ((5, 16, 16), 8, "1 to 4 channels"),
        ((0, 16, 16), 8, "three positive integers"),
        ((16, 16), 8, "three positive integers"),
        ((1, 16.0, 16), 8, "three positive integers"),
        ((1, 16, 16), 0, "width must be"),
    ],
)
def test_shapes_that_are_no_images_are_refused(
    shape: tuple[int, ...], width: int, complaint: str
) -> None:
    with pytest.raises(ValueError, match=complaint):
        pyramid(shape, width)
