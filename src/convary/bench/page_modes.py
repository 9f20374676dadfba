# SPDX-License-Identifier: Apache-2.0
"""The part of docs/benchmarks.md about compiled networks and exported files."""

from __future__ import annotations

from typing import Any

from convary.bench.engines import ENGINES
from convary.bench.tables import Record, markdown

FILES = {name: f"models-{name}.json" for name in ENGINES}
INTRODUCTION = """## Compiled, and as files

The ratio to the static network in the same mode; in brackets to whichever mode the static network is fastest in, where
that is another. One image, one thread, float32, checked against eager torch first. *aoti* is AOTInductor with convary's
operators. Of files the fastest form is shown, without banks in bf16. Made by `convary bench models --mode` in
processor time; *load* is how many processes wanted to run.
"""


def part(found: dict[str, dict[str, Any]], eager: dict[str, Any]) -> str:
    """The columns beside eager, and every line.

    Args:
        found: What was saved, by mode.
        eager: What ``convary bench models`` saved.
    """
    cells: dict[tuple[str, str], dict[str, str]] = {}
    for row in eager["rows"]:
        if _is_short(row):
            cells.setdefault(_network(row), {})["eager"] = f"{row['ratio']:.2f}"
    for mode, content in found.items():
        best: dict[tuple[str, str], Record] = {}
        for row in content["rows"]:
            if _is_short(row) and "bf16" not in row["form"] and not row["free"]:
                known = best.get(_network(row))
                best[_network(row)] = row if known is None or row["ratio"] < known["ratio"] else known
        for network, row in best.items():
            cells.setdefault(network, {})[mode] = _cell(row)
    columns = ["eager", *found]
    brief = markdown(
        ["network", "method", *columns],
        [[*network, *(row.get(column, "") for column in columns)] for network, row in cells.items() if len(row) > 1],
    )
    return f"{INTRODUCTION}\n{brief}\n"


def lines(content: dict[str, Any]) -> str:
    """Every line of one mode."""
    header = [
        "network", "method", "form", "batch", "mode", "threads", "ratio", "p10-p90", "ms", "static ms",
        "to its fastest", "nodes", "s to make", "load",
    ]  # fmt: skip
    rows = []
    for row in content["rows"]:
        form = row["form"] + (", any batch" if row["free"] else "")
        names = [row["model"].rpartition(":")[2], row["method"], form, str(row["batch"]), row["mode"]]
        rows.append([*names, str(row["threads"]), *_numbers(row)])
    return markdown(header, rows) + "\n"


def _numbers(row: Record) -> list[str]:
    if "ratio" not in row:
        return [f"wrong, off by {row['error']:.0e}", *[""] * 7]
    best = row["fastest"]
    nodes = "" if row["nodes"] is None else f"{row['nodes']} / {row['base_nodes']}"
    return [
        f"{row['ratio']:.2f}", f"{row['low']:.2f}-{row['high']:.2f}", f"{row['ms']:.2f}", f"{row['base_ms']:.2f}",
        f"{best['ratio']:.2f} ({best['by']}, {best['base_ms']:.2f} ms)", nodes,
        f"{row['made_seconds']:.1f} / {row['base_made_seconds']:.1f}", f"{row['load']:.0f}",
    ]  # fmt: skip


def _is_short(row: Record) -> bool:
    return (row["batch"], row["mode"], row["threads"]) == (1, "inference", 1) and "ratio" in row


def _network(row: Record) -> tuple[str, str]:
    return row["model"].rpartition(":")[2], row["method"]


def _cell(row: Record) -> str:
    form = f", {row['form']}" if len(ENGINES[row["by"]].forms) > 1 else ""
    best = row["fastest"]
    brackets = "" if best["by"] == row["by"] else f" ({best['ratio']:.2f}, {best['by']})"
    return f"{row['ratio']:.2f}{form}{brackets}"
