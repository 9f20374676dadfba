# SPDX-License-Identifier: Apache-2.0
"""The page of a trained system: its scores and what they mean, its pictures, its curves."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from convary.errors import DataError
from convary.files import write_whole
from convary.report import tables
from convary.report.inline import belongs, inline_svg, mark
from convary.report.live import RELOAD
from convary.report.render import render
from convary.report.style import Look, figure, looks, rc, titled
from convary.text import spell

STEEP = 30.0  # largest over smallest loss from which on the axis is logarithmic
_NEEDED = ("system", "scores", "curve", "params", "seconds", "pictures", "run", "machine")


Beside = Mapping[str, dict[str, Any]]  # by name, the results of runs that were trained alike


def write(
    results: dict[str, Any], folder: Path, path: str | Path, *, running: bool = False, beside: Beside | None = None
) -> None:
    """Write the page, self-contained: pictures, figures, styles and script inside.

    Args:
        results: The content of the results.json of a system.
        folder: Where its pictures lie.
        path: Where the page goes; replaced in one step.
        running: Whether more is to come: an open page then reloads itself.
        beside: This run and others to compare, by name.

    Raises:
        DataError: ``results`` are of something else.
        OSError: a picture is gone, or the page can't be written.
    """
    write_whole(Path(path), page(results, folder, running=running, beside=beside).encode())


def page(results: dict[str, Any], folder: Path, *, running: bool = False, beside: Beside | None = None) -> str:
    """The page as a string of HTML."""
    if missing := [name for name in _NEEDED if name not in results]:
        raise DataError(f"these are no results of a system; {', '.join(missing)} is missing: give what train wrote")
    last = results["curve"][-1]
    look = looks([*last["losses"], *results["scores"]])
    means = results.get("measures", {})
    run = {name: value for name, value in results["run"].items() if name not in {"command", "started", "finished"}}
    return render(
        "system.html",
        look,
        results=results,
        reload=RELOAD if running else None,
        title=results.get("title", results["system"]),
        version=results["machine"]["convary"],
        took=spell(results["seconds"]),
        scores=[(name, value, means.get(name.split()[-1], "")) for name, value in results["scores"].items()],
        beside=_side_by_side(beside or {}),
        pictures=[(Path(name).stem, _data(folder / name)) for name in results["pictures"]],
        losses=list(last["losses"]),
        names={name: name for name in last["losses"]},
        curves=_curves(results["curve"], look),
        run=tables.listed(run),
        machine=tables.listed(results["machine"]),
    )


def _side_by_side(beside: Beside) -> list[list[str]]:
    """The lines of a table, the first one its head; none where nothing is compared."""
    if not beside:
        return []
    runs = list(beside.values())
    names = list(dict.fromkeys(name for run in runs for name in run["scores"]))
    scores = [[f"{run['scores'][name]:.4f}" if name in run["scores"] else "–" for run in runs] for name in names]
    lines = [[name, *values] for name, values in zip(names, scores, strict=True)]
    lines.append(["parameters", *(f"{run['params']:,}" for run in runs)])
    lines.append(["seconds", *(f"{run['seconds']:.0f}" for run in runs)])
    return [["", *beside], *lines]


def _data(path: Path) -> str:
    """A picture as the address that holds it."""
    kind = {".jpg": "jpeg", ".svg": "svg+xml"}.get(path.suffix, path.suffix.lstrip("."))
    return f"data:image/{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"


def _curves(curve: list[dict[str, Any]], look: dict[str, Look]) -> list[str]:
    """The losses in one figure; each score that was taken more than once in one of its own."""
    losses = {name: [(point["step"], point["losses"][name]) for point in curve] for name in curve[-1]["losses"]}
    scored = [point for point in curve if point["scores"]]
    drawn = [_drawn("Loss in training", losses, look, 0)] if len(curve) > 1 else []
    if len(scored) > 1:
        for place, name in enumerate(scored[-1]["scores"], 1):
            drawn.append(_drawn(name, {name: [(p["step"], p["scores"][name]) for p in scored]}, look, place))
    return drawn


def _drawn(title: str, lines: dict[str, list[tuple[int, float]]], look: dict[str, Look], place: int) -> str:
    with rc():
        canvas, (panel,) = figure(3.6, 3.1)
        for name, points in lines.items():
            x, y = zip(*points, strict=True)
            how = look[name]
            belongs(name, panel.plot(x, y, color=how.color, lw=1.9, marker=how.marker, ms=4, markevery=len(x) // 6 + 1))
            mark(panel, name, x, y, [f"{name} {value:.4g} at step {step}" for step, value in points])
        values = [value for points in lines.values() for _, value in points]
        if title.startswith("Loss") and min(values) > 0 and max(values) > STEEP * min(values):
            panel.set_yscale("log")
        titled(panel, title, "step")
        return inline_svg(canvas, f"{title} over steps", f"system{place}")
