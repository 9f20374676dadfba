# SPDX-License-Identifier: Apache-2.0
"""The page of a comparison that is not finished: how far every training is, and the curves so far."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from convary.files import write_whole
from convary.report import figures
from convary.report.inline import inline_svg
from convary.report.render import render
from convary.report.stream import streams
from convary.report.style import figure, looks, rc
from convary.text import spell

RELOAD = 4  # seconds after which an open page looks again


def write(content: dict[str, Any], path: str | Path) -> None:
    """Write the page, whole.

    Args:
        content: ``state`` ("running" or "interrupted"), ``model``, ``data``, ``command``, ``count`` of all trainings,
            ``left`` (seconds, or None), ``measuring`` and ``runs``: each with ``name``, ``title``, ``seed``, ``trial``,
            ``part`` (of 1) and ``curve``, whose points are as in results.json.
        path: Where the page goes.

    Raises:
        ConvaryError: it can't be written.
    """
    write_whole(Path(path), page(content).encode())


def page(content: dict[str, Any]) -> str:
    """The page as a string of HTML."""
    methods = _methods(content["runs"])
    look = looks(dict.fromkeys(run["name"] for run in content["runs"]))
    return render(
        "live.html",
        look,
        **content,
        reload=RELOAD if content["state"] == "running" else None,
        remaining=None if content["left"] is None else spell(content["left"]),
        names=[method["name"] for method in methods],
        titles={method["name"]: method["title"] for method in methods},
        curves=_curves(methods, look),
        streams=[(method["name"], found) for method in methods if (found := streams(method))],
    )


def _methods(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The trainings with a point, by network, as results.json has methods; trials of learning rates are left out."""
    found: dict[str, dict[str, Any]] = {}
    for run in runs:
        if run["curve"] and not run["trial"]:
            method = found.setdefault(run["name"], {"name": run["name"], "title": run["title"], "seeds": []})
            method["seeds"].append({"seed": run["seed"], "curve": run["curve"]})
    return list(found.values())


def _curves(methods: list[dict[str, Any]], look: dict[str, Any]) -> list[str]:
    if not methods:
        return []
    drawn = []
    with rc():
        for quantity, title in (("top1", "Top-1 accuracy (%)"), ("loss", "Loss")):
            canvas, (panel,) = figure(3.6, 3.1)
            figures.learning_curve(panel, methods, look, quantity, title)
            drawn.append(inline_svg(canvas, f"{title} over epochs", f"live-{quantity}"))
    return drawn
