# SPDX-License-Identifier: Apache-2.0
"""The parts of docs/benchmarks.md about accelerators: a part for each, for no ratio goes from one device to another."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from convary.bench.tables import Record, markdown, memory_numbers

TABLE = re.compile(r"(models|layers)-(cuda|xpu|mps)(-.*)?\.json")  # as ``convary bench --device`` names them
METHOD = """Timed by the device's own events, after a warm-up; otherwise as all lines here: right first, in turns with
the static one in the same dtype.
"""
_COLUMNS = {
    "layers": ("layer", "mode", "factors", "layout", "dtype", "strategy"),
    "models": ("model", "method", "mode", "layout", "dtype", "batch"),
    "modes": ("model", "method", "mode", "by", "batch"),
}


def files(results: Path) -> list[Path]:
    """What was saved of accelerators."""
    return sorted(path for path in results.glob("*.json") if TABLE.fullmatch(path.name))


def parts(found: list[dict[str, Any]]) -> list[str]:
    """A part of the page for each device.

    Args:
        found: What ``convary bench layers`` and ``models`` saved with ``--device``.
    """
    by_device: dict[str, list[dict[str, Any]]] = {}
    for content in found:
        by_device.setdefault(content["machine"]["device"], []).append(content)
    return [
        f"## {device}\n\n{METHOD}\n" + "\n".join(_tables(content) for content in contents)
        for device, contents in by_device.items()
    ]


def _tables(content: dict[str, Any]) -> str:
    options, machine = content["options"], content["machine"]
    against, kind = options["against"], "modes" if options.get("mode", "eager") != "eager" else content["kind"]
    columns = _COLUMNS[kind]
    header = [*columns, "ratio", "p10-p90", "ms", f"{against} ms"]
    rows = [[str(row[name]).rpartition(":")[2] for name in columns] + _numbers(row) for row in content["rows"]]
    text = f"torch {machine['torch']}, convary {machine['convary']}, {machine['os']}; 1.00 is {against}'s time.\n\n"
    text += markdown(header, rows) + "\n"
    if memory := content.get("memory"):
        peaks = [
            [row["model"].rpartition(":")[2], row["method"], str(row["batch"])]
            + [f"{number:.0f}" for number in memory_numbers(row)[:2]]
            for row in memory
        ]
        text += "\nPeak memory of training, of torch's allocator:\n\n"
        text += markdown(["model", "method", "batch", "static MB", "dynamic MB"], peaks) + "\n"
    return text


def _numbers(row: Record) -> list[str]:
    if "ratio" not in row:
        return ["wrong", f"error {row['error']:.0e}", "", ""]
    return [f"{row['ratio']:.2f}", f"{row['low']:.2f}-{row['high']:.2f}", f"{row['ms']:.3f}", f"{row['base_ms']:.3f}"]
