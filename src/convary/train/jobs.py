# SPDX-License-Identifier: Apache-2.0
"""The trainings of a comparison: one after the other, or several at a time in processes of their own."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import FIRST_EXCEPTION, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from accelerate import Accelerator

from convary.data import DataSet
from convary.errors import ConfigError, ConvaryError
from convary.train import processes
from convary.train.classification import Classification, Run
from convary.train.config import CompareConfig
from convary.train.progress import Progress, RunInfo, StepInfo
from convary.train.results import Curve
from convary.train.training import Diverged, Training

TOLD = 0.2  # seconds between two steps that a process tells of
SAVING = 60.0  # seconds that a process has to save when the first one was killed


def train(
    config: CompareConfig,
    run: Run,
    place: tuple[int, int],
    dataset: DataSet,
    accelerator: Accelerator,
    progress: Progress,
    stop: Callable[[], bool] | None = None,
) -> Curve:
    """The learning curve of one training, which resumes where there is a checkpoint; of a trial that diverges, none.

    Args:
        config: What to do.
        run: Which training.
        place: Its position among all trainings, and how many there are.
        dataset: What to train on.
        accelerator: Accelerate's device and processes.
        progress: Hears what happens.
        stop: Says after each step whether to stop there.

    Raises:
        KeyboardInterrupt: it was stopped; the state is saved.
        Diverged: the loss is no longer finite, and the run is no trial.
    """
    system = Classification(config, run, dataset, accelerator)
    training = Training(system, accelerator, run.path(config.out))
    try:
        curve = training.run(progress, place, stop)
    except Diverged:
        if not run.trial:
            raise
        curve = []
        progress.on_end(training.info(*place), None)
    accelerator.free_memory()
    return [system.entry(point) for point in curve]


def check_jobs(config: CompareConfig, accelerator: Accelerator) -> None:
    """Raise ConfigError where several processes would have to share a device or a launcher."""
    if config.jobs > 1 and (accelerator.num_processes > 1 or accelerator.device.type != "cpu"):
        raise ConfigError(
            f"jobs={config.jobs} is for trainings on a CPU, in one process at the start; got {accelerator.device} and "
            f"{accelerator.num_processes} processes; pass --cpu, or --jobs 1"
        )


def train_at_once(config: CompareConfig, runs: list[Run], accelerator: Accelerator, progress: Progress) -> list[Curve]:
    """All trainings, ``config.jobs`` at a time; each gives what it gives alone on one thread.

    Raises:
        ConvaryError: a process was killed.
        KeyboardInterrupt: Ctrl-C; every training that was under way is saved.
    """
    context = multiprocessing.get_context("spawn")
    events, stop = context.SimpleQueue(), context.Event()
    listener = threading.Thread(target=_listen, args=(events, progress), daemon=True)
    listener.start()
    pool = ProcessPoolExecutor(config.jobs, context, initializer=_Worker.begin, initargs=(config, events, stop))
    lost = False
    try:
        futures = [pool.submit(_Worker.work, run, (i, len(runs))) for i, run in enumerate(runs)]
        for future in wait(futures, return_when=FIRST_EXCEPTION).done:
            future.result()  # an error is raised when it happens, not when its turn comes
        return [future.result() for future in futures]
    except BrokenProcessPool as error:
        lost = True
        raise ConvaryError(
            f"a training's process was killed, perhaps for want of memory; what was saved is in {config.out}: run the "
            f"command again, with fewer --jobs than {config.jobs}"
        ) from error
    finally:
        stop.set()  # after an error or Ctrl-C the others stop at their next step; after the last one nobody listens
        pool.shutdown(cancel_futures=True)
        if not lost:  # a killed process may have held the queue's lock
            events.put(None)
            listener.join()


def _listen(events: Any, progress: Progress) -> None:
    """Tell ``progress`` what the processes tell, until there is nothing more to come."""
    while (event := events.get()) is not None:
        name, args = event
        getattr(progress, name)(*args)


class _Worker:
    """What a process keeps between two trainings."""

    config: ClassVar[CompareConfig]
    dataset: ClassVar[DataSet]
    accelerator: ClassVar[Accelerator]
    events: ClassVar[Any]
    stop: ClassVar[Any]
    busy: ClassVar[threading.Lock] = threading.Lock()
    orphaned: ClassVar[threading.Event] = threading.Event()

    @classmethod
    def begin(cls, config: CompareConfig, events: Any, stop: Any) -> None:
        """Load what every training needs. Between two of them Ctrl-C is the first process' affair."""
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        threading.Thread(target=cls._outlive_nobody, daemon=True).start()
        torch.set_num_threads(config.threads or 1)
        cls.config, cls.events, cls.stop = config, events, stop
        cls.dataset = config.load_images()
        cls.accelerator = processes.start(cpu=True, precision=config.precision)

    @classmethod
    def work(cls, run: Run, place: tuple[int, int]) -> Curve:
        """One training."""
        teller = _Teller(cls.events)
        with cls.busy:
            return train(cls.config, run, place, cls.dataset, cls.accelerator, teller, cls._stops)

    @classmethod
    def _stops(cls) -> bool:
        return cls.stop.is_set() or cls.orphaned.is_set()

    @classmethod
    def _outlive_nobody(cls) -> None:
        """Save and end when the first process is killed: nobody would hear of what this one does."""
        parent = multiprocessing.parent_process()
        if parent is not None:
            parent.join()
            cls.orphaned.set()
            cls.busy.acquire(timeout=SAVING)
            os._exit(1)


@dataclass
class _Teller(Progress):
    """Sends what happens to the first process; of the steps, a few in a second."""

    events: Any
    told: float = 0.0

    def on_start(self, run: RunInfo) -> None:
        self.events.put(("on_start", (run,)))

    def on_resume(self, run: RunInfo, curve: list[dict[str, Any]]) -> None:
        self.events.put(("on_resume", (run, curve)))

    def on_step(self, run: RunInfo, step: StepInfo) -> None:
        now = time.monotonic()
        if now - self.told >= TOLD:
            self.told = now
            self.events.put(("on_step", (run, step)))

    def on_point(self, run: RunInfo, point: dict[str, Any]) -> None:
        self.events.put(("on_point", (run, point)))

    def on_end(self, run: RunInfo, point: dict[str, Any] | None) -> None:
        self.events.put(("on_end", (run, point)))
