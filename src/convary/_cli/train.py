# SPDX-License-Identifier: Apache-2.0
"""``convary train SYSTEM``: one of the published systems, with live progress, its scores and pictures."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from convary._cli.console import is_first, link, resumable, run_console
from convary._cli.parse import parse
from convary.errors import ConfigError, nearest
from convary.extras import require
from convary.systems import SYSTEMS, config_of

if TYPE_CHECKING:
    from rich.console import Console

    from convary.train.system import SystemConfig


REPORT = "report.html"


def run(argv: Sequence[str]) -> int:
    """Find the system, parse its flags, train, print the scores."""
    if not argv or argv[0] in ("-h", "--help"):
        print(_help())
        return 0
    name, *rest = argv
    if name not in SYSTEMS:
        raise ConfigError(f"there is no system {name!r}; choose from {', '.join(SYSTEMS)}{nearest(name, SYSTEMS)}")
    require("convary train", "all", "torchvision", "accelerate", "torchmetrics", "matplotlib", "jinja2")
    config = parse(config_of(name), rest, f"convary train {name}")

    from convary._cli.progress import LiveProgress
    from convary._cli.watch import SystemPage
    from convary.train import Listeners, Progress
    from convary.train.fit import fit

    console = run_console()
    with resumable(config, config.out), LiveProgress(console) as bars:
        progress: Progress = bars
        if config.watch and is_first():
            console.print(f"watch    {link(config.out / REPORT)}", soft_wrap=True)
            progress = Listeners(bars, SystemPage(config, config.out / REPORT))
        results = fit(config, progress)
        others = {label: fit(other, bars) for label, other in config.others().items()}
    if is_first():
        _finish(results, others, config, console)
    return 0


def _help() -> str:
    width = max(map(len, SYSTEMS))
    systems = "\n".join(f"  {name:<{width}}  {title}" for name, (title, *_) in SYSTEMS.items())
    return (
        "usage: convary train SYSTEM [FLAGS]\n\n"
        "Train one of the published systems; an interrupted training is resumed.\n\n"
        f"systems:\n{systems}\n\n"
        "convary train SYSTEM --help shows a system's flags and their defaults."
    )


def _finish(results: dict[str, Any], others: dict[str, dict[str, Any]], config: SystemConfig, console: Console) -> None:
    from rich.markup import escape

    from convary.report import system as page

    page.write(results, config.out, config.out / REPORT, beside={config.label: results, **others} if others else None)
    console.print()
    width, means = max(map(len, results["scores"])), results.get("measures", {})
    for name, value in results["scores"].items():
        console.print(f"{name:<{width}}  [bold]{value:.4f}[/bold]  {escape(means.get(name.split()[-1], ''))}".rstrip())
    for label, other in others.items():
        told = ", ".join(f"{name} {value:.4f}" for name, value in other["scores"].items())
        console.print(f"\n{escape(label)}: {escape(told)}", soft_wrap=True)
    if results.get("scored_on"):
        console.print(f"\n{escape(results['scored_on'])}", soft_wrap=True)
    console.print()
    console.print(f"report   {link(config.out / REPORT)}", soft_wrap=True)
    for picture in results["pictures"]:
        console.print(f"picture  {link(config.out / picture)}", soft_wrap=True)
    console.print(f"results  {link(config.out / 'results.json')}", soft_wrap=True)
    run = config.name if config.out == Path("runs") / config.name else config.out
    console.print(f"predict  convary predict {shlex.quote(str(run))} FILE ...", soft_wrap=True, markup=False)
