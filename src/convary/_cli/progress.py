# SPDX-License-Identifier: Apache-2.0
"""Live progress of everything that trains: a bar for each training; plain lines where the output is no terminal."""

from __future__ import annotations

import os
import time
from typing import Any

import torch
from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)
from rich.table import Column
from rich.text import Text

from convary.bench.machine import load
from convary.text import FEW_FINE, FEW_STEPS, of_crowd, of_few_steps, spell
from convary.train import Progress as Listener
from convary.train import RunInfo, StepInfo
from convary.train.forecast import Forecast, Work

BAR, ELAPSED = (
    110,
    95,
)  # columns of a terminal below which the bar, and below which the time that has passed, is left out
REFRESH = 0.1  # seconds between updates of a bar: a step may be faster than the eye
LINES = 10  # plain lines for the steps of a training without epochs


class LiveProgress(Listener):
    """Shows every training as a bar with its losses, its latest scores and the time left."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.bars = Progress(*_columns(console.width), console=console, expand=True, disable=not console.is_terminal)
        self.forecast: Forecast | None = None
        self.all: TaskID | None = None
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

    def on_weights(self, told: str) -> None:
        """Say what was taken."""
        self.console.print(f"weights  {told}", markup=False, soft_wrap=True)

    def on_width(self, title: str, found: dict[str, Any]) -> None:
        """Say what was measured."""
        told = f"{title}: {found['width']:g} times as wide, which takes {found['ratio']:.2f} of that"
        self.console.print(told, markup=False, soft_wrap=True)

    def on_work(self, work: Work) -> None:
        """Say how much there is, how long it takes and whether it is too little; open a bar for everything."""
        many = f"{work.trainings} training{'s' if work.trainings != 1 else ''}"
        after = f"; measuring and the report take about {spell(work.measuring)} more" if work.measuring else ""
        each = f"{work.each:,} step{'s' if work.each != 1 else ''}{' each' if work.trainings != 1 else ''}"
        kept = f", {work.kept} of them done before" if work.kept else ""
        told = f"{many} of {each}{kept}, about {spell(max(work.total - work.saved, 0.0))}{after}"
        self.console.print(told, markup=False, soft_wrap=True)
        if 20 * work.unused > work.images:  # of more than 20 images an epoch hardly misses one
            rest = f"{work.unused} of {work.images} images, others each time: a --batch-size that divides them uses all"
            self.console.print(f"An epoch leaves out {rest}.", style="yellow", markup=False, soft_wrap=True)
        if work.jobs == 1 and (crowd := of_crowd(load(), os.cpu_count() or 1, torch.get_num_threads())):
            self.console.print(crowd, style="yellow", markup=False, soft_wrap=True)
        if doubt := of_few_steps(work.each, FEW_FINE if work.pretrained else FEW_STEPS):
            self.console.print(doubt, style="yellow", markup=False, soft_wrap=True)
        self.forecast = Forecast(work)
        self.all = self.bars.add_task(f"all {many}", total=1.0, said="", left=self.forecast)

    def on_start(self, run: RunInfo) -> None:
        """Open a bar, where it was left if the run is resumed."""
        if self.forecast is not None:
            self.forecast.start(run)
        name = _name(run)
        self.tasks[name] = self.bars.add_task(name, total=run.total_steps, completed=run.start_step, said="")
        if run.start_step < run.total_steps:
            state = f"resumed at step {run.start_step}" if run.start_step else "starts"
            layers = f"{run.layers} dynamic layers" if run.epochs else f"{run.total_steps} steps"
            self._line(f"{name}: {state}, {run.params:,} parameters, {layers}")

    def on_step(self, run: RunInfo, step: StepInfo) -> None:
        """Move the bar."""
        now, name = time.monotonic(), _name(run)
        self._move(run, step.step)
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
        self._move(run, run.total_steps)
        said = "diverged" if point is None else _scored(run, point)
        if _name(run) in self.tasks:
            self.bars.update(self.tasks[_name(run)], completed=run.total_steps, said=said)
        self._line(f"{_name(run)}: done, {said}")

    def on_measure(self, method: str, what: str, index: int, count: int) -> None:
        """One more bar, for all measurements."""
        if self.measuring is None:
            if self.all is not None:
                self.bars.update(self.all, completed=1.0)
            self.measuring = self.bars.add_task("measuring", total=count, said="")
        self.bars.update(self.measuring, completed=index, said=escape(f"{what} of {method}"))
        self._line(f"measuring {index + 1}/{count}: {what} of {method}")

    def _move(self, run: RunInfo, step: int) -> None:
        """Move the bar of everything."""
        if self.forecast is not None and self.all is not None:
            self.forecast.at(run, step)
            self.bars.update(self.all, completed=self.forecast.part)

    def _line(self, text: str) -> None:
        if not self.console.is_terminal:
            self.console.print(text, markup=False, soft_wrap=True)


class _Left(ProgressColumn):
    """The time left: of everything by the forecast, of one training by its own speed."""

    max_refresh = 0.5

    def render(self, task: Task) -> Text:
        """As in 1:23 or 2:03:04."""
        forecast = task.fields.get("left")
        left = task.time_remaining if forecast is None else forecast.left
        if task.finished or left is None:
            return Text("" if task.finished else "-:--", style="progress.remaining")
        minutes, seconds = divmod(int(left), 60)
        hours, minutes = divmod(minutes, 60)
        text = f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
        return Text(text, style="progress.remaining")


def _columns(width: int) -> list[ProgressColumn]:
    """What fits into a terminal: the bar is the first to go, then the time that has passed, never the time left."""
    said = TextColumn("{task.fields[said]}", table_column=Column(ratio=1, no_wrap=True, overflow="ellipsis"))
    whole = Column(no_wrap=True)
    left = _Left(table_column=Column(no_wrap=True, min_width=7, justify="right"))
    bar = [BarColumn(bar_width=24)] if width >= BAR else []
    elapsed = [TimeElapsedColumn(table_column=Column(no_wrap=True))] if width >= ELAPSED else []
    name = TextColumn("{task.description}", table_column=whole)
    return [SpinnerColumn(finished_text="[green]✓[/green]"), name, *bar, said, *elapsed, left]


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
