# SPDX-License-Identifier: Apache-2.0
"""``convary train SYSTEM``: one of the published systems, with live progress, its scores and pictures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from convary._cli.console import link, resumable, run_console
from convary._cli.parse import parse
from convary.errors import ConfigError, nearest
from convary.extras import require
from convary.systems import SYSTEMS, config_of

if TYPE_CHECKING:
    from rich.console import Console

    from convary.train.system import SystemConfig


def run(argv: Sequence[str]) -> int:
    """Find the system, parse its flags, train, print the scores."""
    if not argv or argv[0] in ("-h", "--help"):
        print(_help())
        return 0
    name, *rest = argv
    if name not in SYSTEMS:
        raise ConfigError(f"there is no system {name!r}; choose from {', '.join(SYSTEMS)}{nearest(name, SYSTEMS)}")
    require("convary train", "all", "torchvision", "accelerate", "torchmetrics", "matplotlib")
    config = parse(config_of(name), rest, f"convary train {name}")

    from convary._cli.progress import LiveProgress
    from convary.train.fit import fit

    console = run_console()
    with resumable(config, config.out), LiveProgress(console) as progress:
        results = fit(config, progress)
    _print(results, config, console)
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


def _print(results: dict[str, Any], config: SystemConfig, console: Console) -> None:
    console.print()
    width = max(map(len, results["scores"]))
    for name, value in results["scores"].items():
        console.print(f"{name:<{width}}  [bold]{value:.4f}[/bold]")
    console.print()
    for picture in results["pictures"]:
        console.print(f"picture  {link(config.out / picture)}", soft_wrap=True)
    console.print(f"results  {link(config.out / 'results.json')}", soft_wrap=True)
