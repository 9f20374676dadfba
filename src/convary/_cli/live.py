# SPDX-License-Identifier: Apache-2.0
"""Live progress of ``convary train``: one bar; plain lines where the output is no terminal."""

from __future__ import annotations

import time

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from convary._cli.progress import REFRESH
from convary.train.fit import FitProgress
from convary.train.system import SystemConfig

LINES = 10  # plain lines per training


class LiveFit(FitProgress):
    """Shows the losses, the latest scores and the time left."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[said]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self.task: TaskID | None = None
        self.total, self.shown = 0, 0.0

    def __enter__(self) -> LiveFit:
        self.bars.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.bars.stop()

    def on_start(self, config: SystemConfig, params: int, step: int) -> None:
        """Open the bar, where it was left if the run is resumed."""
        self.total = config.steps
        self.task = self.bars.add_task(config.title, total=config.steps, completed=step, said="")
        state = f"goes on at step {step}" if step else "starts"
        self.console.print(f"{config.title}: {state}, {params:,} parameters, {config.steps} steps", markup=False)

    def on_step(self, step: int, losses: dict[str, float], lr: float) -> None:
        """Move the bar."""
        said = _listed(losses, ".4f")
        now = time.monotonic()
        if self.task is not None and (now - self.shown >= REFRESH or step == self.total):
            self.shown = now
            self.bars.update(self.task, completed=step, said=said)
        if not self.console.is_terminal and step % max(1, self.total // LINES) == 0:
            self.console.print(f"step {step}/{self.total}: {said}, lr {lr:.2g}", markup=False, soft_wrap=True)

    def on_scores(self, step: int, scores: dict[str, float]) -> None:
        """Say what the evaluation gave."""
        self.console.print(f"step {step}/{self.total}: {_listed(scores, '.4f')}", markup=False, soft_wrap=True)


def _listed(values: dict[str, float], form: str) -> str:
    return "  ".join(f"{name} {value:{form}}" for name, value in values.items())
