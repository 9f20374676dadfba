# SPDX-License-Identifier: Apache-2.0
"""A drawing in the report's colours: boxes, arrows, small kernels, and words as outlines, which need no font."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from html import escape
from pathlib import Path

import matplotlib
from matplotlib.ft2font import FT2Font, LoadFlags

from convary.report.style import COLORS, SERIES
from convary.report.themes import themed

EM = 100  # of the outlines
FONTS = {False: "DejaVuSans.ttf", True: "DejaVuSans-Bold.ttf"}  # which matplotlib brings
LETTERS = {1: "M{} {}", 2: "L{} {}", 3: "Q{} {} {} {}", 4: "C{} {} {} {} {} {}", 79: "Z"}
LENGTHS = {1: 1, 2: 1, 3: 2, 4: 3, 79: 1}  # vertices, by matplotlib's codes of a path
EXPERTS = [COLORS[role][0] for role in SERIES[:4]]


@cache
def _font(bold: bool) -> FT2Font:
    font = FT2Font(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / FONTS[bold]))
    font.set_size(EM, 72)
    return font


@cache
def glyph(letter: str, bold: bool) -> tuple[str, float]:
    """The outline of a letter and its width, at a size of ``EM``."""
    font = _font(bold)
    width = font.load_char(ord(letter), flags=LoadFlags.NO_HINTING).linearHoriAdvance / 65536
    (vertices, codes), parts, i = font.get_path(), [], 0
    while i < len(codes):
        count = LENGTHS[codes[i]]
        numbers = [f"{value:.0f}" for x, y in vertices[i : i + count] for value in (x, -y)]
        parts.append(LETTERS[codes[i]].format(*numbers))
        i += count
    return "".join(parts), width


def color(role: str) -> str:
    """The light colour of a role, which the file turns dark itself; any other colour stays."""
    return role if role.startswith("#") else COLORS[role][0]


def blend(shares: Sequence[float]) -> str:
    """The colour of a mixture of the experts."""
    total = sum(shares)
    channels = [
        sum(share * int(expert[1 + 2 * i : 3 + 2 * i], 16) for share, expert in zip(shares, EXPERTS, strict=False))
        for i in range(3)
    ]
    return "#" + "".join(f"{round(value / total):02x}" for value in channels)


class Drawing:
    """An SVG that grows.

    Args:
        width: In pixels.
        height: In pixels.
        title: What it is.
        description: What it shows, for those who cannot see it.
    """

    def __init__(self, width: float, height: float, title: str, description: str) -> None:
        self.size, self.said, self.parts = (width, height), (title, description), []
        self.letters: dict[tuple[str, bool], str] = {}
        self.box(0, 0, width, height, fill=color("surface"), radius=8)

    def box(
        self, x: float, y: float, width: float, height: float, *, fill: str = "none", edge: str = "none",
        opacity: float = 1.0, radius: float = 0.0, dashed: bool = False,
    ) -> None:  # fmt: skip
        """A rectangle."""
        more = (f' rx="{radius:g}"' if radius else "") + (' stroke-dasharray="3 3"' if dashed else "")
        more += f' fill-opacity="{opacity:.2f}"' if opacity < 1 else ""
        style = f"fill: {fill}; stroke: {edge}" if edge != "none" else f"fill: {fill}"
        place = f'x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}"'
        self.parts.append(f'<rect {place}{more} style="{style}"/>')

    def circle(self, x: float, y: float, radius: float, *, fill: str = "none", edge: str = "none") -> None:
        """A circle about a point."""
        style = f"fill: {fill}; stroke: {edge}"
        self.parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius:.1f}" style="{style}"/>')

    def line(self, *points: tuple[float, float], dashed: bool = False) -> None:
        """A line with corners."""
        way = "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
        more = ' stroke-dasharray="3 3"' if dashed else ""
        style = f"fill: none; stroke: {color('muted')}; stroke-width: 1.5"
        self.parts.append(f'<path d="M{way}"{more} style="{style}"/>')

    def arrow(self, *points: tuple[float, float]) -> None:
        """A line with corners that ends in a head."""
        (before_x, before_y), (x, y) = points[-2:]
        turn = math.atan2(y - before_y, x - before_x)
        back = (x - 6 * math.cos(turn), y - 6 * math.sin(turn))
        self.line(*points[:-1], back)
        sides = [(back[0] + s * 4 * math.sin(turn), back[1] - s * 4 * math.cos(turn)) for s in (1, -1)]
        corners = "L".join(f"{a:.1f} {b:.1f}" for a, b in ((x, y), *sides))
        self.parts.append(f'<path d="M{corners}Z" style="fill: {color("muted")}"/>')

    def text(
        self, x: float, y: float, words: str, *, size: float = 11, role: str = "ink", bold: bool = False,
        anchor: str = "middle",
    ) -> None:  # fmt: skip
        """Words on a line; ``x`` is their middle, start or end."""
        scale = size / EM
        width = sum(glyph(letter, bold)[1] for letter in words) * scale
        x -= {"start": 0.0, "middle": width / 2, "end": width}[anchor]
        self.parts.append(f'<g style="fill: {color(role)}">')
        for letter in words:
            if letter != " ":
                name = self.letters.setdefault((letter, bold), f"g{len(self.letters)}")
                place = f"translate({x:.1f} {y:.1f}) scale({scale:.3f})"
                self.parts.append(f'<use href="#{name}" transform="{place}"/>')
            x += glyph(letter, bold)[1] * scale
        self.parts.append("</g>")

    def lines(self, x: float, y: float, words: Sequence[str], **how) -> None:
        """Words on several lines about a height."""
        for i, line in enumerate(words):
            self.text(x, y + 4 + (i - (len(words) - 1) / 2) * 14, line, **how)

    def cells(self, x: float, y: float, side: float, fills: Sequence[Sequence[tuple[str, float]]]) -> None:
        """A kernel: rows of squares, each with its colour and strength."""
        for i, row in enumerate(fills):
            for j, (fill, opacity) in enumerate(row):
                self.box(x + j * side, y + i * side, side - 0.8, side - 0.8, fill=fill, opacity=opacity)

    def svg(self) -> str:
        """The file, for light and dark pages."""
        width, height = self.size
        title, description = (escape(words) for words in self.said)
        outlines = "".join(f'<path id="{name}" d="{glyph(*key)[0]}"/>' for key, name in self.letters.items())
        head = (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" width="{width:g}" '
            f'height="{height:g}" role="img" aria-labelledby="t d">'
            f'<title id="t">{title}</title><desc id="d">{description}</desc><defs>{outlines}</defs>'
        )
        return themed(head + "\n".join(self.parts)) + "</svg>\n"
