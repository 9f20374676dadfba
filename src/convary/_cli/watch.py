# SPDX-License-Identifier: Apache-2.0
"""``convary compare --watch``: report.html while it trains, written after epochs; an open page reloads itself."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from convary._cli.console import link
from convary.bench.machine import machine
from convary.report import live, system, write
from convary.train import CompareConfig, Progress, RunInfo, StepInfo
from convary.train.forecast import Forecast, Work
from convary.train.system import SystemConfig

if TYPE_CHECKING:
    from rich.console import Console

SECONDS = 3.0  # at least, between two pages
SHARE = 20  # times as long as writing a page took is trained before the next one


class EarlyReport(Progress):
    """Writes report.html before the times are measured, which may take longer than anyone waits for."""

    def __init__(self, path: Path, console: Console) -> None:
        self.path, self.console = path, console
        self.written = False

    def saved(self) -> str:
        """What is there when the comparison is interrupted."""
        return "all but times and memory (results.json and report.html)" if self.written else "what was done"

    def on_scores(self, results: dict[str, Any]) -> None:
        """Write it and say so."""
        write(results, self.path)
        self.written = True
        self.console.print(f"report   {link(self.path)}, so far without times and memory", soft_wrap=True)


class LivePage(Progress):
    """Writes the page until the report takes its place; where that is not reached, once more without reloading."""

    def __init__(self, config: CompareConfig, path: Path) -> None:
        self.config, self.path = config, path
        self.runs: dict[tuple[str, int], dict[str, Any]] = {}
        self.forecast: Forecast | None = None
        self.measuring = ""
        self.replaced = False
        self.next = 0.0

    def __enter__(self) -> LivePage:
        return self

    def __exit__(self, kind: object, *exception: object) -> None:
        if kind is not None and self.runs and not self.replaced:
            self._write("interrupted")

    def on_work(self, work: Work) -> None:
        """Begin the page."""
        self.forecast = Forecast(work)

    def on_start(self, run: RunInfo) -> None:
        """One more row."""
        if self.forecast is not None:
            self.forecast.start(run)
        names = {"name": run.name, "title": run.title, "seed": run.seed, "trial": run.trial}
        self.runs[run.title, run.seed] = {**names, "part": run.start_step / run.total_steps, "curve": []}
        self._due()

    def on_resume(self, run: RunInfo, curve: list[dict[str, Any]]) -> None:
        """The part of a curve that was there before."""
        self.runs[run.title, run.seed]["curve"] = [_entry(run, point) for point in curve]

    def on_step(self, run: RunInfo, step: StepInfo) -> None:
        """Count it."""
        if self.forecast is not None:
            self.forecast.at(run, step.step)
        self.runs[run.title, run.seed]["part"] = step.step / run.total_steps

    def on_point(self, run: RunInfo, point: dict[str, Any]) -> None:
        """One more point of a curve."""
        self.runs[run.title, run.seed]["curve"].append(_entry(run, point))
        self._due()

    def on_end(self, run: RunInfo, point: dict[str, Any] | None) -> None:
        """The row is full."""
        self.runs[run.title, run.seed]["part"] = 1.0
        self._due()

    def on_scores(self, results: dict[str, Any]) -> None:
        """The report is where the page was, and stays."""
        self.replaced = True

    def on_measure(self, method: str, what: str, index: int, count: int) -> None:
        """Training is over."""
        self.measuring = f"{what} of {method}, network {index + 1} of {count}"
        self._due()

    def _due(self) -> None:
        if not self.replaced and time.monotonic() >= self.next:
            begun = time.monotonic()
            self._write("running")
            self.next = time.monotonic() + max(SECONDS, SHARE * (time.monotonic() - begun))

    def _write(self, state: str) -> None:
        content = {
            "state": state,
            "model": self.config.model,
            "data": self.config.data,
            "command": self.config.command(),
            "count": len(self.runs) if self.forecast is None else self.forecast.work.trainings,
            "left": None if self.forecast is None else self.forecast.left,
            "measuring": self.measuring,
            "runs": list(self.runs.values()),
        }
        live.write(content, self.path)


class SystemPage(Progress):
    """The page of a system while it trains, written after points of its curve."""

    def __init__(self, config: SystemConfig, path: Path) -> None:
        self.config, self.path = config, path
        self.curve: list[dict[str, Any]] = []
        self.next = 0.0

    def on_resume(self, run: RunInfo, curve: list[dict[str, Any]]) -> None:
        """The part of the curve that was there before."""
        self.curve = list(curve)

    def on_point(self, run: RunInfo, point: dict[str, Any]) -> None:
        """One more point, with pictures where it has scores."""
        self.curve.append(point)
        if point["scores"] or time.monotonic() >= self.next:
            self._write(run)
            self.next = time.monotonic() + SECONDS

    def _write(self, run: RunInfo) -> None:
        scored = [point["scores"] for point in self.curve if point["scores"]]
        content = {
            "system": run.name,
            "title": run.title,
            "citation": self.config.citation,
            "scores": scored[-1] if scored else {},
            "curve": self.curve,
            "params": run.params,
            "seconds": self.curve[-1]["seconds"],
            "pictures": sorted(path.name for path in self.path.parent.glob("*.png")) if scored else [],
            "run": {"command": self.config.command(), **self.config.to_dict()},
            "machine": machine(),
        }
        system.write(content, self.path.parent, self.path, running=True)


def _entry(run: RunInfo, point: dict[str, Any]) -> dict[str, Any]:
    """A point of the curve as results.json has it."""
    return {
        "epoch": point["step"] * (run.epochs or 1) / run.total_steps,
        **{f"train_{name}": value for name, value in point["losses"].items()},
        **{f"test_{name}": value for name, value in point["scores"].items()},
        **point.get("observed", {}),
        "temperature": point["temperature"],
    }
