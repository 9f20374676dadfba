# SPDX-License-Identifier: Apache-2.0
"""What a comparison tells while it runs. Derive from ``Progress`` and override what is of interest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class RunInfo:
    """One training: a method with a seed.

    Attributes:
        method: ``"static"`` or a method's name.
        title: For people.
        seed: The seed.
        index: Position among all runs, from 0.
        count: How many runs there are.
        epochs: How many epochs it has.
        total_steps: How many steps it has.
        start_step: 0, or the step at which it is resumed; ``total_steps`` where it was finished before.
        params: Parameters of the network.
        layers: Dynamic layers of the network.
        trial: Whether it serves the choice of a learning rate, and is scored on held-out training images.
    """

    method: str
    title: str
    seed: int
    index: int
    count: int
    epochs: int
    total_steps: int
    start_step: int
    params: int
    layers: int
    trial: bool = False


@dataclass(frozen=True)
class StepInfo:
    """A training step that was just taken.

    Attributes:
        step: Steps taken in this run.
        epoch: Epochs done, with the fraction of the current one.
        loss: Mean training loss of this epoch so far.
        top1: Training accuracy of this epoch so far, percent.
        lr: Learning rate of the step.
        temperature: Of the routers; None where they have none.
    """

    step: int
    epoch: float
    loss: float
    top1: float
    lr: float
    temperature: float | None


class Progress:
    """Hears what happens; does nothing."""

    def on_run_start(self, run: RunInfo) -> None:
        """A run starts, is resumed, or turns out to be finished."""

    def on_step(self, run: RunInfo, step: StepInfo) -> None:
        """A step was taken."""

    def on_epoch(self, run: RunInfo, point: dict[str, Any]) -> None:
        """An epoch ended; ``point`` is the entry of the learning curve."""

    def on_run_end(self, run: RunInfo, top1: float) -> None:
        """A run is finished, with this test accuracy in percent."""

    def on_measure(self, method: str, what: str, index: int, count: int) -> None:
        """Measurement ``index`` of ``count`` starts: ``what`` of ``method``."""
