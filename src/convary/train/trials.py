# SPDX-License-Identifier: Apache-2.0
"""The choice of a learning rate for every network, on images that neither its final score nor its trials train on."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any, NamedTuple

from convary.errors import ConfigError
from convary.train.arms import Arm
from convary.train.classification import Run
from convary.train.config import CompareConfig
from convary.train.results import Curve


class Choice(NamedTuple):
    """A learning rate, and how it was chosen.

    Attributes:
        lr: The one that was best.
        grid: Each one that was tried, with its mean top-1 on the held-out images; None where it diverged.
    """

    lr: float
    grid: dict[float, float | None]

    @property
    def at_edge(self) -> bool:
        """Whether the best may lie beyond what was tried."""
        return len(self.grid) > 1 and self.lr in (min(self.grid), max(self.grid))

    def to_dict(self) -> dict[str, Any]:
        """The entry ``lr`` of results.json."""
        grid = [{"lr": lr, "held_out_top1": top1} for lr, top1 in self.grid.items()]
        return {"chosen": self.lr, "at_edge": self.at_edge, "grid": grid}


def choose(config: CompareConfig, train: Callable[[list[Run]], list[Curve]]) -> dict[str, Choice]:
    """The learning rate of every arm, by its name.

    Args:
        config: What to do; with a single learning rate nothing is tried.
        train: Gives the learning curves of trials.

    Raises:
        ConfigError: an arm diverges with all of them.
    """
    arms = config.arms().values()
    if len(config.lr) == 1:
        return {arm.name: Choice(config.lr[0], {}) for arm in arms}
    trials = [Run(arm, seed, lr, True) for lr in config.lr for seed in range(config.lr_seeds) for arm in arms]
    curves = dict(zip(trials, train(trials), strict=True))
    return {arm.name: _best(arm, config, curves) for arm in arms}


def _best(arm: Arm, config: CompareConfig, curves: dict[Run, Curve]) -> Choice:
    grid: dict[float, float | None] = {}
    for lr in config.lr:
        ends = [curve[-1:] for run, curve in curves.items() if run.arm == arm and run.lr == lr]
        grid[lr] = statistics.fmean(end[0]["test_top1"] for end in ends) if all(ends) else None
    found = {lr: top1 for lr, top1 in grid.items() if top1 is not None}
    if not found:
        raise ConfigError(f"{arm.name} diverges with every lr of {config.lr}; give smaller ones, and another out")
    return Choice(max(found, key=lambda lr: found[lr]), grid)
