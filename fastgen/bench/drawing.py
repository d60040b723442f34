"""A canvas for plain charts: text, lines, bars and markers with smooth edges, by Pillow alone."""

from __future__ import annotations

import io
from typing import Literal

from PIL import Image, ImageDraw, ImageFont

Anchor = Literal["left", "middle", "right"]
Point = tuple[float, float]

INK = "#1f2430"
QUIET = "#6b7280"
RULE = "#e3e6eb"
PAPER = "#ffffff"

SMOOTHING = 2
"""Charts are drawn so many times as large and made smaller at the end."""


class Canvas:
    """A white sheet of `width` by `height` pixels, measured from the upper left corner."""

    def __init__(self, width: int, height: int) -> None:
        self.width, self.height = width, height
        self._image = Image.new("RGB", (width * SMOOTHING, height * SMOOTHING), PAPER)
        self._draw = ImageDraw.Draw(self._image)
        self._fonts: dict[float, ImageFont.FreeTypeFont | ImageFont.ImageFont] = {}

    def text(
        self, at: Point, words: str, *, size: float = 13, color: str = INK, anchor: Anchor = "left"
    ) -> None:
        """Write words; `at` is the middle of the line's height at the anchor."""
        code = {"left": "lm", "middle": "mm", "right": "rm"}[anchor]
        self._draw.text(_scaled(at), words, color, self._font(size), anchor=code)

    def text_width(self, words: str, *, size: float = 13) -> float:
        """How wide words would be."""
        return self._draw.textlength(words, self._font(size)) / SMOOTHING

    def line(self, start: Point, end: Point, *, color: str = RULE, width: float = 1) -> None:
        """A straight line."""
        thick = max(1, round(width * SMOOTHING))
        self._draw.line([_scaled(start), _scaled(end)], color, thick)

    def bar(self, left: float, top: float, width: float, height: float, color: str) -> None:
        """A filled bar with rounded ends, never so short that it is not seen."""
        box = [_scaled((left, top)), _scaled((left + max(width, 2), top + height))]
        self._draw.rounded_rectangle(box, radius=2 * SMOOTHING, fill=color)

    def disc(self, at: Point, radius: float, color: str) -> None:
        """A filled circle with a white rim."""
        x, y = at
        for r, fill in ((radius + 1.2, PAPER), (radius, color)):
            self._draw.ellipse([_scaled((x - r, y - r)), _scaled((x + r, y + r))], fill)

    def square(self, at: Point, radius: float, color: str) -> None:
        """A filled square with a white rim."""
        x, y = at
        for r, fill in ((radius + 1.2, PAPER), (radius, color)):
            self._draw.rectangle([_scaled((x - r, y - r)), _scaled((x + r, y + r))], fill)

    def png(self) -> bytes:
        """The finished picture."""
        small = self._image.resize((self.width, self.height), Image.Resampling.LANCZOS)
        file = io.BytesIO()
        small.save(file, "PNG", optimize=True)
        return file.getvalue()

    def _font(self, size: float) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
        if size not in self._fonts:
            self._fonts[size] = ImageFont.load_default(size * SMOOTHING)
        return self._fonts[size]


def _scaled(point: Point) -> Point:
    return point[0] * SMOOTHING, point[1] * SMOOTHING
