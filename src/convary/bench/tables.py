# SPDX-License-Identifier: Apache-2.0
"""Tables of what was measured: lines for a terminal, Markdown for docs/benchmarks.md."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

Record = dict[str, Any]
COLUMNS = {
    "layers": ("threads", "dtype", "mode", "layout", "factors", "layer", "strategy"),
    "models": ("threads", "model", "method", "dtype", "batch", "mode"),
    "memory": ("threads", "model", "method", "batch"),
    "modes": ("threads", "model", "method", "by", "form", "batch", "mode"),
}
WIDTHS = {
    "threads": 7, "mode": 9, "layout": 13, "factors": 7, "layer": 24, "strategy": 8, "model": 24, "method": 8,
    "dtype": 7, "batch": 5, "by": 11, "form": 12,
}  # fmt: skip
# What the project promises: (must, aim), ratios to the static network or layer at two threads.
MODEL_TARGETS = {
    ("torchvision:mobilenet_v2", 1, "inference"): (1.6, 1.15),
    ("torchvision:mobilenet_v2", 16, "inference"): (1.10, 0.9),
    ("torchvision:mobilenet_v2", 16, "training"): (1.3, 1.0),
    ("torchvision:resnet18", 1, "inference"): (1.4, 1.15),
    ("torchvision:resnet18", 16, "inference"): (1.25, 1.05),
    ("torchvision:resnet18", 16, "training"): (1.6, 1.15),
}
LAYER_TARGETS = {"inference": (1.5, 1.1), "training": (1.8, 1.2)}
MEMORY_TARGET = (0.15, 0.05)


def head(kind: str) -> str:
    """The line above a terminal table."""
    names = "  ".join(f"{name:<{WIDTHS[name]}}" for name in COLUMNS[kind])
    if kind == "memory":
        return f"{names}  {'static MB':>9}  {'dynamic MB':>10}  {'parameters and gradients MB':>27}  {'rest':>5}"
    times = f"{names}  {'ratio':>6}  {'p10':>5}  {'p90':>5}  {'ms':>8}  {'base ms':>8}"
    return f"{times}  to static's fastest" if kind == "modes" else times


def line(kind: str, row: Record) -> str:
    """One line of a terminal table."""
    names = "  ".join(f"{row[name]!s:<{WIDTHS[name]}}" for name in COLUMNS[kind])
    if kind == "memory":
        static, dynamic, parameters, rest = memory_numbers(row)
        return f"{names}  {static:9.0f}  {dynamic:10.0f}  {parameters:27.0f}  {rest:5.0%}"
    if "ratio" not in row:
        return f"{names}  WRONG: off by {row['error']:.1e} from the reference; not timed"
    spread = f"{row['ratio']:6.2f}  {row['low']:5.2f}  {row['high']:5.2f}"
    best = f"  {row['fastest']['ratio']:.2f} ({row['fastest']['by']})" if "fastest" in row else ""
    return f"{names}  {spread}  {row['ms']:8.2f}  {row['base_ms']:8.2f}{best}"


def memory_numbers(row: Record) -> tuple[float, float, float, float]:
    """Peaks of static and dynamic, the extra parameters with their gradients (MB), and the rest over static's peak."""
    static, dynamic, extra = (row[name] / 1e6 for name in ("static", "dynamic", "extra_parameters"))
    return static, dynamic, 2 * extra, (dynamic - static - 2 * extra) / static


def target(kind: str, row: Record) -> tuple[float, float] | None:
    """The ratio that a line must reach, and the one aimed at; None where nothing is promised."""
    if row.get("threads") != 2 or row.get("layout", "contiguous") != "contiguous" or row.get("dtype") == "bf16":
        return None
    if kind == "layers":
        return LAYER_TARGETS[row["mode"]]
    return MODEL_TARGETS.get((row["model"], row["batch"], row["mode"]))


def verdict(kind: str, row: Record) -> str:
    """How a line stands to its target."""
    wanted = target(kind, row)
    if wanted is None or "ratio" not in row:
        return ""
    must, aim = wanted
    return "aim" if row["ratio"] <= aim else "must" if row["ratio"] <= must else "**missed**"


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table, numbers to the right."""

    def row(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cells) + " |"

    numbers = ("ratio", "p10-p90", "batch", "rest")
    rule = ["---:" if name in numbers or name.endswith(("ms", "MB")) else "---" for name in header]
    return "\n".join([row(header), row(rule), *map(row, rows)])
