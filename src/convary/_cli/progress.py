# SPDX-License-Identifier: Apache-2.0
"""Live progress of a comparison: a bar for each training; plain lines where the output is no terminal."""

from __future__ import annotations

import math
import time
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from convary.train import Progress as Listener
from convary.train import RunInfo, StepInfo

REFRESH = 0.1  # seconds between updates of a bar: a step may be faster than the eye


class LiveProgress(Listener):
    """Shows every training as a bar with loss, top-1 and the time left."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.bars = Progress(
            SpinnerColumn(finished_text="[green]✓[/green]"),
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[said]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self.tasks: dict[str, TaskID] = {}
        self.measuring: TaskID | None = None
        self.shown: dict[str, float] = {}

    def __enter__(self) -> LiveProgress:
        self.bars.start()
        return self

    def __exit__(self, kind: object, *exception: object) -> None:
        if self.measuring is not None and kind is None:
            self.bars.update(self.measuring, completed=self.bars.tasks[-1].total, said="")
        self.bars.stop()

    def on_run_start(self, run: RunInfo) -> None:
        """Open a bar, where it was left if the run is resumed."""
        name = _name(run)
        self.tasks[name] = self.bars.add_task(name, total=run.total_steps, completed=run.start_step, said="")
        finished = run.start_step >= run.total_steps
        state = "done before" if finished else f"resumed at step {run.start_step}" if run.start_step else "starts"
        if not finished:
            self._line(f"{name}: {state}, {run.params:,} parameters, {run.layers} dynamic layers")

    def on_step(self, run: RunInfo, step: StepInfo) -> None:
        """Move the bar."""
        now, name = time.monotonic(), _name(run)
        if name not in self.tasks or (now - self.shown.get(name, 0.0) < REFRESH and step.step < run.total_steps):
            return
        self.shown[name] = now
        epoch = min(int(step.epoch) + 1, run.epochs)
        said = f"epoch {epoch}/{run.epochs}  loss {step.loss:.3f}  top-1 {step.top1:5.1f} %"
        if step.temperature is not None and step.temperature != 1:
            said += f"  T {step.temperature:.1f}"
        self.bars.update(self.tasks[name], completed=step.step, said=said)

    def on_epoch(self, run: RunInfo, point: dict[str, Any]) -> None:
        """Say what the epoch gave."""
        epoch = f"epoch {point['epoch']:.0f}/{run.epochs}"
        self._line(f"{_name(run)}: {epoch}, loss {point['train_loss']:.3f}, {_scored(run, point['test_top1'])}")

    def on_run_end(self, run: RunInfo, top1: float) -> None:
        """Fill the bar."""
        if _name(run) in self.tasks:
            self.bars.update(self.tasks[_name(run)], completed=run.total_steps, said=_scored(run, top1))
        self._line(f"{_name(run)}: done, {_scored(run, top1)}")

    def on_measure(self, method: str, what: str, index: int, count: int) -> None:
        """One more bar, for all measurements."""
        if self.measuring is None:
            self.measuring = self.bars.add_task("measuring", total=count, said="")
        self.bars.update(self.measuring, completed=index, said=escape(f"{what} of {method}"))
        self._line(f"measuring {index + 1}/{count}: {what} of {method}")

    def _line(self, text: str) -> None:
        if not self.console.is_terminal:
            self.console.print(text, markup=False, soft_wrap=True)


def _scored(run: RunInfo, top1: float) -> str:
    return "diverged" if math.isnan(top1) else f"{'held-out' if run.trial else 'test'} top-1 {top1:.2f} %"


def _name(run: RunInfo) -> str:
    return f"{run.title}, seed {run.seed}"
