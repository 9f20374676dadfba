# SPDX-License-Identifier: Apache-2.0
"""The report's matplotlib figures. Each function draws into axes it is given, so page and picture share them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from convary.methods import METHODS
from convary.report.inline import belongs, mark
from convary.report.labels import label
from convary.report.style import COLORS, Look, titled

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.lines import Line2D

Method = dict[str, Any]
_MARKS = 60  # points of a curve that answer the pointer
INK, MUTED, GRID, SURFACE = (COLORS[role][0] for role in ("ink", "muted", "grid", "surface"))


def accuracy_against_params(panel: Axes, methods: list[Method], look: dict[str, Look]) -> None:
    """Scatter of top-1 over millions of parameters, one labelled point per method."""
    _scatter(panel, methods, look, lambda m: (m["params"] / 1e6, 0.0, 0.0), lambda x: f"{x:.3g} million parameters")
    titled(panel, "Top-1 accuracy (%)", "parameters (millions)")


def accuracy_against_latency(panel: Axes, methods: list[Method], look: dict[str, Look], batch: int) -> None:
    """Scatter of top-1 over the latency ratio to static at one batch size, with the 10th to 90th percentile."""

    def x(method: Method) -> tuple[float, float, float]:
        at = next(entry for entry in method["latency"] if entry["batch"] == batch)
        return at["ratio"], max(at["ratio"] - at["low"], 0.0), max(at["high"] - at["ratio"], 0.0)

    _scatter(
        panel,
        [m for m in methods if any(e["batch"] == batch for e in m["latency"])],
        look,
        x,
        "{:.2f} times static’s latency".format,
    )
    panel.axvline(1.0, color=MUTED, linewidth=0.8, linestyle=(0, (2, 3)), zorder=0)
    titled(panel, "Top-1 accuracy (%)", f"latency at batch {batch} (times static)")


def _scatter(
    panel: Axes,
    methods: list[Method],
    look: dict[str, Look],
    x: Callable[[Method], tuple[float, float, float]],
    say: Callable[[float], str],
) -> None:
    places, bars = [], []
    for method in methods:
        here, low, high = x(method)
        top1, std, how = method["top1"]["mean"], method["top1"]["std"], look[method["name"]]
        places.append((here, top1, method["title"], how.color))
        bars += [(here - low, top1, here + high, top1), (here, top1 - (std or 0), here, top1 + (std or 0))]
        if std is not None:
            scores = [seed["top1"] for seed in method["seeds"]]
            belongs(
                method["name"],
                panel.plot([here] * len(scores), scores, "o", ms=3, color=how.color, alpha=0.35, mew=0),
            )
        drawn = panel.errorbar(
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
        belongs(method["name"], drawn.get_children())
        spread = "" if std is None else f" ± {std:.2f}"
        mark(panel, method["name"], [here], [top1], [f"{method['title']}: {top1:.2f}{spread} % top-1, {say(here)}"])
    panel.margins(x=0.18, y=0.18)
    _to_100(panel)
    for method, written in zip(methods, label(panel, places, bars, INK), strict=True):
        belongs(method["name"], [written])


def learning_curve(panel: Axes, methods: list[Method], look: dict[str, Look], quantity: str, title: str) -> None:
    """``quantity`` ("loss" or "top1") over epochs: test solid with markers, train dashed; the mean of the seeds.

    Markers are hollow while a temperature falls: the running statistics of norms lag behind routers that sharpen.
    """
    for method in methods:
        how, name = look[method["name"]], method["name"]
        for part, style in (("train", (0, (3, 2))), ("test", "solid")):
            x, y = _mean_curve(method, f"{part}_{quantity}")
            solid = part == "test"
            line = panel.plot(
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
            belongs(name, line)
            _mark_curve(panel, method, part, quantity, x, y)
        belongs(name, _hollow(panel, method, quantity, how))
        for seed in method["seeds"] if len(method["seeds"]) > 1 else []:
            x, y = [p["epoch"] for p in seed["curve"]], [p[f"test_{quantity}"] for p in seed["curve"]]
            belongs(name, panel.plot(x, y, color=how.color, lw=0.6, alpha=0.4))
    _epochs(panel, methods)
    if quantity == "top1":
        _to_100(panel)
    titled(panel, title, "epoch")


def _to_100(panel: Axes) -> None:
    """Let an axis of percentages end at 0 and 100, with room for a marker there."""
    low, high = panel.get_ylim()
    room = 0.03 * (min(high, 100) - max(low, 0))
    panel.set_ylim(max(low, -room), min(high, 100 + room))
    panel.set_yticks([tick for tick in panel.get_yticks() if max(low, 0) <= tick <= min(high, 100)])


def _mark_curve(panel: Axes, method: Method, part: str, quantity: str, x: list[float], y: list[float]) -> None:
    """Each epoch says its value; of a long curve every n-th and the last."""
    every = range(len(x) - 1, -1, -max(1, len(x) // _MARKS))
    before = f"{method['title']}, {'training' if part == 'train' else 'test'}"
    value = "top-1 {:.2f} %" if quantity == "top1" else "loss {:.4f}"
    texts = [f"{before} {value.format(y[at])} after epoch {x[at]:g}" for at in every]
    mark(panel, method["name"], [x[at] for at in every], [y[at] for at in every], texts)


def _hollow(panel: Axes, method: Method, quantity: str, how: Look) -> list[Line2D]:
    hot = cooling(method)
    ends = [(x, y) for x, y in zip(*_mean_curve(method, f"test_{quantity}"), strict=True) if x in hot]
    if not ends:
        return []
    return panel.plot(*zip(*ends, strict=True), ls="none", marker=how.marker, ms=5, mfc=SURFACE, mec=how.color)


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
        x, y = [0.0] * len(before) + [p["epoch"] for p in points], before + [p["temperature"] for p in points]
        line = panel.plot(
            x,
            y,
            color=how.color,
            marker=how.marker,
            markevery=max(1, len(points) // 6),
            ms=5,
            mec=SURFACE,
            lw=1.8 + 2.8 * (len(methods) - 1 - index),  # of equal schedules the first shows around the last
        )
        belongs(method["name"], line)
        said = [f"{method['title']}, epoch {at:g}: temperature {value:.2f}" for at, value in zip(x, y, strict=True)]
        mark(panel, method["name"], x, y, said)
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
        x, y = (
            [order[entry["layer"]] + 1 for entry in entries],
            [100 * (between_share(entry) or 0) for entry in entries],
        )
        line = panel.plot(x, y, color=how.color, marker=how.marker, ms=6, mec=SURFACE, lw=0.8, ls=(0, (1, 3)))
        belongs(method["name"], line)
        said = [
            f"{method['title']}, {e['layer']}: {share:.0f} % between classes"
            for e, share in zip(entries, y, strict=True)
        ]
        mark(panel, method["name"], x, y, said)
    panel.set_ylim(-3, 103)  # a marker at either end is whole
    panel.set_yticks(range(0, 101, 20))
    panel.locator_params(axis="x", integer=True, min_n_ticks=1)
    titled(panel, "Share of routing variance between classes (%)", "dynamic layer, from input to output")


def between_share(entry: dict[str, Any]) -> float | None:
    """Part of the coefficients' variance that lies between classes: 0 ignores the class, 1 is a class code.

    None where a class has too few test images. Of an older results.json it is the plain ratio of variances.
    """
    if "share" in entry:
        return entry["share"]
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
    margin = 0.03 * (last - first) or 0.5  # of one epoch enough that its number alone is a whole one
    panel.set_xlim(first - margin, last + margin)
    panel.locator_params(axis="x", integer=True, min_n_ticks=1)
