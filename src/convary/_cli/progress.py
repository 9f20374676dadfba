# SPDX-License-Identifier: Apache-2.0
"""Live progress of everything that trains: a bar for each training; plain lines where the output is no terminal."""

from __future__ import annotations

import time
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from convary.train import Progress as Listener
from convary.train import RunInfo, StepInfo

REFRESH = 0.1  # seconds between updates of a bar: a step may be faster than the eye
LINES = 10  # plain lines for the steps of a training without epochs


class LiveProgress(Listener):
    """Shows every training as a bar with its losses, its latest scores and the time left."""

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

    def on_start(self, run: RunInfo) -> None:
        """Open a bar, where it was left if the run is resumed."""
        name = _name(run)
        self.tasks[name] = self.bars.add_task(name, total=run.total_steps, completed=run.start_step, said="")
        if run.start_step < run.total_steps:
            state = f"resumed at step {run.start_step}" if run.start_step else "starts"
            layers = f"{run.layers} dynamic layers" if run.epochs else f"{run.total_steps} steps"
            self._line(f"{name}: {state}, {run.params:,} parameters, {layers}")

    def on_step(self, run: RunInfo, step: StepInfo) -> None:
        """Move the bar."""
        now, name = time.monotonic(), _name(run)
        said = _where(run, step.step) + "  " + _listed(step.losses)
        if run.epochs is None and step.step % max(1, run.total_steps // LINES) == 0:
            self._line(f"{name}: {said}, lr {step.lr:.2g}")
        if name not in self.tasks or (now - self.shown.get(name, 0.0) < REFRESH and step.step < run.total_steps):
            return
        self.shown[name] = now
        if step.temperature is not None and step.temperature != 1:
            said += f"  T {step.temperature:.1f}"
        self.bars.update(self.tasks[name], completed=step.step, said=said)

    def on_point(self, run: RunInfo, point: dict[str, Any]) -> None:
        """Say what the evaluation gave."""
        if point["scores"]:
            where = _where(run, point["step"])
            self._line(f"{_name(run)}: {where}, {_listed(point['losses'])}, {_scored(run, point)}")

    def on_end(self, run: RunInfo, point: dict[str, Any] | None) -> None:
        """Fill the bar."""
        said = "diverged" if point is None else _scored(run, point)
        if _name(run) in self.tasks:
            self.bars.update(self.tasks[_name(run)], completed=run.total_steps, said=said)
        self._line(f"{_name(run)}: done, {said}")

    def on_measure(self, method: str, what: str, index: int, count: int) -> None:
        """One more bar, for all measurements."""
        if self.measuring is None:
            self.measuring = self.bars.add_task("measuring", total=count, said="")
        self.bars.update(self.measuring, completed=index, said=escape(f"{what} of {method}"))
        self._line(f"measuring {index + 1}/{count}: {what} of {method}")

    def _line(self, text: str) -> None:
        if not self.console.is_terminal:
            self.console.print(text, markup=False, soft_wrap=True)


def _where(run: RunInfo, step: int) -> str:
    if run.epochs is None:
        return f"step {step}/{run.total_steps}"
    return f"epoch {-(-step * run.epochs // run.total_steps)}/{run.epochs}"


def _scored(run: RunInfo, point: dict[str, Any]) -> str:
    kind = "" if run.epochs is None else "held-out " if run.trial else "test "
    return kind + _listed(point["scores"])


def _listed(values: dict[str, float]) -> str:
    return "  ".join(f"top-1 {v:.2f} %" if name == "top1" else f"{name} {v:.4f}" for name, v in values.items())


def _name(run: RunInfo) -> str:
    return run.title if run.epochs is None else f"{run.title}, seed {run.seed}"
