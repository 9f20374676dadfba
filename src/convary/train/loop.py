# SPDX-License-Identifier: Apache-2.0
"""One training: a method with a seed. Killed at any moment it goes on where it was, to the same result.

Nothing random is carried from one step to the next: order, augmentation and dropout are drawn from generators that are
seeded by (seed, epoch, step), and the learning rate is a function of the step. So a checkpoint needs no random state,
and every method sees the same images in the same order.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor, nn

from convary._decay import param_groups
from convary._recipe import recipe
from convary._schedule import anneal
from convary.data import DataSet, augment, derive_seed, epoch_order, generator
from convary.errors import CheckpointError, ConfigError
from convary.nn import DynamicLayer
from convary.train.arms import Arm, architecture, checkpoint_path
from convary.train.checkpoint import load_weights, read_checkpoint, write_checkpoint
from convary.train.config import CompareConfig
from convary.train.evaluation import score
from convary.train.interrupt import Interrupt
from convary.train.progress import Progress, RunInfo, StepInfo

_AUGMENT, _DROPOUT = 1, 2  # sets the random numbers of different uses apart


def learning_rate(step: int, total: int, highest: float, warmup: float) -> float:
    """Linear from 0 over the first ``warmup`` of all steps, times half a cosine from 1 to 0.

    >>> learning_rate(0, 100, 1.0, 0.1), round(learning_rate(50, 100, 1.0, 0.1), 3)
    (0.1, 0.5)
    """
    rising = min(1.0, (step + 1) / max(1.0, warmup * total))
    return highest * rising * 0.5 * (1 + math.cos(math.pi * step / total))


def make_optimizer(model: nn.Module, config: CompareConfig, lr: float) -> torch.optim.Optimizer:
    """The optimizer that the config names; banks that start as static kernels get a learning rate to match."""
    own = lr if config.init == "upcycle" else None
    groups = param_groups(model, config.weight_decay, lr=own, optimizer=config.optimizer)
    if config.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=lr, fused=True)
    return torch.optim.SGD(groups, lr=lr, momentum=0.9, nesterov=True)


class Diverged(ConfigError):
    """The loss of a training is no longer finite."""


class Run(NamedTuple):
    """One training.

    Attributes:
        arm: The network.
        seed: Of weights, order and augmentation.
        lr: The highest learning rate.
        trial: Whether it serves the choice of the learning rate, and so leaves out the held-out images.
    """

    arm: Arm
    seed: int
    lr: float
    trial: bool = False

    @property
    def title(self) -> str:
        """For people."""
        return f"{self.arm.title}, lr {self.lr:g}" if self.trial else self.arm.title

    def path(self, out: Path) -> Path:
        """Of its checkpoint."""
        path = checkpoint_path(out, self.arm, self.seed)
        return out / "trials" / f"lr-{self.lr:g}" / path.relative_to(out) if self.trial else path


class Training:
    """The network, the optimizer and everything else that a checkpoint holds.

    Args:
        config: What to do.
        run: What to train: the network, the learning rate, and the seed of weights, order and augmentation.
        dataset: What to train on.
        accelerator: Accelerate's device and processes.

    Raises:
        CheckpointError: the checkpoint is truncated, foreign, or of another run.
    """

    def __init__(
        self,
        config: CompareConfig,
        run: Run,
        dataset: DataSet,
        accelerator: Accelerator,
    ):
        self.config, self.lr, self.seed, self.accelerator = config, run.lr, run.seed, accelerator
        self.dataset = dataset.held_out(config.held_out) if run.trial else dataset
        self.path, dataset = run.path(config.out), self.dataset
        method = run.arm.method
        self.name, self.title, self.trial = run.arm.name, run.title, run.trial
        self.is_dynamic = run.arm.is_dynamic
        self.architecture = architecture(run.arm, config, dataset, run.seed)
        self.batch = min(config.batch_size, len(dataset.train.labels))
        self.steps_per_epoch = len(dataset.train.labels) // self.batch
        self.total_steps = config.epochs * self.steps_per_epoch

        self.bare = self.architecture.build()  # the network without Accelerate's wrapper
        optimizer = make_optimizer(self.bare.train(), config, run.lr)
        self.shares = [group["lr"] / run.lr for group in optimizer.param_groups]  # of the learning rate
        self.model, self.optimizer = accelerator.prepare(self.bare, optimizer)
        epochs = config.annealing_epochs(method)
        self.annealing = None
        if method is not None and method.annealing is not None and epochs is not None:
            steps = round(epochs * self.steps_per_epoch)
            self.annealing = anneal(self.bare, start=method.annealing.start, stop=method.annealing.stop, steps=steps)

        self._ordered, self._order = -1, torch.empty(0, dtype=torch.long)
        self.step = 0
        self.sums = torch.zeros(3, dtype=torch.float64)  # of this epoch: loss, right answers, images
        self.curve: list[dict[str, Any]] = []
        self.seconds = 0.0
        if self.path.exists():
            self._load()

    @property
    def done(self) -> bool:
        """Whether all epochs are trained and evaluated."""
        return len(self.curve) == self.config.epochs

    @property
    def temperature(self) -> float | None:
        """Of the routers now."""
        return None if self.annealing is None else self.annealing.temperature

    def info(self, index: int, count: int) -> RunInfo:
        """What there is to say about this run before it starts."""
        return RunInfo(
            method=self.name,
            title=self.title,
            trial=self.trial,
            seed=self.seed,
            index=index,
            count=count,
            epochs=self.config.epochs,
            total_steps=self.total_steps,
            start_step=self.step,
            params=sum(p.numel() for p in self.bare.parameters()),
            layers=sum(isinstance(module, DynamicLayer) for module in self.bare.modules()),
        )

    def run(self, info: RunInfo, progress: Progress, stop: Callable[[], bool] | None = None) -> None:
        """Train until done; the state is saved at the end of each epoch, every ``save_every`` seconds, and on Ctrl-C.

        Args:
            info: What ``progress`` is told of the run.
            progress: Hears what happens.
            stop: Says after each step whether to stop there, as Ctrl-C does.

        Raises:
            KeyboardInterrupt: Ctrl-C was pressed; the state is saved.
            Diverged: the loss is no longer finite.
        """
        with Interrupt() as interrupt:
            saved = started = time.monotonic()
            before = self.seconds
            while not self.done:
                self._train_step(info, progress)
                epoch_ends = self.step % self.steps_per_epoch == 0
                self.seconds = before + time.monotonic() - started
                if epoch_ends:
                    progress.on_epoch(info, self._end_epoch())
                asked = interrupt.asked_anywhere(self.accelerator) or (stop is not None and stop())
                if epoch_ends or asked or time.monotonic() - saved >= self.config.save_every:
                    self._save()
                    saved = time.monotonic()
                if asked:
                    raise KeyboardInterrupt

    def _train_step(self, info: RunInfo, progress: Progress) -> None:
        epoch, position = divmod(self.step, self.steps_per_epoch)
        if position == 0:
            self.sums.zero_()
        lr = learning_rate(self.step, self.total_steps, self.lr, self.config.warmup)
        for group, share in zip(self.optimizer.param_groups, self.shares, strict=True):
            group["lr"] = lr * share
        x, y = self._batch(epoch, position)
        torch.manual_seed(derive_seed(self.seed, epoch, position, _DROPOUT, self.accelerator.process_index))
        scores = self.model(x)
        loss = F.cross_entropy(scores, y, label_smoothing=self.config.label_smoothing)
        self.optimizer.zero_grad()
        self.accelerator.backward(loss)
        if self.config.clip is not None:
            self.accelerator.clip_grad_norm_(self.model.parameters(), self.config.clip)
        self.optimizer.step()
        if self.annealing is not None:
            self.annealing.step()
        self.step += 1
        right = (scores.argmax(1) == y).sum()
        sums = torch.stack([loss.detach().double() * len(y), right.double(), right.new_tensor(len(y)).double()])
        self.sums += torch.as_tensor(self.accelerator.reduce(sums, "sum")).cpu()
        loss_sum, right_sum, images = self.sums.tolist()
        done = StepInfo(
            step=self.step,
            epoch=self.step / self.steps_per_epoch,
            loss=loss_sum / images,
            top1=100 * right_sum / images,
            lr=lr,
            temperature=self.temperature,
        )
        progress.on_step(info, done)

    def _batch(self, epoch: int, position: int) -> tuple[Tensor, Tensor]:
        """This process's share of a step's images, augmented and normalised, and their labels."""
        train = self.dataset.train
        if epoch != self._ordered:
            self._ordered, self._order = epoch, epoch_order(len(train.labels), self.seed, epoch)
        index = self._order[position * self.batch : (position + 1) * self.batch]
        index = index[self.accelerator.process_index :: self.accelerator.num_processes]
        images = train.batch(index)
        if self.config.augment:
            rng = generator(self.seed, epoch, position, _AUGMENT, self.accelerator.process_index)
            images = augment(images, rng, padding=self.dataset.padding, flip=self.dataset.flip)
        device = self.accelerator.device
        return self.dataset.normalise(images.to(device)), train.labels[index].to(device)

    def _end_epoch(self) -> dict[str, Any]:
        loss_sum, right_sum, images = self.sums.tolist()
        if not math.isfinite(loss_sum):
            raise Diverged(
                f"the training of {self.title} with seed {self.seed} diverged (loss {loss_sum / images} after "
                f"{self.step} steps); give a smaller --lr than {self.lr:g}, and another --out"
            )
        result = score(
            self.bare,
            self.dataset,
            self.config.batch_size,
            self.accelerator.device,
            self.accelerator.process_index,
            self.accelerator.num_processes,
        )
        self.curve.append(
            {
                "epoch": self.step / self.steps_per_epoch,
                "train_loss": loss_sum / images,
                "train_top1": 100 * right_sum / images,
                "test_loss": result.loss,
                "test_top1": result.top1,
                "lr": learning_rate(self.step - 1, self.total_steps, self.lr, self.config.warmup),
                "temperature": self.temperature,
                "seconds": self.seconds,
            }
        )
        return self.curve[-1]

    def _save(self) -> None:
        """Write the checkpoint; the main process alone, so that no other has to want it at the same moment."""
        if self.accelerator.is_main_process:
            content = {
                "method": self.name,
                "architecture": dataclasses.asdict(self.architecture),
                "run": self.config.identity(),
                "lr": self.lr,
                "classes": list(self.dataset.classes),
                "model": self.bare.state_dict(),
                "recipe": recipe(self.bare) if self.is_dynamic else None,
                "optimizer": self.optimizer.state_dict(),
                "annealing": None if self.annealing is None else self.annealing.state_dict(),
                "step": self.step,
                "sums": self.sums,
                "curve": self.curve,
                "seconds": self.seconds,
            }
            write_checkpoint(self.path, content)

    def _load(self) -> None:
        content = read_checkpoint(self.path)
        ours = {"architecture": dataclasses.asdict(self.architecture), "run": self.config.identity(), "lr": self.lr}
        if any(content[key] != value for key, value in ours.items()):
            raise CheckpointError(f"{self.path} is of another run; delete it to train that run again")
        load_weights(self.bare, content["model"], self.path)
        self.optimizer.load_state_dict(content["optimizer"])
        if self.annealing is not None:
            self.annealing.load_state_dict(content["annealing"])
        self.step, self.sums, self.curve = content["step"], content["sums"], content["curve"]
        self.seconds = content["seconds"]
