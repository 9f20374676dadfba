# SPDX-License-Identifier: Apache-2.0
"""Colours and type of the report: one colour and one marker per method, in the page's text, tables and figures alike.

Figures are drawn with the light colours; in the page each of those becomes a CSS variable, so that an inlined figure
follows the reader's light or dark setting. Series colours start from Okabe and Ito's, which colour-blind readers can
tell apart; markers differ as well.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import cycle
from typing import TYPE_CHECKING, Any

from convary.methods import METHODS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# role: (light, dark); the light values are all different, because figures are recoloured by value
COLORS = {
    "surface": ("#ffffff", "#14181f"),
    "ink": ("#1b2330", "#e6eaf0"),
    "muted": ("#5b6675", "#9aa6b5"),
    "grid": ("#e4e8ed", "#2b323d"),
    "static": ("#6b7280", "#a3acb9"),
    "series-0": ("#0072b2", "#58aee6"),
    "series-1": ("#d55e00", "#f08d49"),
    "series-2": ("#009e73", "#35c99d"),
    "series-3": ("#a03a78", "#dd85b8"),
    "series-4": ("#b58900", "#e5c04b"),
    "series-5": ("#4a4fb5", "#9a9ef0"),
    "series-6": ("#7a5230", "#c79a72"),
    "series-7": ("#c2185b", "#f06595"),
    "series-8": ("#5f7a1f", "#a9c95a"),
}
SERIES = [role for role in COLORS if role.startswith("series-")]
MARKERS = [("s", "■"), ("^", "▲"), ("D", "◆"), ("v", "▼"), ("P", "✚"), ("*", "★"), ("X", "✖"), ("p", "⬟"), ("h", "⬢")]
STATIC = [("o", "●"), ("<", "◀"), (">", "▶"), ("d", "♦")]
FONTS = ("Inter", "Helvetica Neue", "Helvetica", "Arial", "Liberation Sans", "DejaVu Sans")


@dataclass(frozen=True, kw_only=True)
class Look:
    """How one method is drawn: ``color`` for figures, ``role`` for CSS, ``marker`` and the same shape as ``glyph``."""

    role: str
    marker: str
    glyph: str

    @property
    def color(self) -> str:
        """The light colour, which matplotlib draws with."""
        return COLORS[self.role][0]


def looks(names: Iterable[str]) -> dict[str, Look]:
    """One look per network: static ones are grey, a method of ``METHODS`` has one colour in every report.

    Variants of a method (``"odconv:experts=2"``) share its colour and differ in their markers.
    """
    names = list(names)
    static = [name for name in names if name.partition("@")[0] == "static"]
    found = {name: Look(role="static", marker=m, glyph=g) for name, (m, g) in zip(static, cycle(STATIC), strict=False)}
    methods = [method.name for method in METHODS]
    variants: dict[str, int] = {}
    for name in names:
        if name not in found:
            method = name.partition(":")[0]
            if method not in methods:
                methods.append(method)
            index, variant = methods.index(method), variants.setdefault(method, 0)
            marker, glyph = MARKERS[(index + index // len(SERIES) + variant) % len(MARKERS)]  # a tenth method is new
            found[name] = Look(role=SERIES[index % len(SERIES)], marker=marker, glyph=glyph)
            variants[method] += 1
    return {name: found[name] for name in names}


def css_variables() -> str:
    """The colour table as CSS: light by default, dark where the reader's system asks for it."""
    light = "".join(f"--{role}:{pair[0]};" for role, pair in COLORS.items())
    dark = "".join(f"--{role}:{pair[1]};" for role, pair in COLORS.items())
    return f":root{{{light}}}@media (prefers-color-scheme:dark){{:root{{{dark}}}}}"


def figure(width: float, height: float, columns: int = 1) -> tuple[Figure, list[Axes]]:
    """An empty figure of ``columns`` panels in the report's style; width and height in inches."""
    from matplotlib.figure import Figure

    drawn = Figure(figsize=(width, height), layout="constrained")
    panels = [drawn.add_subplot(1, columns, column + 1) for column in range(columns)]
    for panel in panels:
        panel.spines[["top", "right", "left"]].set_visible(False)
        panel.spines["bottom"].set_color(COLORS["muted"][0])
        panel.grid(axis="y", color=COLORS["grid"][0], linewidth=0.8)
        panel.set_axisbelow(True)
        panel.tick_params(length=0, colors=COLORS["muted"][0], labelsize=9, pad=5)
        panel.tick_params(axis="x", length=3)
    return drawn, panels


def titled(panel: Axes, y: str, x: str) -> None:
    """Name the axes: y above the panel, where it reads without turning the head; x below."""
    panel.set_title(y, loc="left", fontsize=9.5, color=COLORS["ink"][0], pad=10, fontweight="bold")
    panel.set_xlabel(x, fontsize=9, color=COLORS["muted"][0], labelpad=5)


def rc(*, text_as_paths: bool = False) -> Any:
    """The matplotlib settings to draw under: text stays text in the page and becomes outlines in a picture file."""
    import matplotlib
    from matplotlib import font_manager

    installed = set(font_manager.get_font_names())
    return matplotlib.rc_context(
        {
            "svg.fonttype": "path" if text_as_paths else "none",
            "svg.hashsalt": "convary",
            "font.family": [name for name in FONTS if name in installed] or ["sans-serif"],
            "axes.unicode_minus": True,
        }
    )
