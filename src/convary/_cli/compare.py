# SPDX-License-Identifier: Apache-2.0
"""``convary compare``: the main job, with live progress, a table at the end and the report."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from convary._cli.console import is_first, link, resumable, run_console
from convary._cli.options import flag_value
from convary._cli.parse import parse, wants_help
from convary.extras import require
from convary.train.config import CompareConfig

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

REPORT, RESULTS = "report.html", "results.json"


def run(argv: Sequence[str]) -> int:
    """Parse, train and measure, write the report, print the table."""
    if not wants_help(argv):
        require("convary compare", "all", "torchvision", "accelerate", "torchmetrics", "matplotlib", "jinja2")
    recipe = flag_value("--recipe", argv)
    default = None if recipe is None else CompareConfig.from_recipe(recipe)
    config = parse(CompareConfig, argv, "convary compare", default=default)
    from convary._cli.progress import LiveProgress
    from convary._cli.watch import EarlyReport, LivePage
    from convary.train import Listeners, compare

    console = run_console()
    early = EarlyReport(config.out / REPORT, console)
    with resumable(config, config.out, early.saved):
        with LiveProgress(console) as bars, contextlib.ExitStack() as stack:
            listeners = [bars, early]
            if config.watch and is_first():
                console.print(f"watch    {link(config.out / REPORT)}", soft_wrap=True)
                listeners.append(stack.enter_context(LivePage(config, config.out / REPORT)))
            results = compare(config, Listeners(*listeners))
        if is_first():
            _finish(results, config.out, console)
    return 0


def _finish(results: dict[str, Any], out: Path, console: Console) -> None:
    from convary import report
    from convary.report.noise import busy
    from convary.text import of_few

    report.write(results, out / REPORT)
    console.print()
    console.print(_fitting(results, console))
    best = max(method["top1"]["mean"] for method in results["methods"])
    for doubt in filter(None, (of_few(best, results["data"]["test"]), busy(results["methods"]))):
        console.print(f"[yellow]{doubt}[/yellow]")
    console.print(f"\nreport   {link(out / REPORT)}", soft_wrap=True)
    console.print(f"results  {link(out / RESULTS)}", soft_wrap=True)


def _fitting(results: dict[str, Any], console: Console) -> Table:
    """The table, with the spread of times and the parts of the MACs where the terminal has room for them."""
    free = console.options.update(max_width=1000)  # else no table is wider than this
    for full in (results_table(results), results_table(results, spread=False)):
        if console.measure(full, options=free).maximum <= console.width:
            return full
    return results_table(results, spread=False, parts=False)


def results_table(results: dict[str, Any], *, spread: bool = True, parts: bool = True) -> Table:
    """The comparison as a table for the terminal: one row per method.

    Args:
        results: What results.json holds.
        spread: Whether times have theirs below them.
        parts: Whether MACs for routing and for assembling kernels have columns of their own.
    """
    from rich.markup import escape
    from rich.table import Table

    from convary.report import headline
    from convary.report.noise import UNTIMED, is_timed

    batches = [entry["batch"] for entry in results["methods"][0]["latency"]]
    seeds = len(results["run"]["seeds"])
    note = (
        "One seed: std needs at least 2 seeds."
        if seeds == 1
        else f"Mean ± std over {seeds} seeds; vs static: the mean of paired gaps, its 95 % interval, seeds won."
    )
    table = Table(box=None, padding=(0, 1, 0, 0), header_style="bold", caption_justify="left")
    times = "times as ratios to static" + ", below them the 10th to 90th percentile" * spread
    times = times if is_timed(results["methods"]) else f"times are {UNTIMED}"
    table.caption = f"{note} Parameters and MACs in millions; {times}."
    table.add_column("method")
    latency = [f"latency\nbatch {batch}" for batch in batches]
    kinds = ("routing\nMACs", "assembly\nMACs") if parts else ()
    for name in ("top-1 %", "vs\nstatic", "params", "MACs", *kinds, *latency, "training\nstep"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in headline(results):
        times = (*row["latency"], row["step"])
        ratios = [f"{time['ratio']}\n{time['range']}" if spread and time["range"] else time["ratio"] for time in times]
        top1 = f"{row['top1']} {row['std']}" if row["std"] else row["top1"]
        cells = [row["params"], row["total"], *((row["routing"], row["assembly"]) if parts else ()), *ratios]
        gain = f"{row['gain']}\n{row['interval']}\n{row['wins']}" if row["interval"] else row["gain"] or "–"
        table.add_row(escape(row["title"]), top1, gain, *cells)
    return table
