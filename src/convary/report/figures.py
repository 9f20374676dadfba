# SPDX-License-Identifier: Apache-2.0
"""The report's matplotlib figures. Each function draws into axes it is given, so page and picture share them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, cast

from convary.methods import METHODS
from convary.report.style import COLORS, Look, titled

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Method = dict[str, Any]
Place = tuple[float, float, str, str]  # x, y and two words
INK, MUTED, GRID, SURFACE = (COLORS[role][0] for role in ("ink", "muted", "grid", "surface"))


def accuracy_against_params(panel: Axes, methods: list[Method], look: dict[str, Look]) -> None:
    """Scatter of top-1 over millions of parameters, one labelled point per method."""
    _scatter(panel, methods, look, lambda method: (method["params"] / 1e6, 0.0, 0.0))
    titled(panel, "Top-1 accuracy (%)", "parameters (millions)")


def accuracy_against_latency(panel: Axes, methods: list[Method], look: dict[str, Look], batch: int) -> None:
    """Scatter of top-1 over the latency ratio to static at one batch size, with the 10th to 90th percentile."""

    def x(method: Method) -> tuple[float, float, float]:
        at = next(entry for entry in method["latency"] if entry["batch"] == batch)
        return at["ratio"], max(at["ratio"] - at["low"], 0.0), max(at["high"] - at["ratio"], 0.0)

    _scatter(panel, [m for m in methods if any(e["batch"] == batch for e in m["latency"])], look, x)
    panel.axvline(1.0, color=MUTED, linewidth=0.8, linestyle=(0, (2, 3)), zorder=0)
    titled(panel, "Top-1 accuracy (%)", f"latency at batch {batch} (times static)")


def _scatter(
    panel: Axes, methods: list[Method], look: dict[str, Look], x: Callable[[Method], tuple[float, float, float]]
) -> None:
    places, bars = [], []
    for method in methods:
        here, low, high = x(method)
        top1, std, how = method["top1"]["mean"], method["top1"]["std"], look[method["name"]]
        places.append((here, top1, method["title"], how.color))
        bars += [(here - low, top1, here + high, top1), (here, top1 - (std or 0), here, top1 + (std or 0))]
        if std is not None:
            scores = [seed["top1"] for seed in method["seeds"]]
            panel.plot([here] * len(scores), scores, "o", ms=3, color=how.color, alpha=0.35, mew=0)
        panel.errorbar(
            here,
            top1,
            xerr=[[low], [high]] if low or high else None,
            yerr=std,
            fmt=how.marker,
            color=how.color,
            ms=9,
            mec=SURFACE,
            mew=1.2,
            elinewidth=1.4,
            zorder=3,
        )
    panel.margins(x=0.18, y=0.18)
    label(panel, places, bars)


def label(panel: Axes, places: list[Place], bars: list[tuple[float, float, float, float]]) -> None:
    """Put each name where it hides no point, bar or other name: of the places around the point the clearest wins."""
    figure = cast("Figure", panel.figure)
    figure.draw_without_rendering()
    to_pixels, frame, scale = panel.transData.transform, panel.get_window_extent(), figure.dpi / 72
    points = [tuple(to_pixels((x, y)).tolist()) for x, y, _, _ in places]
    taken = [(x - 6 * scale, y - 6 * scale, x + 6 * scale, y + 6 * scale) for x, y in points]
    for x0, y0, x1, y1 in bars:
        (left, bottom), (right, top) = to_pixels((x0, y0)), to_pixels((x1, y1))
        taken.append((left - 2 * scale, bottom - 2 * scale, right + 2 * scale, top + 2 * scale))
    for (x, y, name, color), at in zip(places, points, strict=True):
        size = (6.3 * len(name) * scale, 11 * scale)

        def cost(place: Place, at: Any = at, size: Any = size) -> float:
            box = _box(at, size, place, scale)
            hidden = sum(_overlap(box, other) for other in taken)
            outside = box[0] < frame.x0 or box[2] > frame.x1 or box[1] < frame.y0 or box[3] > frame.y1
            return hidden + 1e3 * outside + _AROUND.index(place)

        dx, dy, ha, va = place = min(_AROUND, key=cost)
        taken.append(_box(at, size, place, scale))
        panel.annotate(
            name, (x, y), (dx, dy), textcoords="offset points", ha=ha, va=va, color=color, fontsize=9.5, weight="bold"
        )


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
]


def _box(
    at: tuple[float, float], size: tuple[float, float], place: tuple[float, float, str, str], scale: float
) -> tuple[float, float, float, float]:
    dx, dy, ha, va = place
    left = at[0] + dx * scale - {"left": 0.0, "center": 0.5, "right": 1.0}[ha] * size[0]
    bottom = at[1] + dy * scale - {"bottom": 0.0, "center": 0.5, "top": 1.0}[va] * size[1]
    return left, bottom, left + size[0], bottom + size[1]


def _overlap(a: tuple[float, ...], b: tuple[float, ...]) -> float:
    return max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))


def learning_curve(panel: Axes, methods: list[Method], look: dict[str, Look], quantity: str, title: str) -> None:
    """``quantity`` ("loss" or "top1") over epochs: test solid with markers, train dashed; the mean of the seeds.

    Markers are hollow while a temperature falls: the running statistics of norms lag behind routers that sharpen.
    """
    for method in methods:
        how = look[method["name"]]
        for part, style in (("train", (0, (3, 2))), ("test", "solid")):
            x, y = _mean_curve(method, f"{part}_{quantity}")
            solid = part == "test"
            panel.plot(
                x,
                y,
                color=how.color,
                linestyle=style,
                linewidth=1.9 if solid else 1.1,
                alpha=1.0 if solid else 0.65,
                marker=how.marker if solid else None,
                markevery=max(1, len(x) // 6),
                ms=5,
                mec=SURFACE,
                mew=0.8,
            )
            if solid and (hot := cooling(method)):
                ends = [(at, value) for at, value in zip(x, y, strict=True) if at in hot]
                panel.plot(*zip(*ends, strict=True), ls="none", marker=how.marker, ms=5, mfc=SURFACE, mec=how.color)
            for seed in method["seeds"] if solid and len(method["seeds"]) > 1 else []:
                x, y = [p["epoch"] for p in seed["curve"]], [p[f"test_{quantity}"] for p in seed["curve"]]
                panel.plot(x, y, color=how.color, lw=0.6, alpha=0.4)
    _epochs(panel, methods)
    titled(panel, title, "epoch")


def cooling(method: Method) -> set[float]:
    """The epochs at whose end the routers' temperature was still above its last value."""
    curve = method["seeds"][0]["curve"]
    last = curve[-1]["temperature"]
    return {p["epoch"] for p in curve if p["temperature"] is not None and last is not None and p["temperature"] > last}


def temperature(panel: Axes, methods: list[Method], look: dict[str, Look]) -> None:
    """The routers' temperature over epochs, from where the method starts, for the methods that anneal it."""
    starts = {config.name: config.annealing.start for config in METHODS if config.annealing is not None}
    for index, method in enumerate(methods):
        points = [p for p in method["seeds"][0]["curve"] if p["temperature"] is not None]
        how, start = look[method["name"]], starts.get(method["name"])
        before = [] if start is None else [start]
        panel.plot(
            [0.0] * len(before) + [p["epoch"] for p in points],
            before + [p["temperature"] for p in points],
            color=how.color,
            marker=how.marker,
            markevery=max(1, len(points) // 6),
            ms=5,
            mec=SURFACE,
            lw=1.8 + 2.8 * (len(methods) - 1 - index),  # of equal schedules the first shows around the last
        )
    panel.set_ylim(bottom=0)
    _epochs(panel, methods, from_start=True)
    titled(panel, "Router temperature", "epoch")


def routing_by_depth(panel: Axes, methods: list[Method], look: dict[str, Look]) -> None:
    """How much of the coefficients' variance lies between classes, over the dynamic layers from input to output."""
    longest = sorted(methods, key=lambda method: -method["layers"])
    order = {name: at for at, name in enumerate(dict.fromkeys(e["layer"] for m in longest for e in m["routing"]))}
    for method in methods:
        factor = method["routing"][0]["factor"]
        entries = [entry for entry in method["routing"] if entry["factor"] == factor]
        entries.sort(key=lambda entry: order[entry["layer"]])
        how = look[method["name"]]
        panel.plot(
            [order[entry["layer"]] + 1 for entry in entries],
            [100 * between_share(entry) for entry in entries],
            color=how.color,
            marker=how.marker,
            ms=5,
            mec=SURFACE,
            lw=1.6,
        )
    panel.set_ylim(0, 100)
    panel.locator_params(axis="x", integer=True)
    titled(panel, "Share of routing variance between classes (%)", "dynamic layer, from input to output")


def between_share(entry: dict[str, Any]) -> float:
    """Variance between classes over the sum of variances between and within: 0 ignores the class, 1 is a class code."""
    between, within = entry["between_class_std"] ** 2, entry["within_class_std"] ** 2
    return between / (between + within) if between + within > 0 else 0.0


def _mean_curve(method: Method, key: str) -> tuple[list[float], list[float]]:
    """The mean over seeds at every epoch that all seeds have."""
    columns = list(zip(*(seed["curve"] for seed in method["seeds"]), strict=False))
    return [column[0]["epoch"] for column in columns], [_mean(point[key] for point in column) for column in columns]


def _mean(values: Iterable[float]) -> float:
    values = list(values)
    return sum(values) / len(values)


def _epochs(panel: Axes, methods: list[Method], *, from_start: bool = False) -> None:
    curves = [seed["curve"] for method in methods for seed in method["seeds"]]
    first = 0.0 if from_start else min(curve[0]["epoch"] for curve in curves)
    last = max(curve[-1]["epoch"] for curve in curves)
    margin = 0.03 * max(last - first, 0.5)
    panel.set_xlim(first - margin, last + margin)
    panel.locator_params(axis="x", integer=True)
