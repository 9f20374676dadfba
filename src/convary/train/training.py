# SPDX-License-Identifier: Apache-2.0
"""One training of one system. Killed at any moment it resumes, to the same result.

Nothing random is carried from one step to the next: order, augmentation and dropout are drawn from generators that are
seeded by the run's seed and the step. So a checkpoint needs no random state.
"""

from __future__ import annotations

import contextlib
import math
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import send_to_device
from torch import nn

from convary.data import derive_seed
from convary.errors import CheckpointError, ConfigError, DataError, TemperatureWarning
from convary.nn import DynamicLayer
from convary.nn.modes import evaluating
from convary.train.average import Average
from convary.train.checkpoint import read_own, write_checkpoint
from convary.train.interrupt import Feed, Interrupt, anywhere, first_error
from convary.train.layout import compiled, not_compiled
from convary.train.progress import Progress, RunInfo, StepInfo
from convary.train.system import System

_WEIGHTS, _DROPOUT = 1, 3  # set the random numbers of different uses apart; 2 is the items'


class Diverged(ConfigError):
    """The loss of a training is no longer finite."""


class Training:
    """The network, the optimizer and everything else that a checkpoint holds.

    Args:
        system: What to train.
        accelerator: Accelerate's device and processes.
        path: Of the checkpoint, from which the training resumes where there is one.

    Raises:
        CheckpointError: the checkpoint is truncated, foreign, or of another run.
    """

    def __init__(self, system: System, accelerator: Accelerator, path: Path) -> None:
        self.system, self.accelerator, self.path = system, accelerator, path
        torch.manual_seed(derive_seed(system.seed, _WEIGHTS))
        self.bare = system.layout.of(system.model().train(), accelerator)  # the network without Accelerate's wrapper
        self.replica = system.layout.replica(self.bare, accelerator)
        optimizer = system.optimizer(self.bare)
        self.shares = [group["lr"] / system.lr for group in optimizer.param_groups]  # of the learning rate
        self.model, self.optimizer = self.replica.prepare(self.bare, optimizer)
        if system.layout.compile:
            self.model = compiled(self.model)
        self.parameters = list(self.model.parameters())
        system.begin(self.bare)
        self.average = None
        if system.ema is not None:
            self.average = Average(self.bare, system.ema, self.replica.another(self.bare))
        self.step = self.saved = 0  # the last step that was taken, and that a checkpoint has
        self.seconds, self.cpu_seconds = 0.0, 0.0
        self.sums, self.steps_summed = dict[str, float](), 0  # of the steps since the last point of the curve
        self.curve: list[dict[str, Any]] = []
        if path.exists():
            self._load()

    @property
    def kept(self) -> nn.Module:
        """The network that is scored and kept: the average of the weights where there is one."""
        return self.bare if self.average is None else self.average.model

    def run(
        self, progress: Progress, place: tuple[int, int] = (0, 1), stop: Callable[[], bool] | None = None
    ) -> list[dict[str, Any]]:
        """Train to the end and return the curve.

        The state is saved after each evaluation, every ``save_every`` seconds, on Ctrl-C, and where the next batch
        can't be read: by all processes after the same step.

        Args:
            progress: Hears what happens.
            place: The training's position among all, and how many there are.
            stop: Says after each step whether to stop there, as Ctrl-C does.

        Raises:
            KeyboardInterrupt: Ctrl-C was pressed; the state is saved.
            ConfigError: ``torch.compile`` fails.
            DataError: an item can't be read, or a process that reads them was killed; says which step is saved.
            Diverged: the loss is no longer finite.
        """
        info = self.info(*place)
        progress.on_start(info)
        if self.curve:
            progress.on_resume(info, self.curve)
        rank, world = self.accelerator.process_index, self.accelerator.num_processes
        try:
            with Interrupt() as interrupt, Feed(self.system.batches(self.step, rank, world)) as feed:
                self._run(info, progress, feed, lambda: interrupt.asked or bool(stop and stop()))
        except DataError as error:
            told = f"step {self.saved} of {self.system.steps} is saved" if self.saved else "nothing was to save yet"
            raise type(error)(f"{error}; {told}: the same command resumes") from error
        except RuntimeError as error:
            if told := not_compiled(error):
                raise told from error
            raise
        progress.on_end(info, self.curve[-1])
        return self.curve

    def _run(self, info: RunInfo, progress: Progress, feed: Feed, asked: Callable[[], bool]) -> None:
        start, scored = self.step, False
        saved = started = time.monotonic()
        before, cpu = self.seconds, self.cpu_seconds - time.process_time()
        while True:
            batch = feed.read()
            late = time.monotonic() - saved >= self.system.save_every
            stops, fails, late = anywhere(self.accelerator, asked(), feed.error is not None, late)
            if self.step > start and (scored or stops or fails or late):
                self._save()
                saved = time.monotonic()
            if fails:
                raise first_error(self.accelerator, feed.error)
            if stops:
                raise KeyboardInterrupt
            if batch is None:
                return
            progress.on_step(info, self._take_step(batch))
            self.seconds = before + time.monotonic() - started
            self.cpu_seconds = cpu + time.process_time()  # says more where the machine is shared
            scored = self._note(info, progress)

    def info(self, index: int, count: int) -> RunInfo:
        """What there is to say before it starts."""
        return RunInfo(
            name=self.system.name,
            title=self.system.title,
            seed=self.system.seed,
            trial=self.system.trial,
            index=index,
            count=count,
            epochs=self.system.epochs,
            total_steps=self.system.steps,
            start_step=self.step,
            params=sum(p.numel() for p in self.bare.parameters()),
            layers=sum(isinstance(module, DynamicLayer) for module in self.bare.modules()),
        )

    def _take_step(self, batch: Any) -> StepInfo:
        lr = self.system.learning_rate(self.step)
        for group, share in zip(self.optimizer.param_groups, self.shares, strict=True):
            group["lr"] = lr * share
        self._seed()
        for parameter in self.parameters:
            parameter.grad = None
        parts = self._backward(send_to_device(batch, self.accelerator.device))
        if self.system.clip is not None:
            self.accelerator.clip_grad_norm_(self.parameters, self.system.clip)
        self.optimizer.step()
        self.system.after_step()
        if self.average is not None:
            self.average.update()
        self.step += 1
        self._sum_up(parts)
        means = {name: value / self.steps_summed for name, value in self.sums.items()}
        return StepInfo(step=self.step, losses=means, lr=lr, temperature=self.system.temperature)

    def _seed(self) -> None:
        """Seed what dropout draws from in a step."""
        seed = derive_seed(self.system.seed, self.step, _DROPOUT, self.accelerator.process_index)
        if self.accelerator.device.type == "cpu":  # manual_seed looks for every kind of accelerator
            torch.default_generator.manual_seed(seed)
        else:
            torch.manual_seed(seed)

    def _backward(self, batch: Any) -> dict[str, torch.Tensor]:
        """Add up the gradients of the batch's parts; what they gave, their mean."""
        found: dict[str, torch.Tensor] = {}
        pieces = self.system.parts(batch)
        for place, (share, piece) in enumerate(pieces):
            last = place == len(pieces) - 1
            with contextlib.nullcontext() if last else self.accelerator.no_sync(self.model):
                with self.accelerator.autocast():
                    parts = self.system.losses(self.model, piece)
                total = torch.stack([part.float() for part in parts.values() if part.requires_grad]).sum()
                self.accelerator.backward(total if share == 1 else share * total)
            for name, part in parts.items():
                value = part.detach().float() * share
                found[name] = found[name] + value if name in found else value
        return found

    def _sum_up(self, parts: dict[str, torch.Tensor]) -> None:
        """Add what a step gave, the mean over the processes."""
        values = torch.stack(list(parts.values()))
        values = torch.as_tensor(self.accelerator.reduce(values, "mean")).tolist()
        self.steps_summed += 1
        for name, value in zip(parts, values, strict=True):
            if not math.isfinite(value):
                raise Diverged(
                    f"the training of {self.system.title} with seed {self.system.seed} diverged ({name} {value} at "
                    f"step {self.step}); give a smaller --lr than {self.system.lr:g}, and another --out"
                )
            self.sums[name] = self.sums.get(name, 0.0) + value

    def _note(self, info: RunInfo, progress: Progress) -> bool:
        """Add a point to the curve where one is due; whether it has scores."""
        every, last = self.system.evaluate_every, self.step == self.system.steps
        due = last or (every > 0 and self.step % every == 0)
        if not due and (every > 0 or self.step % max(1, self.system.steps // POINTS)):
            return False
        kept = self.replica.whole(self.kept) if due else None
        point = {
            "step": self.step,
            "losses": {name: value / self.steps_summed for name, value in self.sums.items()},
            "scores": self._scores(kept) if kept is not None else {},
            "lr": self.system.learning_rate(self.step - 1),
            "temperature": self.system.temperature,
            "seconds": self.seconds,
            "cpu_seconds": self.cpu_seconds,
        }
        if kept is not None and self.accelerator.is_main_process:
            point |= {"observed": seen} if (seen := self.system.observe(kept, self.accelerator.device)) else {}
            if not last:
                self._draw(kept)
        self.curve.append(point)
        self.sums, self.steps_summed = {}, 0
        progress.on_point(info, point)
        return due

    def _draw(self, kept: nn.Module) -> None:
        """The system's pictures so far."""
        with torch.no_grad(), evaluating(kept):
            self.system.draw(kept, self.accelerator.device, self.path.parent)

    def _scores(self, kept: nn.Module) -> dict[str, float]:
        scores: dict[str, float] = {}
        if self.accelerator.is_main_process or self.system.scored_together:
            with warnings.catch_warnings(), torch.no_grad():
                warnings.simplefilter("ignore", TemperatureWarning)  # the curve looks at networks still annealing
                with evaluating(kept):
                    scores = self.system.scores(kept, self.accelerator.device)
        self.accelerator.wait_for_everyone()
        return scores

    def _save(self) -> None:
        """Write the checkpoint: the main process alone, and no other waits for it, but where weights lie in shares."""
        if self.replica.together or self.accelerator.is_main_process:
            content = self._content()
            if self.accelerator.is_main_process:
                write_checkpoint(self.path, content, format=self.system.format)
        self.saved = self.step

    def _content(self) -> dict[str, Any]:
        """What the checkpoint holds."""
        content = {
            **self.system.identity(),
            **self.system.describe(self.bare),
            "model": self.replica.state(self.kept),
            "optimizer": self.replica.optimizer_state(self.optimizer),
            "system": self.system.state_dict(),
            "step": self.step,
            "sums": self.sums,
            "steps_summed": self.steps_summed,
            "curve": self.curve,
            "seconds": self.seconds,
            "cpu_seconds": self.cpu_seconds,
        }
        if self.average is not None:
            content["trained"] = self.replica.state(self.bare)
        if self.accelerator.scaler is not None:
            content["scaler"] = self.accelerator.scaler.state_dict()
        return content

    def _load(self) -> None:
        content = read_own(self.path, self.system)
        self.replica.load(self.kept, content["model"], self.path)
        if self.average is not None:
            self.replica.load(self.bare, content["trained"], self.path)
        if self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(content["scaler"])
        try:
            self.replica.load_optimizer(self.optimizer, content["optimizer"])
        except ValueError as error:  # other parameters are trained: pretrained weights came then or come now
            raise CheckpointError(
                f"{self.path} trained other parameters than this run would ({error}); were the pretrained weights "
                "there then as they are now? Make them so, or give another --out"
            ) from error
        self.system.load_state_dict(content["system"])
        self.step = self.saved = content["step"]
        self.seconds, self.cpu_seconds = content["seconds"], content["cpu_seconds"]
        self.sums, self.steps_summed, self.curve = content["sums"], content["steps_summed"], content["curve"]


POINTS = 50  # of a curve, where nothing is evaluated on the way
