# SPDX-License-Identifier: Apache-2.0
"""What is told while something trains. Derive from ``Progress`` and override what is of interest."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from convary.train.forecast import Work


@dataclass(frozen=True, kw_only=True)
class RunInfo:
    """One training.

    Attributes:
        name: Of the arm (``"static"``, a method) or of the system.
        title: For people.
        seed: The seed.
        trial: Whether it serves the choice of a learning rate, and is scored on held-out training images.
        index: Position among all trainings, from 0.
        count: How many there are.
        epochs: How many it has; None where only steps are counted.
        total_steps: How many steps it has.
        start_step: 0, or the step at which it is resumed; ``total_steps`` where it was finished before.
        params: Parameters of the network.
        layers: Dynamic layers of the network.
    """

    name: str
    title: str
    seed: int
    trial: bool
    index: int
    count: int
    epochs: int | None
    total_steps: int
    start_step: int
    params: int
    layers: int


@dataclass(frozen=True, kw_only=True)
class StepInfo:
    """A training step that was just taken.

    Attributes:
        step: Steps taken in this training.
        losses: By name, means over the steps since the last point of the curve.
        lr: Learning rate of the step.
        temperature: Of the routers; None where none is annealed.
    """

    step: int
    losses: dict[str, float]
    lr: float
    temperature: float | None


class Progress:
    """Hears what happens; does nothing."""

    def on_weights(self, told: str) -> None:
        """Every network starts from trained weights: how many of them, and what is new."""

    def on_width(self, title: str, found: dict[str, Any]) -> None:
        """A static network is as wide as the time of another one allows: ``width``, and their times' ``ratio``."""

    def on_work(self, work: Work) -> None:
        """A comparison has looked at what it has to do; its trainings start."""

    def on_start(self, run: RunInfo) -> None:
        """A training starts, is resumed, or turns out to be finished."""

    def on_resume(self, run: RunInfo, curve: list[dict[str, Any]]) -> None:
        """The training that starts has these points of its curve already."""

    def on_step(self, run: RunInfo, step: StepInfo) -> None:
        """A step was taken."""

    def on_point(self, run: RunInfo, point: dict[str, Any]) -> None:
        """The curve has a point more: ``step``, ``losses``, ``scores`` (empty where nothing was evaluated), ``lr``."""

    def on_end(self, run: RunInfo, point: dict[str, Any] | None) -> None:
        """A training is finished; ``point`` is the last one of its curve, None where a trial diverged."""

    def on_scores(self, results: dict[str, Any]) -> None:
        """All is trained and ``results.json`` written, as given here; times and memory, which it lacks, follow."""

    def on_measure(self, method: str, what: str, index: int, count: int) -> None:
        """Measurement ``index`` of ``count`` starts: ``what`` of ``method``."""


class Listeners(Progress):
    """Tells several listeners what happens, one after the other."""

    def __init__(self, *listeners: Progress) -> None:
        for name in vars(Progress):
            if name.startswith("on_"):
                setattr(self, name, partial(self._tell, [getattr(listener, name) for listener in listeners]))

    def _tell(self, heard: list[Callable[..., None]], *args: Any, **named: Any) -> None:
        for hear in heard:
            hear(*args, **named)
