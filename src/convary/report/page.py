# SPDX-License-Identifier: Apache-2.0
"""Put the page together and write files whole: a reader never sees half a report."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

from convary.files import write_whole
from convary.report import figures, health, noise, tables
from convary.report.images import image_sections, symbols
from convary.report.inline import anonymous, inline_svg
from convary.report.network import networks
from convary.report.render import render
from convary.report.routing import MOST_CLASSES, routing_sections
from convary.report.schema import check
from convary.report.stream import streams
from convary.report.style import figure, looks, rc
from convary.report.themes import save

# Anchor, title and template of what the page tells, in order; those without data are left out.
SECTIONS = [
    ("results", "Results", "results.html"),
    ("cost", "What accuracy costs", "cost.html"),
    ("network", "The networks", "network.html"),
    ("curves", "Learning curves", "curves.html"),
    ("routing", "Routing", "routing.html"),
    ("images", "Images", "images.html"),
    ("diagnosis", "Diagnosis", "diagnosis.html"),
    ("correlation", "Kernel correlation", "correlation.html"),
    ("run", "What was run", "run.html"),
]


def write(results: dict[str, Any], path: str | Path) -> None:
    """Write ``results`` as one self-contained HTML page (styles and figures inside, nothing fetched).

    Args:
        results: the content of a results.json (schema 1).
        path: where the page goes; replaced in one step, and left as it was when writing fails.

    Raises:
        DataError: if ``results`` do not follow the schema.
        OSError: if ``path`` cannot be written.
    """
    write_whole(Path(path), page(results).encode())


def picture(results: dict[str, Any], path: str | Path) -> None:
    """Write accuracy against parameters and against latency as one static image, for a README or a slide.

    Args:
        results: the content of a results.json (schema 1).
        path: .svg, .png or .pdf, on a white ground, text as outlines; an SVG turns dark for readers who asked for it.

    Raises:
        DataError: if ``results`` do not follow the schema.
        OSError: if ``path`` cannot be written.
    """
    check(results)
    methods = results["methods"]
    look = looks(method["name"] for method in methods)
    with rc(text_as_paths=True):
        batches = noise.quiet_batches(methods)[:1]
        drawn, panels = figure(9.2 if batches else 4.8, 3.9, 1 + len(batches))
        figures.accuracy_against_params(panels[0], methods, look)
        for panel, batch in zip(panels[1:], batches, strict=True):
            figures.accuracy_against_latency(panel, methods, look, batch)
        anonymous(drawn)
        drawn.set_layout_engine("constrained", wspace=0.08)
        note = textwrap.fill(tables.picture_note(results), 135 if batches else 65)
        drawn.supxlabel(note, x=0.01, ha="left", fontsize=7.5, color=figures.MUTED)
        save(drawn, Path(path))


def page(results: dict[str, Any]) -> str:
    """The whole report as a string of HTML."""
    check(results)
    methods = results["methods"]
    look = looks(method["name"] for method in methods)
    parts = {
        "network": networks(methods),
        "routing": routing_sections(methods, results["data"]["classes"]),
        "images": image_sections(results),
        "diagnosis": _diagnosed(methods),
    }
    return render(
        "report.html",
        look,
        results=results,
        version=results["machine"]["convary"],
        sections=[section for section in SECTIONS if parts.get(section[0], True)],
        networks=parts["network"],
        routing=parts["routing"],
        images=parts["images"],
        diagnosed=parts["diagnosis"],
        symbols=symbols(results),
        streams={method["name"]: streams(method) for method in methods},
        rows=tables.headline(results),
        summary=tables.summary(results),
        price=noise.price(results["methods"]),
        caveats=tables.caveats(results),
        facts=tables.facts(results),
        batches=_batches(methods),
        timed=all("seconds" in seed["curve"][-1] for method in methods for seed in method["seeds"]),
        figures=_figures(methods, look),
        most_classes=MOST_CLASSES,
        names=[method["name"] for method in methods],
        titles={method["name"]: method["title"] for method in methods},
        annealed=[method["title"] for method in methods if _annealed(method)],
        cooling=any(figures.cooling(method) for method in methods),
    )


def _figures(methods: list[dict[str, Any]], look: dict[str, Any]) -> dict[str, list[str]]:
    """The page's figures by section, as SVG elements."""
    drawn: dict[str, list[str]] = {"cost": [], "curves": [], "depth": []}
    annealed, routed = [m for m in methods if _annealed(m)], [m for m in methods if m["routing"]]

    def add(section: str, label: str, draw: Any, *args: Any) -> None:
        canvas, (panel,) = figure(7.2 if section == "depth" else 3.6, 3.1)
        draw(panel, *args)
        drawn[section].append(inline_svg(canvas, label, f"{section}{len(drawn[section])}"))

    with rc():
        add("cost", "Top-1 accuracy against parameters", figures.accuracy_against_params, methods, look)
        for batch in noise.quiet_batches(methods):
            label = f"Top-1 accuracy against latency at batch {batch}"
            add("cost", label, figures.accuracy_against_latency, methods, look, batch)
        for quantity, title in (("top1", "Top-1 accuracy (%)"), ("loss", "Loss")):
            add("curves", f"{title} over epochs", figures.learning_curve, methods, look, quantity, title)
        if annealed:
            add("curves", "Router temperature over epochs", figures.temperature, annealed, look)
        if any(figures.between_share(entry) is not None for method in routed for entry in method["routing"]):
            add("depth", "Share of routing variance between classes", figures.routing_by_depth, routed, look)
    return drawn


def _diagnosed(methods: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What there is of each network that was diagnosed."""
    found = [method for method in methods if (method.get("diagnosis") or {}).get("layers")]
    return [{**method["diagnosis"], "name": method["name"], "layers": health.layers(method)} for method in found]


def _batches(methods: list[dict[str, Any]]) -> list[int]:
    return sorted({entry["batch"] for method in methods for entry in method["latency"]})


def _annealed(method: dict[str, Any]) -> bool:
    return any(point["temperature"] is not None for point in method["seeds"][0]["curve"])
