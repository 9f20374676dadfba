# SPDX-License-Identifier: Apache-2.0
"""Every point of every curve as it comes: always in a table, and with ``--log`` in trackers that Accelerate knows."""

from __future__ import annotations

import csv
import io
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from convary.errors import ConfigError
from convary.files import write_whole
from convary.train.progress import Listeners, Progress, RunInfo

if TYPE_CHECKING:
    from convary.train.run_config import RunConfig

TABLE, FOLDER = "log.csv", "tensorboard"


def heard(config: RunConfig, progress: Progress, *, is_first: bool) -> Progress:
    """Who hears what happens: ``progress``, and in the first process the table and the trackers that ``log`` names.

    Raises:
        ConfigError: a tracker that is not installed, or one that is named twice.
    """
    if len(set(config.log)) < len(config.log):
        raise ConfigError(f"log names one tracker twice: {' '.join(config.log)}; name each once")
    trackers = [Tracked(kind, config) for kind in config.log]
    return Listeners(progress, Table(config.out / TABLE), *trackers) if is_first else progress


class Table(Progress):
    """A line of CSV for each point; the columns are the losses and scores of all trainings so far.

    Args:
        path: Of the file, which is written whole after each point.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: list[dict[str, Any]] = []

    def on_resume(self, run: RunInfo, curve: list[dict[str, Any]]) -> None:
        """The points that were there before."""
        for point in curve:
            self._add(run, point)
        self._write()

    def on_point(self, run: RunInfo, point: dict[str, Any]) -> None:
        """One more line."""
        self._add(run, point)
        self._write()

    def _write(self) -> None:
        columns = list(dict.fromkeys(name for row in self.rows for name in row))
        text = io.StringIO()
        writer = csv.DictWriter(text, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows)
        write_whole(self.path, text.getvalue().encode())

    def _add(self, run: RunInfo, point: dict[str, Any]) -> None:
        self.rows.append({"training": run.title, "seed": run.seed, "step": point["step"], **values(point)})


_NEEDS = {"tensorboard": ("tensorboard", "tensorboardX"), "wandb": ("wandb",)}


class Tracked(Progress):
    """A run of a tracker for each training.

    Args:
        kind: A tracker of Accelerate.
        config: Of the training or the comparison.

    Raises:
        ConfigError: the tracker is not installed.
    """

    def __init__(self, kind: str, config: RunConfig) -> None:
        from importlib.util import find_spec

        if not any(find_spec(package) for package in _NEEDS[kind]):
            raise ConfigError(
                f"log={kind} needs {kind}, which is not installed; run pip install {kind}; {TABLE} is there without"
            )
        self.kind, self.config = kind, config
        self.open: dict[str, Any] = {}

    def on_start(self, run: RunInfo) -> None:
        """Open a run of the tracker; not for a training that is finished."""
        if run.start_step == run.total_steps:
            return
        from accelerate.tracking import TensorBoardTracker, WandBTracker

        name = _name(run)
        if self.kind == "tensorboard":
            tracker = TensorBoardTracker(re.sub(r"[^\w.=@-]+", "-", name), self.config.out / FOLDER)
        else:
            known = {"name": name, "group": self.config.out.name, "config": self.config.to_dict()}
            tracker = WandBTracker("convary", dir=str(self.config.out), reinit="create_new", **known)
        tracker.start()
        self.open[name] = tracker

    def on_resume(self, run: RunInfo, curve: list[dict[str, Any]]) -> None:
        """TensorBoard has these points in its folder; the others begin anew."""
        for point in curve if self.kind != "tensorboard" else []:
            self.on_point(run, point)

    def on_point(self, run: RunInfo, point: dict[str, Any]) -> None:
        """Tell the tracker."""
        if _name(run) in self.open:
            self.open[_name(run)].log(values(point), step=point["step"])

    def on_end(self, run: RunInfo, point: dict[str, Any] | None) -> None:
        """Close the run."""
        if _name(run) in self.open:
            self.open.pop(_name(run)).finish()


def values(point: dict[str, Any]) -> dict[str, float]:
    """The numbers of a point: losses of the training, scores, and what is known of the step."""
    known = {name: point[name] for name in ("lr", "temperature", "seconds") if point[name] is not None}
    losses = {f"train/{name}": value for name, value in point["losses"].items()}
    return {**losses, **{f"score/{name}": value for name, value in point["scores"].items()}, **known}


def _name(run: RunInfo) -> str:
    return f"{run.title}, seed {run.seed}"
