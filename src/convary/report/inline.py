# SPDX-License-Identifier: Apache-2.0
"""A matplotlib figure inside the page: its colours follow the page, its parts know their network, its points answer.

``belongs`` and ``mark`` are called while a figure is drawn; ``anonymous`` removes their traces from a picture file.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from convary.report.style import COLORS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_OWNER = "network "  # begins the id of a part that a network's name follows


@dataclass(frozen=True)
class Marks:
    """Points of one network that say something: ``x`` and ``y`` in data, one of ``texts`` each."""

    panel: Any
    name: str
    x: Sequence[float]
    y: Sequence[float]
    texts: Sequence[str]


_marks: WeakKeyDictionary[Any, list[Marks]] = WeakKeyDictionary()


def belongs(name: str, artists: Iterable[Any]) -> None:
    """Say that these parts of a figure show the network ``name``; the page can hide them."""
    for artist in artists:
        artist.set_gid(_OWNER + name)


def mark(panel: Axes, name: str, x: Sequence[float], y: Sequence[float], texts: Sequence[str]) -> None:
    """Give points of the network ``name`` a text each, for the pointer and the keyboard."""
    _marks.setdefault(panel.figure, []).append(Marks(panel, name, x, y, texts))


def anonymous(drawn: Figure) -> None:
    """Forget which parts belong to whom: in a file of its own their ids would be there several times."""
    for artist in drawn.findobj(lambda artist: artist.get_gid() is not None):
        artist.set_gid(None)


def inline_svg(drawn: Figure, label: str, prefix: str) -> str:
    """The figure as a named ``<svg>``: no prolog, ids made unique by ``prefix``, colours as CSS variables."""
    buffer = io.StringIO()
    drawn.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(rf'<g id="{_OWNER}([^"]*)"', r'<g data-m="\1"', svg)
    svg = re.sub(r'\bid="', f'id="{prefix}-', svg)
    svg = re.sub(r'(url\(#|href="#)', rf"\1{prefix}-", svg)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) width="([\d.]+)pt"', _width, svg, count=1)
    for role, (light, _) in COLORS.items():
        svg = svg.replace(light, f"var(--{role})")
    name = escape(label)
    svg = re.sub(
        "<svg([^>]*)>", rf'<svg role="img" aria-label="{name}" data-marks\1><title>{name}</title>', svg, count=1
    )
    return svg.replace("</svg>", f"{''.join(_circles(drawn))}</svg>")


def _circles(drawn: Figure) -> Iterable[str]:
    """The marks as transparent circles, in the figure's points from its upper left corner."""
    height, scale = drawn.get_figheight() * 72, 72 / drawn.dpi
    for marks in _marks.get(drawn, []):
        for x, y, text in zip(marks.x, marks.y, marks.texts, strict=True):
            right, up = marks.panel.transData.transform((x, y)) * scale
            yield (
                f'<circle class="mark" data-m="{escape(marks.name)}" cx="{right:.1f}" cy="{height - up:.1f}" r="6">'
                f"<title>{escape(text)}</title></circle>"
            )


def _width(match: re.Match[str]) -> str:
    """Natural size on a wide screen (points to CSS pixels), shrinking with the page."""
    return f'{match[1]} style="width:100%;max-width:{float(match[2]) * 4 / 3:.0f}px"'
