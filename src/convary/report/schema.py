# SPDX-License-Identifier: Apache-2.0
"""The layout of results.json (schema 1): read it, and say exactly where a file departs from it."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

from convary.errors import DataError

SCHEMA = 1

# A dict lists required keys (others are free), [x] is a list of x, (x, None) may be null, float takes an int too.
_RATIO = {"ms": float, "ratio": float, "low": float, "high": float}
_POINT = {
    "epoch": float,
    "train_loss": float,
    "train_top1": float,
    "test_loss": float,
    "test_top1": float,
    "temperature": (float, None),
}
_METHOD = {
    "name": str,
    "title": str,
    "citation": (str, None),
    "config": (dict, None),
    "layers": int,
    "params": int,
    "macs": {"convolution": int, "routing": int, "assembly": int, "other": int},
    "latency": [{"batch": int, **_RATIO}],
    "step": ({"batch": int, **_RATIO}, None),  # None: not measured, and no latency
    "top1": {"mean": float, "std": (float, None)},
    "seeds": [{"seed": int, "top1": float, "checkpoint": str, "curve": [_POINT]}],
    "routing": [
        {
            "layer": str,
            "factor": str,
            "by_class": [[float]],
            "between_class_std": float,
            "within_class_std": float,
            "entropy": (float, None),
        }
    ],
    "correlation": {
        "edges": [float],
        "labels": [str],
        "bands": [float],
        "layers": [{"layer": str, "bands": [float]}],
    },
}
_DIAGNOSIS = {  # since it was added within schema 1, older files have none
    "inputs": int,
    "advice": [str],
    "layers": [
        {
            "layer": str,
            "share": [float],
            "entropy": (float, None),
            "variation": float,
            "divergence": float,
            "dead": [int],
            "duplicates": [[int]],
        }
    ],
}
_PAIRED = {"gaps": [float], "mean": float, "std": float, "low": float, "high": float, "wins": int}  # likewise
_LR = {"chosen": float, "at_edge": bool, "grid": [{"lr": float, "held_out_top1": (float, None)}]}  # likewise
_SINCE = {  # likewise
    "paired": _PAIRED,
    "lr": _LR,
    "diagnosis": _DIAGNOSIS,
    "plan": [
        {
            "layer": str,
            "before": str,
            "after": (str, None),
            "reason": (str, None),
            "params_before": int,
            "params_after": int,
            "macs_before": (int, None),
            "macs_after": (int, None),
        }
    ],
    "bytes": int,
    "memory": int,
    "confusion": [[int]],
    "experts": [{"layer": str, "images": [[int]], "shares": [[float]]}],
    "paths": {"images": [int], "at": [{"temperature": (float, None), "layers": [{"layer": str, "shares": [[float]]}]}]},
    "differs": {
        "with": str,
        **{kind: {"count": int, "images": [[int]]} for kind in ("name_right", "other_right", "both_wrong")},
    },
}
_RESULTS = {
    "schema": int,
    "run": {
        "command": str,
        "started": str,
        "finished": str,
        "data": str,
        "model": str,
        "methods": [str],
        "epochs": int,
        "seeds": [int],
        "init": str,
    },
    "machine": {"cpu": str, "cores": int, "memory_gb": float, "os": str, "python": str, "torch": str, "convary": str},
    "data": {
        "name": str,
        "title": str,
        "classes": [str],
        "train": int,
        "test": int,
        "shape": [int],
        "license": str,
        "source": str,
    },
    "methods": [_METHOD],
}


def load(path: str | Path) -> dict[str, Any]:
    """Read and check a results.json.

    Raises:
        DataError: if the file is not JSON or not of schema 1; the message names the file and the place in it.
        OSError: if the file cannot be read.
    """
    path = Path(path)
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"{path} is not JSON ({error}); pass the results.json that convary compare wrote") from error
    return check(results, where=str(path))


def check(results: Any, where: str = "results") -> dict[str, Any]:
    """Return ``results`` unchanged if they follow schema 1.

    Raises:
        DataError: naming the first place that departs from the schema.
    """
    if isinstance(results, dict) and isinstance(results.get("schema"), int) and results["schema"] != SCHEMA:
        raise DataError(
            f"{where} has schema {results['schema']}, this convary reads schema {SCHEMA}; run convary compare again"
        )
    _match(results, _RESULTS, where)
    for index, method in enumerate(results["methods"]):
        _match_method(method, len(results["data"]["classes"]), f"{where}: methods[{index}]")
    pictures = results.get("pictures") or {}
    for index, picture in pictures.items():
        _match(picture, {"label": int, "png": str}, f"{where}: pictures[{index}]")
        _want(re.fullmatch("[A-Za-z0-9+/=]+", picture["png"]) is not None, picture["png"], "a PNG in base64", where)
        _want(index.isdecimal(), index, "the index of a test image", where)
    if not results["methods"]:
        raise DataError(f"{where}: methods is empty; want at least one method that was run")
    return results


def _match(value: Any, shape: Any, where: str) -> None:
    if isinstance(shape, tuple):
        if value is not None:
            _match(value, shape[0], where)
    elif isinstance(shape, dict):
        _want(isinstance(value, dict), value, "an object", where)
        for key, inner in shape.items():
            if key not in value:
                raise DataError(f"{where}: {key!r} is missing; got {', '.join(sorted(value)) or 'nothing'}")
            _match(value[key], inner, f"{where}: {key}" if ":" not in where else f"{where}.{key}")
    elif isinstance(shape, list):
        _want(isinstance(value, list), value, "a list", where)
        for index, item in enumerate(value):
            _match(item, shape[0], f"{where}[{index}]")
    elif shape is float:
        _want(isinstance(value, int | float) and not isinstance(value, bool), value, "a number", where)
    else:
        _want(isinstance(value, shape) and not (shape is int and isinstance(value, bool)), value, shape.__name__, where)


def _want(ok: bool, value: Any, kind: str, where: str) -> None:
    if not ok:
        raise DataError(f"{where} is {value!r:.40}; want {kind}")


def _match_method(method: dict[str, Any], classes: int, where: str) -> None:
    """What types alone do not say: nothing empty, nothing ragged, fractions that sum to 1."""
    if not method["seeds"] or not all(seed["curve"] for seed in method["seeds"]):
        raise DataError(f"{where} ({method['name']}) has a seed without a curve; want at least one finished epoch")
    for index, entry in enumerate(method["routing"]):
        rows = entry["by_class"]
        _match(entry.get("share"), (float, None), f"{where}.routing[{index}].share")
        if len(rows) != classes or len({len(row) for row in rows}) > 1 or not all(rows):
            raise DataError(
                f"{where}.routing[{index}].by_class has rows of {sorted({len(row) for row in rows})} for {len(rows)} "
                f"classes; want one row of equal length for each of the {classes} classes"
            )
    for name, shape in _SINCE.items():
        _match(method.get(name), (shape, None), f"{where}.{name}")
    correlation = method["correlation"]
    for name, bands in [("bands", correlation["bands"])] + [(e["layer"], e["bands"]) for e in correlation["layers"]]:
        whole = math.isclose(sum(bands), 1.0, abs_tol=1e-3) or not any(bands)  # all 0: no layer has two filters
        if len(bands) != len(correlation["labels"]) or not whole:
            raise DataError(
                f"{where}.correlation {name} is {bands}; want {len(correlation['labels'])} fractions that sum to 1"
            )
