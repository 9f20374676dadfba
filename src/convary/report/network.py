# SPDX-License-Identifier: Apache-2.0
"""The plan drawn on the network: its layers from input to output, which became dynamic, and what that costs."""

from __future__ import annotations

from typing import Any

from convary.report.tables import decimals


def networks(methods: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Per dynamic network its layers; ``depth`` (parameters added) and MACs are fractions of the network's largest."""
    return [_network(method) for method in methods if method.get("plan")]


def _network(method: dict[str, Any]) -> dict[str, Any]:
    rows = method["plan"]
    added = [row["params_after"] - row["params_before"] for row in rows]
    costs = [(row["macs_before"] or 0, row["macs_after"] or 0) for row in rows]
    most, largest = max(1, *added), max(1, *(max(cost) for cost in costs))
    return {
        "name": method["name"],
        "dynamic": sum(row["after"] is not None for row in rows),
        "layers": [
            {
                **row,
                "added": new,
                "depth": max(new, 0) / most,
                "before_macs": before / largest,
                "more_macs": max(after - before, 0) / largest,
                "millions": (before / 1e6, after / 1e6),
                "digits": decimals(after / 1e6),
            }
            for row, new, (before, after) in zip(rows, added, costs, strict=True)
        ],
    }
