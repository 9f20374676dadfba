# SPDX-License-Identifier: Apache-2.0
"""SYNTHETIC entries of results.json about single images, plans and experts: invented, none was measured."""

from __future__ import annotations

import base64
import io
import random
from typing import Any

from PIL import Image

PICTURES = 40


def pictures(classes: int, draw: random.Random) -> dict[str, Any]:
    """Pictures of noise by index."""
    found = {}
    for index in range(PICTURES):
        buffer = io.BytesIO()
        Image.frombytes("L", (8, 8), draw.randbytes(64)).save(buffer, "PNG")
        found[str(index)] = {"label": index % classes, "png": base64.b64encode(buffer.getvalue()).decode()}
    return found


def portraits(layers: list[str], static: bool, classes: int, hot: float | None, draw: random.Random) -> dict[str, Any]:
    """What a method has of them."""
    entry: dict[str, Any] = {"bytes": 41_234, "memory": 2_345_678, "plan": [], "confusion": _confusion(classes, draw)}
    if static:
        return entry
    kinds = {"name_right": 12, "other_right": 9, "both_wrong": 3}
    entry["differs"] = {"with": "static"} | {
        kind: {"count": count, "images": [[draw.randrange(PICTURES), 1, 2] for _ in range(min(count, 8))]}
        for kind, count in kinds.items()
    }
    entry["plan"] = [_planned("stem", None)] + [_planned(layer, draw.randrange(1000, 9000)) for layer in layers]
    entry["experts"] = [_best(layer, draw) for layer in layers]
    temperatures = [None] if hot is None else [hot, hot**0.5, 1.0]
    entry["paths"] = {
        "images": [0, 1, 2, 3],
        "at": [{"temperature": t, "layers": [_followed(layer, draw) for layer in layers]} for t in temperatures],
    }
    return entry


def shares(draw: random.Random) -> list[float]:
    """Of four experts."""
    parts = [draw.uniform(0.1, 1) for _ in range(4)]
    return [part / sum(parts) for part in parts]


def _followed(layer: str, draw: random.Random) -> dict[str, Any]:
    return {"layer": layer, "shares": [shares(draw) for _ in range(4)]}


def _best(layer: str, draw: random.Random) -> dict[str, Any]:
    ordered = [sorted((draw.random() for _ in range(8)), reverse=True) for _ in range(4)]
    return {"layer": layer, "images": [draw.sample(range(PICTURES), 8) for _ in range(4)], "shares": ordered}


def _planned(layer: str, added: int | None) -> dict[str, Any]:
    return {
        "layer": layer,
        "before": "Conv2d 8->16 3x3",
        "after": None if added is None else "ODConv2d 8->16 3x3",
        "reason": "the first convolution" if added is None else None,
        "params_before": 1152,
        "params_after": 1152 + (added or 0),
        "macs_before": 50_000,
        "macs_after": 50_000 + (added or 0),
    }


def _confusion(classes: int, draw: random.Random) -> list[list[int]]:
    rows = []
    for true in range(classes):
        row = [draw.randrange(5) for _ in range(classes)]
        row[true] = 200 - sum(row) + row[true]
        rows.append(row)
    return rows
