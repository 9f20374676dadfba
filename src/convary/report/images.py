# SPDX-License-Identifier: Apache-2.0
"""Single test images: which expert fires for which, by which path, and where networks differ or are wrong."""

from __future__ import annotations

from html import escape
from typing import Any

from convary.report.style import SERIES

Method = dict[str, Any]
MOST_DRAWN = 20  # classes of a confusion matrix that is drawn
_SAID = 5  # confusions told in words
_CELL = 17  # pixels


def symbols(results: dict[str, Any]) -> str:
    """Every picture once, as an SVG symbol that the page refers to as often as it likes."""
    drawn = (
        f'<symbol id="im{index}" viewBox="0 0 1 1"><image width="1" height="1" '
        f'href="data:image/png;base64,{picture["png"]}"/></symbol>'
        for index, picture in results.get("pictures", {}).items()
    )
    return f'<svg class="symbols" aria-hidden="true">{"".join(drawn)}</svg>'


def image_sections(results: dict[str, Any]) -> list[dict[str, Any]]:
    """Per network what there is to show of single images; none where an older results.json has no pictures."""
    if not results.get("pictures"):
        return []
    return [_section(method, results) for method in results["methods"]]


def _section(method: Method, results: dict[str, Any]) -> dict[str, Any]:
    classes, pictures = results["data"]["classes"], results["pictures"]
    layers = [_experts(layer, classes, pictures) for layer in method.get("experts", [])]
    chosen = _most_varied(method, [layer["layer"] for layer in layers])
    return {
        "name": method["name"],
        "first": [layer for layer in layers if layer["layer"] == chosen],
        "others": [layer for layer in layers if layer["layer"] != chosen],
        "paths": _paths(method, classes, pictures),
        "differs": _differs(method, classes, pictures),
        "confusion": confusion_map(method, classes),
        "confused": confused(method, classes),
    }


def _most_varied(method: Method, layers: list[str]) -> str:
    """The layer whose coefficients vary most with the input: where experts have something to say."""
    found = {layer["layer"]: layer["variation"] for layer in (method.get("diagnosis") or {}).get("layers", [])}
    return max(layers, key=lambda layer: found.get(layer, 0.0), default="")


def _experts(layer: dict[str, Any], classes: list[str], pictures: dict[str, Any]) -> dict[str, Any]:
    rows = []
    for expert, (images, shares) in enumerate(zip(layer["images"], layer["shares"], strict=True)):
        named = [classes[pictures[str(index)]["label"]] for index in images]
        cells = [
            {
                "index": index,
                "text": f"{name}, test image {index}: {100 * share:.0f} % of the mixture is expert {expert + 1}",
            }
            for index, name, share in zip(images, named, shares, strict=True)
        ]
        rows.append({"expert": expert + 1, "cells": cells, "most": 100 * shares[0], "least": 100 * shares[-1]})
    return {"layer": layer["layer"], "rows": rows}


def _paths(method: Method, classes: list[str], pictures: dict[str, Any]) -> dict[str, Any] | None:
    paths = method.get("paths")
    if not paths:
        return None
    images = [{"index": index, "name": classes[pictures[str(index)]["label"]]} for index in paths["images"]]
    steps = []
    for step in paths["at"]:
        rows = [
            {"layer": layer["layer"], "mixes": [mix(share) for share in layer["shares"]]} for layer in step["layers"]
        ]
        steps.append({"temperature": step["temperature"], "rows": rows})
    return {"images": images, "steps": steps, "kept": {0, len(steps) // 2, len(steps) - 1}}


def mix(shares: list[float]) -> dict[str, str]:
    """Shares of experts as one coloured bar: its CSS background, and its text."""
    stops, end = [], 0.0
    for expert, share in enumerate(shares):
        begin, end = end, min(100.0, end + 100 * share)
        stops.append(f"var(--{SERIES[expert % len(SERIES)]}) {begin:.1f}% {end:.1f}%")
    stops.append(f"transparent {end:.1f}%")
    return {
        "css": f"linear-gradient(90deg,{','.join(stops)})",
        "text": " ".join(f"{100 * s:.0f}" for s in shares) + " %",
    }


def _differs(method: Method, classes: list[str], pictures: dict[str, Any]) -> list[dict[str, Any]]:
    differs, title = method.get("differs"), method["title"]
    if not differs:
        return []
    words = {
        "name_right": (f"Only {title} is right", lambda mine, theirs: f"{differs['with']} says {theirs}"),
        "other_right": (f"Only {differs['with']} is right", lambda mine, theirs: f"{title} says {mine}"),
        "both_wrong": ("Both are wrong, each in its way", lambda mine, theirs: f"{mine} and {theirs}"),
    }
    return [
        {
            "title": words[kind][0],
            "count": differs[kind]["count"],
            "images": [
                {
                    "index": index,
                    "name": classes[pictures[str(index)]["label"]],
                    "said": words[kind][1](classes[mine], classes[theirs]),
                }
                for index, mine, theirs in differs[kind]["images"]
            ],
        }
        for kind in words
    ]


def confused(method: Method, classes: list[str]) -> list[str]:
    """The most frequent confusions in words."""
    matrix = method.get("confusion") or []
    pairs = [
        (count, true, said)
        for true, row in enumerate(matrix)
        for said, count in enumerate(row)
        if true != said and count
    ]
    pairs.sort(key=lambda pair: -pair[0])
    return [f"{classes[true]} taken for {classes[said]}: {n} of {sum(matrix[true])}" for n, true, said in pairs[:_SAID]]


def confusion_map(method: Method, classes: list[str]) -> str:
    """The confusion matrix as SVG: rows are true classes, columns what the network says; empty of many classes."""
    matrix = method.get("confusion")
    if not matrix or len(matrix) > MOST_DRAWN:
        return ""
    left, top, side = 92, 74, _CELL * len(matrix)
    wrong = max((n for true, row in enumerate(matrix) for said, n in enumerate(row) if true != said), default=0)
    parts = []
    for true, row in enumerate(matrix):
        y, total = top + _CELL * true, max(sum(row), 1)
        name, place = escape(classes[true]), f"translate({left + _CELL * true + 12} {top - 5}) rotate(-50)"
        parts.append(f'<text x="{left - 6}" y="{y + 12}">{name}</text>')
        parts.append(f'<text class="up" transform="{place}">{name}</text>')
        for said, count in enumerate(row):
            right = true == said
            strength = count / total if right else count / max(wrong, 1)
            text = f"{classes[true]} {'recognised' if right else f'taken for {classes[said]}'}: {count} of {sum(row)}"
            parts.append(
                f'<rect class="{"m" if right else "a"} mark" x="{left + _CELL * said}" y="{y}" width="{_CELL}" '
                f'height="{_CELL}" fill-opacity="{strength:.2g}"><title>{escape(text)}</title></rect>'
            )
    frame = f'<rect class="f" x="{left}" y="{top}" width="{side}" height="{side}"/>'
    wide, high = left + side + 30, top + side + 2
    name = escape(f"Confusion matrix of {method['title']}")
    return (
        f'<svg class="map" role="img" aria-label="{name}" data-marks="{len(matrix)}" viewBox="0 0 {wide} {high}" '
        f'width="{wide}" height="{high}">{"".join(parts)}{frame}</svg>'
    )
