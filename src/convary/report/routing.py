# SPDX-License-Identifier: Apache-2.0
"""Heat maps of the mixing coefficients: for each dynamic layer and factor, the mean over each class's test images.

Drawn as plain SVG, not by matplotlib, so that a map is a few kilobytes and follows light and dark. Each row has its
values as a title; the page's script makes of them what a cell says. Colour is the departure from the mean over classes,
on one scale per method and factor.
"""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from typing import Any

from convary.report.figures import between_share

AXES = {"kernel": "kernels", "filter": "filters", "channel": "channels", "tap": "taps"}


@dataclass(frozen=True, kw_only=True)
class Size:
    """How large maps are drawn, in CSS pixels; ``columns`` overrides the width of a column by factor."""

    row: float
    column: float
    columns: dict[str, float]
    labels: float
    font: float


@dataclass(frozen=True, kw_only=True)
class Grid:
    """The cells of one map: ``row`` high, ``column`` wide, ``margin`` for the class names."""

    row: float
    column: float
    margin: float
    font: float


MOST_CLASSES = 50
WIDE = Size(row=15, column=11, columns={"kernel": 24, "tap": 14}, labels=86, font=10.5)
SMALL = Size(row=6, column=5, columns={"kernel": 12, "tap": 6}, labels=0, font=0)


def routing_sections(methods: list[dict[str, Any]], classes: list[str]) -> list[dict[str, Any]]:
    """Per dynamic method: scale of each factor, its first, middle and last layer drawn large and the others small."""
    return [_section(method, classes[:MOST_CLASSES]) for method in methods if method["routing"]]


def _section(method: dict[str, Any], classes: list[str]) -> dict[str, Any]:
    layers: dict[str, list[dict[str, Any]]] = {}
    for entry in method["routing"]:
        layers.setdefault(entry["layer"], []).append(entry)
    names = list(layers)
    shown = [names[index] for index in sorted({0, (len(names) - 1) // 2, len(names) - 1})]
    scales: dict[str, float] = {}
    for entry in method["routing"]:
        factor = entry["factor"]
        scales[factor] = max(scales.get(factor, 0.0), _largest_departure(entry["by_class"]))
    place = {0: "first", len(names) - 1: "last"}
    return {
        "name": method["name"],
        "scales": [{"factor": factor, "axis": AXES.get(factor, factor), "value": v} for factor, v in scales.items()],
        "shown": [
            {
                "layer": name,
                "place": "only" if len(names) == 1 else place.get(names.index(name), "middle"),
                "depth": names.index(name) + 1,
                "maps": [
                    _map(entry, classes, scales[entry["factor"]], WIDE, labels=not first)
                    for first, entry in enumerate(layers[name])
                ],
            }
            for name in shown
        ],
        "others": [
            {
                "layer": name,
                "depth": index + 1,
                "maps": [_map(entry, classes, scales[entry["factor"]], SMALL, labels=False) for entry in layers[name]],
            }
            for index, name in enumerate(names)
            if name not in shown
        ],
        "count": len(names),
    }


def _largest_departure(rows: list[list[float]]) -> float:
    means = _means(rows)
    return max(abs(value - mean) for row in rows for value, mean in zip(row, means, strict=True))


def _means(rows: list[list[float]]) -> list[float]:
    return [sum(column) / len(column) for column in zip(*rows, strict=True)]


def _map(entry: dict[str, Any], classes: list[str], scale: float, size: Size, *, labels: bool) -> dict[str, Any]:
    factor = entry["factor"]
    column, row = size.columns.get(factor, size.column), max(2.0, min(size.row, 24 * size.row / len(classes)))
    legible = labels and row >= size.font
    grid = Grid(row=row, column=column, margin=size.labels if legible else 0.0, font=size.font)
    return {
        "factor": factor,
        "axis": AXES.get(factor, factor),
        "share": None if (share := between_share(entry)) is None else 100 * share,
        "between": entry["between_class_std"],
        "within": entry["within_class_std"],
        "entropy": entry["entropy"],
        "inner": column * len(entry["by_class"][0]),
        "svg": heat_map(
            entry["by_class"][: len(classes)], classes, scale, grid, f"{entry['layer']}, {AXES.get(factor, factor)}"
        ),
    }


def heat_map(rows: list[list[float]], classes: list[str], scale: float, grid: Grid, name: str) -> str:
    """One SVG: a strip with the mean of each coefficient (grey), then per class the departure from it.

    Args:
        rows: per class, the mean of every coefficient.
        classes: the classes' names, as many as rows.
        scale: the departure that is drawn in full colour.
        grid: the sizes in CSS pixels; class names stand left of the rows where it has a margin.
        name: of the map, for those who do not see it.
    """
    means, gap = _means(rows), grid.row / 3
    most = max(max(abs(mean) for mean in means), 1e-12)
    parts = [_row("mean", means, [("m", abs(mean) / most) for mean in means], 0.0, grid)]
    for index, (row, values) in enumerate(zip(classes, rows, strict=True)):
        away = [value - mean for value, mean in zip(values, means, strict=True)]
        paint = [("a" if value > 0 else "b", min(abs(value) / scale, 1.0) if scale > 0 else 0.0) for value in away]
        parts.append(_row(row, values, paint, grid.row * (index + 1) + gap, grid))
    inner, height = grid.column * len(means), grid.row * (len(rows) + 1) + gap
    width = grid.margin + inner
    frames = "".join(
        f'<rect class="f" x="{grid.margin:g}" y="{top:g}" width="{inner:g}" height="{tall:g}"/>'
        for top, tall in ((0.0, grid.row), (grid.row + gap, grid.row * len(rows)))
    )
    return (
        f'<svg class="map" role="img" aria-label="{escape(name)}" data-marks="{len(means)}" '
        f'viewBox="-1 -1 {width + 2:g} {height + 2:g}" width="{width + 2:g}" height="{height + 2:g}">'
        f"{''.join(parts)}{frames}</svg>"
    )


def _row(name: str, values: list[float], paint: list[tuple[str, float]], top: float, grid: Grid) -> str:
    x, tall, wide = grid.margin, grid.row, grid.column
    size = f'width="{wide:g}" height="{tall:g}"'
    cells = "".join(
        f'<rect class="{kind} mark" x="{x + wide * at:g}" {size} fill-opacity="{strength:.2g}"/>'
        for at, (kind, strength) in enumerate(paint)
    )
    label = f'<text x="{x - 6:g}" y="{tall / 2 + grid.font * 0.35:g}">{escape(name)}</text>' if x else ""
    title = escape(f"{name}: {'  '.join(f'{value:.3f}' for value in values)}")
    return f'<g transform="translate(0 {top:g})"><title>{title}</title>{label}{cells}</g>'
