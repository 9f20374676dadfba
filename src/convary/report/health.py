# SPDX-License-Identifier: Apache-2.0
"""The health of a method's layers, in words with names: what the results table says and the diagnosis spells out."""

from __future__ import annotations

from typing import Any

from convary._diagnose import IGNORES
from convary.report.images import mix

_NAMED = 2  # layers that a badge names


def badges(method: dict[str, Any], *, upcycled: bool = False) -> list[dict[str, str]]:
    """What is wrong: ``kind`` ("bad" or "good"), ``text`` and the ``names`` of layers; empty without a diagnosis.

    Args:
        method: An entry of results.json.
        upcycled: Whether its layers were upcycled, and so ignored their input at first.
    """
    layers = (method.get("diagnosis") or {}).get("layers", [])
    if not layers:
        return []
    count = len(layers)
    idle = [layer["layer"] for layer in layers if layer["variation"] < IGNORES]
    dead = [layer["layer"] for layer in layers if layer["dead"]]
    equal = [layer["layer"] for layer in layers if layer["duplicates"]]
    experts = sum(len(layer["dead"]) for layer in layers)
    found = []
    if idle:
        found.append(_badge(f"{len(idle)} of {count} layers ignore their input", idle))
        if upcycled:
            found[-1]["note"] = "a layer that was just upcycled starts so and learns it"
    if dead:
        found.append(_badge(f"{experts} dead expert{'s' if experts > 1 else ''}", dead))
    if equal:
        found.append(_badge(f"equal experts in {len(equal)} of {count}", equal))
    return found or [{"kind": "good", "text": f"all {count} layers in use", "names": ""}]


def _badge(text: str, names: list[str]) -> dict[str, str]:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return {"kind": "bad", "text": text, "names": ", ".join(names[:_NAMED]) + more}


def trouble(method: dict[str, Any]) -> int:
    """How many layers have something wrong; what the column sorts by."""
    layers = (method.get("diagnosis") or {}).get("layers", [])
    return sum(layer["variation"] < IGNORES or bool(layer["dead"] or layer["duplicates"]) for layer in layers)


def layers(method: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows of the diagnosis: every layer by name, with the shares of its experts as a bar, and remarks."""
    return [
        {**layer, "mix": mix(layer["share"]), "remarks": _remarks(layer)} for layer in method["diagnosis"]["layers"]
    ]


def _remarks(layer: dict[str, Any]) -> str:
    said = ["ignores its input"] if layer["variation"] < IGNORES else []
    said += [f"expert {expert + 1} is dead" for expert in layer["dead"]]
    said += [f"experts {one + 1} and {other + 1} are equal" for one, other in layer["duplicates"]]
    return "; ".join(said)
