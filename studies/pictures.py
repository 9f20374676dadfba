# SPDX-License-Identifier: Apache-2.0
"""The evidence page's pictures: accuracy against cost, and the gap of every network to static."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

from matplotlib.ticker import FixedLocator, MaxNLocator, NullLocator

from convary.report import style
from convary.report.figures import label
from convary.report.tables import signed
from convary.report.themes import save
from studies.results import AXES, Arm

if TYPE_CHECKING:
    from matplotlib.axes import Axes

TICKS = (1.0, 1.2, 1.5, 2.0, 3.0, 4.0)
GAPS = {
    "s2-papers": "from scratch",
    "s2-kin": "from scratch",
    "s6-trained": "from a trained static network",
    "s7-conditions": "four conditions",
    "s8-confirm": "Fashion-MNIST, from scratch",
}


def picture(blocks: dict[str, list[Arm]], names: tuple[str, ...], path: Path, title: str) -> None:
    """Top-1 against cost: static networks of all widths as a line, every method a point with its interval.

    Each panel ends where the methods do; the line of the widths leaves it there.

    Args:
        blocks: As :func:`studies.results.read` gives them.
        names: The blocks to draw, which share their static network.
        path: Of the SVG.
        title: Above the picture.
    """
    arms = [arm for name in names for arm in blocks.get(name, [])]
    looks = style.looks([arm.name for arm in arms])
    with style.rc(text_as_paths=True):
        drawn, panels = style.figure(10.5, 5.0, 2)
        for panel, axis in zip(panels, ("macs", "batch 16"), strict=True):
            _panel(panel, [arm for arm in arms if arm.ratio(axis) is not None], axis, looks)
            style.titled(panel, "Top-1 accuracy (%)", f"{AXES[axis]} (times static)")
        drawn.suptitle(title, fontsize=10, x=0.01, ha="left", color=style.COLORS["muted"][0])
        save(drawn, path)


def _panel(panel: Axes, arms: list[Arm], axis: str, looks: dict[str, style.Look]) -> None:
    def x(arm: Arm) -> float:
        return arm.ratio(axis) or math.nan

    def y(arm: Arm) -> float:
        return sum(arm.tops) / len(arm.tops)

    family = sorted((arm for arm in arms if arm.name.partition("@")[0] == "static"), key=x)
    line = [x(arm) for arm in family], [y(arm) for arm in family]
    end = 1.05 * max(x(arm) for arm in arms if arm not in family)
    places, bars = [], []
    for arm in (arm for arm in arms if x(arm) <= end):
        here, mean, look = x(arm), y(arm), looks[arm.name]
        gap = arm.gap()
        half = 0.0 if gap is None else gap["high"] - gap["mean"]
        panel.errorbar(
            here,
            mean,
            yerr=half,
            fmt=look.marker,
            color=look.color,
            ms=8,
            mec=style.COLORS["surface"][0],
            elinewidth=1.3,
        )
        words = f"static, {arm.ratio('macs'):.2f} MACs" if arm.name.startswith("static@") else arm.entry["title"]
        places.append((here, mean, words, look.color))
        bars.append((here, mean - half, here, mean + half))
    panel.set_xscale("log")  # in which the line is what equal cost is read from
    panel.margins(x=0.15, y=0.12)
    low, high = panel.get_xlim()
    panel.set_xlim(low, high)  # whatever the line does
    panel.set_ylim(*panel.get_ylim())
    panel.plot(*line, "-", color=style.COLORS["static"][0], lw=1.4, zorder=1)
    panel.xaxis.set_major_locator(FixedLocator(TICKS) if high > 1.5 * low else MaxNLocator(5))
    panel.xaxis.set_major_formatter("{x:g}")
    panel.xaxis.set_minor_locator(NullLocator())
    label(panel, places, bars)


def gaps(blocks: dict[str, list[Arm]], path: Path, title: str) -> None:
    """The gap of every network to static: seeds as dots, the mean with its 95 % interval.

    Args:
        blocks: As :func:`studies.results.read` gives them.
        path: Of the SVG.
        title: Above the picture.
    """
    rows = [(arm, how) for block, how in GAPS.items() for arm in blocks.get(block, []) if not arm.is_static]
    looks = style.looks([arm.name for arm, _ in rows])
    muted = style.COLORS["muted"][0]
    with style.rc(text_as_paths=True):
        drawn, (panel,) = style.figure(10.5, 0.75 + 0.42 * len(rows))
        for y, (arm, _) in enumerate(rows):
            gap, look = arm.gap(), looks[arm.name]
            if gap is not None:
                panel.plot(gap["gaps"], [y] * len(gap["gaps"]), "o", ms=4, color=look.color, alpha=0.4, mew=0)
                panel.plot([gap["low"], gap["high"]], [y, y], "-", lw=2.0, color=look.color)
                panel.plot([gap["mean"]], [y], look.marker, ms=9, color=look.color, mec=style.COLORS["surface"][0])
                panel.annotate(f"{signed(gap['mean'])}", (1.01, y), xycoords=("axes fraction", "data"), va="center",
                               color=look.color, fontsize=9.5, weight="bold")  # fmt: skip
        panel.axvline(0.0, color=muted, linewidth=1.0)
        panel.set_yticks(range(len(rows)), [f"{arm.entry['title']}, {how}" for arm, how in rows])
        panel.invert_yaxis()
        panel.grid(visible=False)
        panel.margins(y=0.12)
        style.titled(panel, title, "points of top-1 above the static network with the same seed")
        save(drawn, path)
