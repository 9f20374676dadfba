# SPDX-License-Identifier: Apache-2.0
"""How long all trainings of a comparison take: a guess from a few steps at the start, then from what was done."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import nn

from convary.bench.timing import duration
from convary.data import DataSet
from convary.train.arms import STATIC
from convary.train.config import CompareConfig
from convary.train.measure import PATIENCE, stepper
from convary.train.networks import architecture
from convary.train.progress import RunInfo
from convary.train.results import LATENCY_BATCHES

_BATCHES = 2  # timed after one that warms up
_LONG = 0.5  # seconds
_FOR_MEMORY = 3  # steps: one before, and one that the profiler hears, which takes longer
_SURE = 0.02  # part of all work after which what was done says more than the guess


@dataclass(frozen=True, kw_only=True)
class Work:
    """All trainings of a comparison.

    Attributes:
        trainings: How many, trials of learning rates among them.
        jobs: How many at a time.
        each: Steps of one training; trials, which leave images out, have fewer.
        steps: By arm: of all of its trainings.
        seconds: By arm: of a step with its share of the evaluations, when it is alone; a guess.
        measuring: Seconds of the timings of the trained networks, which are the most of what follows; a guess.
        kept: How many trainings were finished before, for results with fewer seeds or other methods.
        saved: Seconds of those, by the guess.
        pretrained: Whether they start from trained weights.
        images: How many there are to train on.
        unused: How many of them an epoch leaves out, other ones each time, because they fill no batch.
    """

    trainings: int
    jobs: int
    each: int
    steps: dict[str, int]
    seconds: dict[str, float]
    measuring: float = 0.0
    kept: int = 0
    saved: float = 0.0
    pretrained: bool = False
    images: int = 0
    unused: int = 0

    @property
    def total(self) -> float:
        """Seconds of everything, by the guess."""
        return sum(self.steps[name] * self.seconds[name] for name in self.steps) / self.jobs


def work(
    config: CompareConfig, dataset: DataSet, device: torch.device, before: Mapping[str, int] | None = None
) -> Work:
    """Time a few batches of every arm; the networks are thrown away.

    Args:
        config: What is trained.
        dataset: On what.
        device: Where.
        before: By arm, how many seeds of it are finished.
    """
    tried = len(config.lr) * config.lr_seeds if len(config.lr) > 1 else 0
    size = min(config.batch_size, len(dataset.train.labels))
    every = len(dataset.train.labels) // size
    kept = round(len(dataset.train.labels) * (1 - config.held_out))
    steps, seconds, calls, saved, before = {}, {}, {}, 0.0, before or {}
    for name, arm in config.arms().items():
        trial = tried * max(1, kept // size)
        steps[name] = config.epochs * (config.seeds * every + trial)
        model = architecture(arm, config, dataset, 0).build().to(device)
        calls[name] = step, forward = _timed(model, config, dataset, size, device)
        seconds[name] = step + forward * len(dataset.test.labels) / size / every
        if name in before:
            saved += config.epochs * (min(before[name], config.seeds) * every + trial) * seconds[name] / config.jobs
    return Work(
        trainings=len(steps) * (config.seeds + tried),
        jobs=config.jobs,
        each=config.epochs * every,
        steps=steps,
        seconds=seconds,
        measuring=_measuring(calls, size, config.measure_seconds),
        kept=sum(min(before[name], config.seeds) + tried for name in steps if name in before),
        saved=saved,
        pretrained=config.pretrained,
        images=len(dataset.train.labels),
        unused=len(dataset.train.labels) - every * size,
    )


def _measuring(calls: Mapping[str, tuple[float, float]], size: int, seconds: float) -> float:
    """Seconds of all timings, see ``train.results``.

    Args:
        calls: By arm, seconds of a training step and of a batch that is only looked at.
        size: Images of both.
        seconds: For each timing; 0 measures nothing.
    """
    if not seconds:
        return 0.0
    found = 0.0
    for step, forward in calls.values():
        base_step, base_forward = calls.get(STATIC, (step, forward))
        pairs = [step + base_step, *((forward + base_forward) * batch / size for batch in LATENCY_BATCHES)]
        found += sum(duration(pair, seconds, PATIENCE) for pair in pairs) + _FOR_MEMORY * step
    return found


def _timed(
    model: nn.Module, config: CompareConfig, dataset: DataSet, size: int, device: torch.device
) -> tuple[float, float]:
    """Seconds of a training step, and of a batch that is only looked at."""
    index = torch.arange(size)
    x = dataset.normalise(dataset.train.batch(index).to(device))
    step = _mean(stepper(model, x, dataset.train.labels[index].to(device), config))
    model.eval()
    with torch.inference_mode():
        return step, _mean(lambda: model(x).sum().item())


def _mean(work: Callable[[], object]) -> float:
    """Of a few calls after one that warms up; of a long one, that one says enough."""
    times = []
    while len(times) <= _BATCHES and not (times and times[0] > _LONG):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    rest = times[1:] or times
    return sum(rest) / len(rest)


class Forecast:
    """The time left, from where every training is.

    Args:
        work: What there is to do.
        clock: Seconds that pass.
    """

    def __init__(self, work: Work, clock: Callable[[], float] = time.monotonic) -> None:
        self.work, self.clock, self.started = work, clock, clock()
        self.skipped, self.done = 0.0, 0.0  # in seconds of the guess: resumed trainings had it, and this run did it
        self.places: dict[tuple[str, int], int] = {}

    def start(self, run: RunInfo) -> None:
        """A training starts, perhaps where it was left."""
        self.places[run.title, run.seed] = run.start_step
        self.skipped += run.start_step * self.work.seconds[run.name]

    def at(self, run: RunInfo, step: int) -> None:
        """A training is at this step now."""
        key = run.title, run.seed
        self.done += (step - self.places[key]) * self.work.seconds[run.name]
        self.places[key] = step

    @property
    def left(self) -> float:
        """Seconds that the trainings still take."""
        whole = self.work.total * self.work.jobs
        rest = max(whole - self.skipped - self.done, 0.0)
        sure = self.done > _SURE * whole
        return rest * ((self.clock() - self.started) / self.done if sure else 1 / self.work.jobs)

    @property
    def part(self) -> float:
        """What is done, of 1."""
        return min((self.skipped + self.done) / max(self.work.total * self.work.jobs, 1e-9), 1.0)
