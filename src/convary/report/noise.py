# SPDX-License-Identifier: Apache-2.0
"""Times as the tables show them, and which of them say nothing because the machine was busy."""

from __future__ import annotations

from typing import Any

from convary.text import milliseconds

Method = dict[str, Any]
QUIET = (0.8, 1.25)  # what static against itself, its 10th to 90th percentile, may reach in a time that says something
WIDEST = 2.0  # how far a network's own 10th and 90th percentile may be from its middle
NOISY, UNTIMED = "too noisy", "not measured"


def noisy(methods: list[Method], batch: int | None = None) -> bool:
    """Whether the latency at this batch (None: the training step) of static against itself shows a busy machine."""
    return any(not QUIET[0] <= e["low"] <= e["high"] <= QUIET[1] for e in _own(methods) if e["of"] == batch)


def unsteady(entry: dict[str, Any]) -> bool:
    """Whether a network's own times spread so far that their middle says little."""
    return entry["high"] > WIDEST * entry["ratio"] or entry["low"] * WIDEST < entry["ratio"]


def quiet_batches(methods: list[Method]) -> list[int]:
    """The batches whose latency says something, of all networks."""
    found = {entry["batch"] for method in methods for entry in method["latency"]}
    return sorted(batch for batch in found if not noisy(methods, batch))


def is_timed(methods: list[Method]) -> bool:
    """Whether times were measured: not before the last training has ended, and not with ``--measure-seconds 0``."""
    return all(method["step"] is not None for method in methods)


def busy(methods: list[Method]) -> str:
    """What to know where times are too noisy; nothing where all say something."""
    found, who = [entry for entry in _own(methods) if noisy(methods, entry["of"])], "static against itself"
    if not found:
        every = [(method, entry) for method in methods for entry in (*method["latency"], method["step"]) if entry]
        worst = max((pair for pair in every if unsteady(pair[1])), key=lambda pair: pair[1]["high"], default=None)
        if worst is None:
            return ""
        found, who = [worst[1]], worst[0]["title"]
    low, high = min(entry["low"] for entry in found), max(entry["high"] for entry in found)
    return (
        f"{NOISY.capitalize()}: the machine was busy: {who} took {low:.2f} to {high:.2f} times as long; measure again "
        "on a quiet one."
    )


_EAGER = "Times are of PyTorch here; an exported file has its own, often higher, which convary export tells."


def price(methods: list[Method]) -> str:
    """What each network costs beside static, in a sentence; nothing without static, or where the table is clearer."""
    static = next((method for method in methods if method["name"] == "static"), None)
    others = [method for method in methods if method is not static]
    if static is None or not 0 < len(others) <= 3:
        return ""
    told = []
    for method in others:
        parts = [f"{method['params'] / static['params']:.2f} times the parameters"]
        for entry in method["latency"]:
            if not noisy(methods, entry["batch"]) and not unsteady(entry):
                images = "an image" if entry["batch"] == 1 else f"{entry['batch']} images"
                parts.append(f"{entry['ratio']:.2f} times the time of {images}")
        told.append(f"{method['title']} {', '.join(parts)}")
    said = f"Cost against static: {'; '.join(told)}."
    return f"{said} {_EAGER}" if " the time of " in said else said


def timed(methods: list[Method], method: Method) -> dict[str, Any]:
    """The cells ``latency``, one for each batch, and ``step`` of a row."""
    is_static = method["name"] == "static"
    latency = [_cell(entry, is_static, noisy(methods, entry["batch"])) for entry in method["latency"]]
    return {"latency": latency, "step": _cell(method["step"], is_static, noisy(methods))}


def _cell(entry: dict[str, Any] | None, is_static: bool, is_noisy: bool) -> dict[str, Any]:
    """Texts, and ``sort`` to sort by; of a noisy one the range alone, which shows why."""
    if entry is None:
        return {"ratio": UNTIMED, "sort": "", "range": "", "ms": None, "images": None}
    spread = f"{entry['low']:.2f}–{entry['high']:.2f}"
    if is_noisy or unsteady(entry):
        return {"ratio": NOISY, "sort": "", "range": spread, "ms": None, "images": None}
    return {
        "ratio": "1" if is_static else f"{entry['ratio']:.2f}×",
        "sort": entry["ratio"],
        "range": spread,
        "ms": milliseconds(entry["ms"]),
        "images": f"{1000 * entry['batch'] / entry['ms']:,.0f} images/s",
    }


def _own(methods: list[Method]) -> list[dict[str, Any]]:
    """Static's times against itself; ``of`` says the batch of a latency, None the training step."""
    return [
        {**entry, "of": of}
        for method in methods
        if method["name"] == "static"
        for of, entry in [*((e["batch"], e) for e in method["latency"]), (None, method["step"])]
        if entry is not None
    ]
