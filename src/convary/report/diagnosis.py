# SPDX-License-Identifier: Apache-2.0
"""A picture of all dynamic layers: who gets how much of the mixture, and what varies with the input."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from convary._diagnose import Diagnosis
from convary.extras import require
from convary.report.style import COLORS, SERIES, figure, rc, titled
from convary.report.themes import save

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, MUTED, SURFACE = (COLORS[role][0] for role in ("ink", "muted", "surface"))
BLUE, ORANGE, GREEN = (COLORS[role][0] for role in SERIES[:3])


def draw(diagnosis: Diagnosis, path: str | Path) -> None:
    """Write the picture of a diagnosis.

    Args:
        diagnosis: What ``convary.diagnose`` found.
        path: .svg, .png or .pdf, on a white ground; an SVG turns dark for readers who asked for it.

    Raises:
        MissingExtraError: matplotlib is not installed.
        OSError: ``path`` cannot be written.
    """
    require("convary.report.draw", "report", "matplotlib")
    with rc(text_as_paths=True):
        save(picture(diagnosis.to_dict()), Path(path))


def picture(diagnosis: dict[str, Any]) -> Figure:
    """Three panels over the layers from input to output; ``diagnosis`` as ``Diagnosis.to_dict`` gives it."""
    layers = diagnosis["layers"]
    drawn, (first, second, third) = figure(9.6, 2.9, 3)
    _shares(first, layers)
    _follows(second, layers)
    _diverges(third, layers)
    return drawn


def _shares(panel: Axes, layers: list[dict[str, Any]]) -> None:
    """Stacked mean shares, times K: an equal share is 1. A cross marks an expert that no input uses."""
    depth = range(1, len(layers) + 1)
    for at, layer in zip(depth, layers, strict=True):
        base = 0.0
        for expert, share in enumerate(layer["share"]):
            color = COLORS[SERIES[expert % len(SERIES)]][0]
            panel.bar(at, share, bottom=base, width=0.92, color=color, alpha=0.75, linewidth=0)
            if expert in layer["dead"]:
                panel.plot(at, base + share / 2, "x", color=INK, ms=4, mew=1.2, clip_on=False)
            base += share
    panel.set_ylim(0, 1)
    panel.grid(False)
    _layers(panel, len(layers), "Share of each expert (× dead)")


def _follows(panel: Axes, layers: list[dict[str, Any]]) -> None:
    """Entropy of the shares, and how much the coefficients vary with the input."""
    depth = range(1, len(layers) + 1)
    known = [(at, layer["entropy"]) for at, layer in zip(depth, layers, strict=True) if layer["entropy"] is not None]
    if known:
        panel.plot(*zip(*known, strict=True), color=BLUE, marker="o", ms=4, mec=SURFACE, lw=1.4, label="entropy")
    variation = [layer["variation"] for layer in layers]
    panel.plot(depth, variation, color=ORANGE, marker="s", ms=4, mec=SURFACE, lw=1.4, label="variation with the input")
    panel.set_ylim(0, max(1.05, 1.05 * max(variation)))
    panel.legend(frameon=False, fontsize=8, labelcolor=MUTED, loc="best")
    _layers(panel, len(layers), "Entropy (1 is uniform) and variation")


def _diverges(panel: Axes, layers: list[dict[str, Any]]) -> None:
    """Spread of the experts around their mean; an open marker where two are equal."""
    depth = range(1, len(layers) + 1)
    panel.plot(depth, [layer["divergence"] for layer in layers], color=GREEN, lw=1.4)
    for at, layer in zip(depth, layers, strict=True):
        fill = SURFACE if layer["duplicates"] else GREEN
        panel.plot(at, layer["divergence"], "D", ms=4.5, color=GREEN, mfc=fill)
    panel.set_ylim(0, 1.08 * max(layer["divergence"] for layer in layers) + 1e-6)
    _layers(panel, len(layers), "Divergence (open: some are equal)")


def _layers(panel: Axes, count: int, title: str) -> None:
    panel.set_xlim(0.4, count + 0.6)
    panel.locator_params(axis="x", integer=True)
    titled(panel, title, "dynamic layer, from input to output")
