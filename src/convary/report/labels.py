# SPDX-License-Identifier: Apache-2.0
"""Where the names of points go in a scatter plot, so that they hide nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.text import Annotation

Place = tuple[float, float, str, str]  # x, y, name and colour of a point


def label(
    panel: Axes, places: list[Place], bars: list[tuple[float, float, float, float]], ink: str | None = None
) -> list[Annotation]:
    """Put each name where it hides no point, bar or other name: of the places around the point the clearest wins.

    Names have the colours of their points, or all ``ink``; so have the lines to those that stand far off.
    """
    written: list[Annotation] = []
    figure = cast("Figure", panel.figure)
    figure.draw_without_rendering()
    to_pixels, frame, scale = panel.transData.transform, panel.get_window_extent(), figure.dpi / 72
    points = [tuple(to_pixels((x, y)).tolist()) for x, y, _, _ in places]
    taken = [(x - 6 * scale, y - 6 * scale, x + 6 * scale, y + 6 * scale) for x, y in points]
    for x0, y0, x1, y1 in bars:
        (left, bottom), (right, top) = to_pixels((x0, y0)), to_pixels((x1, y1))
        taken.append((left - 2 * scale, bottom - 2 * scale, right + 2 * scale, top + 2 * scale))
    for (x, y, name, color), at in zip(places, points, strict=True):
        size = (6.6 * len(name) * scale, 12 * scale)

        def cost(place: Place, at: Any = at, size: Any = size) -> float:
            box = _box(at, size, place, scale)
            hidden = sum(_overlap(box, other) for other in taken)
            outside = box[0] < frame.x0 or box[2] > frame.x1 or box[1] < frame.y0 or box[3] > frame.y1
            return hidden + 1e3 * outside + 8 * _AROUND.index(place)

        dx, dy, ha, va = place = min(_AROUND, key=cost)
        taken.append(_box(at, size, place, scale))
        written.append(
            panel.annotate(
                name,
                (x, y),
                (dx, dy),
                textcoords="offset points",
                ha=ha,
                va=va,
                color=ink or color,
                fontsize=9.5,
                weight="bold",
                arrowprops=_LEADER | {"color": color} if abs(dy) > _NEAR else None,
            )
        )
    return written


_SIDES = ((1, "left"), (-1, "right"))
_AROUND: list[Place] = [
    (9, 5, "left", "bottom"),
    (-9, 5, "right", "bottom"),
    (9, -5, "left", "top"),
    (-9, -5, "right", "top"),
    (0, 10, "center", "bottom"),
    (0, -10, "center", "top"),
    (12, 0, "left", "center"),
    (-12, 0, "right", "center"),
    (9, 14, "left", "bottom"),
    (9, -14, "left", "top"),
    *(
        (side * 12, up * (14 * step + 10), ha, "center")
        for step in range(1, 7)
        for up in (1, -1)
        for side, ha in _SIDES
    ),
]
"""Where a name may stand, in points from its point: the nearest first, those far away with a line to it."""
_NEAR = 14
_LEADER = {"arrowstyle": "-", "linewidth": 0.7, "shrinkA": 1, "shrinkB": 5}


def _box(
    at: tuple[float, float], size: tuple[float, float], place: tuple[float, float, str, str], scale: float
) -> tuple[float, float, float, float]:
    dx, dy, ha, va = place
    left = at[0] + dx * scale - {"left": 0.0, "center": 0.5, "right": 1.0}[ha] * size[0]
    bottom = at[1] + dy * scale - {"bottom": 0.0, "center": 0.5, "top": 1.0}[va] * size[1]
    return left, bottom, left + size[0], bottom + size[1]


def _overlap(a: tuple[float, ...], b: tuple[float, ...]) -> float:
    return max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
