# SPDX-License-Identifier: Apache-2.0
"""Draw docs/images/cost.svg from the saved benchmarks: what dynamic networks cost here and in released code's way.

    python scripts/cost_picture.py

The second ratio is the first one divided by the measured ratio of the two ways, which were timed in turn in one
process (``convary bench models --against grouped``).
"""

from __future__ import annotations

import json
from pathlib import Path

from convary.report import style
from convary.report.themes import save

ROOT = Path(__file__).parent.parent
NAMES = {"torchvision:mobilenet_v2": "MobileNetV2", "torchvision:resnet18": "ResNet-18"}
TITLES = {"condconv": "CondConv", "dyconv": "DyConv", "odconv": "ODConv"}
BATCH, THREADS = 16, 2


def ratios(results: Path) -> dict[tuple[str, str, str], tuple[float, float]]:
    """By network, method and mode: the cost relative to static here, and in released code's way."""
    found = {}
    rows = {file: json.loads((results / f"{file}.json").read_text())["rows"] for file in ("models", "models-grouped")}
    ways = {(row["model"], row["method"], row["mode"]): row["ratio"] for row in rows["models-grouped"]}
    for row in rows["models"]:
        key = (row["model"], row["method"], row["mode"])
        if row["batch"] == BATCH and row["threads"] == THREADS and key in ways:
            found[key] = (row["ratio"], row["ratio"] / ways[key])
    return found


def draw(results: Path, path: Path) -> None:
    """Two panels, inference and training; a pair of bars for each network and method."""
    found = ratios(results)
    blue, grey, ink = (style.COLORS[role][0] for role in ("series-0", "static", "ink"))
    with style.rc(text_as_paths=True):
        drawn, panels = style.figure(10.5, 3.6, 2)
        for panel, mode in zip(panels, ("inference", "training"), strict=True):
            rows = [(model, method) for model in NAMES for method in TITLES if (model, method, mode) in found]
            for y, (model, method) in enumerate(rows):
                ours, theirs = found[model, method, mode]
                panel.barh([y - 0.19, y + 0.19], [ours, theirs], 0.36, color=[blue, grey])
                for height, value, color in ((y - 0.19, ours, blue), (y + 0.19, theirs, grey)):
                    panel.annotate(f"{value:.2f}", (value, height), (4, 0), textcoords="offset points", va="center",
                                   fontsize=8.5, color=color)  # fmt: skip
            panel.axvline(1.0, color=ink, linewidth=1.0)
            panel.set_yticks(range(len(rows)), [f"{NAMES[model]}, {TITLES[method]}" for model, method in rows])
            panel.invert_yaxis()
            panel.grid(visible=False)
            panel.margins(x=0.14)
            style.titled(panel, f"{mode}, batch {BATCH}", "time relative to the static network (line)")
        panels[0].annotate("convary", (0.99, 0.97), xycoords="axes fraction", color=blue, weight="bold", fontsize=9.5,
                           ha="right", va="top")  # fmt: skip
        panels[0].annotate("as released code does it", (0.99, 0.91), xycoords="axes fraction",
                           color=grey, weight="bold", fontsize=9.5, ha="right", va="top")  # fmt: skip
        save(drawn, path)


if __name__ == "__main__":
    draw(ROOT / "benchmarks" / "results", ROOT / "docs" / "images" / "cost.svg")
