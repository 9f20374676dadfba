# SPDX-License-Identifier: Apache-2.0
"""Train a system. Killed at any moment it goes on where it was, to the same result."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import send_to_device
from torch import nn
from torch.utils.data import DataLoader, Dataset

from convary.bench.machine import machine
from convary.data import derive_seed, epoch_order, generator
from convary.errors import CheckpointError, ConfigError
from convary.files import read_json, write_json
from convary.train import processes
from convary.train.checkpoint import SYSTEM, load_weights, read_checkpoint, write_checkpoint
from convary.train.files import claim_folder, now
from convary.train.interrupt import Interrupt
from convary.train.system import System, SystemConfig

CHECKPOINT, RESULTS = "checkpoint.pt", "results.json"
_WEIGHTS, _ITEM, _DROPOUT = 1, 2, 3  # sets the random numbers of different uses apart


class FitProgress:
    """Hears what happens; does nothing. Derive from it and override what is of interest."""

    def on_start(self, config: SystemConfig, params: int, step: int) -> None:
        """Training starts, or goes on at ``step``."""

    def on_step(self, step: int, losses: dict[str, float], lr: float) -> None:
        """``step`` steps are taken; ``losses`` are the parts of the loss, smoothed over some steps."""

    def on_scores(self, step: int, scores: dict[str, float]) -> None:
        """The network was evaluated after ``step`` steps."""


def fit(config: SystemConfig, progress: FitProgress | None = None) -> dict[str, Any]:
    """Train a system; write its checkpoint, pictures and ``OUT/results.json``.

    An interrupted run goes on where it was when it is called again; a finished one is only read. Under a launcher of
    several processes each takes its share of every batch; the first one evaluates.

    Args:
        config: What to do.
        progress: Hears what happens.

    Returns:
        What ``results.json`` holds: ``scores``, ``curve``, ``pictures``, ``run``, ``machine``.

    Raises:
        ConfigError: a value that cannot work, a training that diverged, or an output folder of something else.
        DataError: the data are missing or broken.
        CheckpointError: the checkpoint in the output folder is truncated or foreign.
        KeyboardInterrupt: Ctrl-C; the state is saved.
    """
    progress = progress or FitProgress()
    accelerator = processes.start(cpu=config.cpu, precision=config.precision)
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    if config.batch_size % accelerator.num_processes:
        raise ConfigError(
            f"batch_size={config.batch_size} is not the same share for {accelerator.num_processes} processes; give a "
            "multiple of their number"
        )
    system = config.load()
    config = system.config  # with what the data settled
    started = ""
    if accelerator.is_main_process:
        started = claim_folder(config.out, config.identity(), now())
    accelerator.wait_for_everyone()
    results = config.out / RESULTS
    if not results.exists():
        with torch.random.fork_rng():
            run = _Run(system, accelerator, progress)
            run.train()
            if accelerator.is_main_process:
                write_json(results, run.results(started))
        accelerator.wait_for_everyone()
    return read_json(results)


def restore(config: SystemConfig) -> nn.Module:
    """The network of a run's checkpoint, in eval mode.

    Args:
        config: As the run had it; ``out`` is its folder.

    Raises:
        CheckpointError: there is none, or it is truncated, foreign or of another run.
    """
    path, system = config.out / CHECKPOINT, config.load()
    content = _read(path, system.config)
    model = system.model()
    load_weights(model, content["model"], path)
    return model.eval()


def _read(path: Path, config: SystemConfig) -> dict[str, Any]:
    content = read_checkpoint(path, format=SYSTEM)
    if content["run"] != config.identity():
        raise CheckpointError(f"{path} is of another run; delete it to train that run again")
    return content


class _Run:
    """The network, the optimizer and everything else that a checkpoint holds."""

    def __init__(self, system: System, accelerator: Accelerator, progress: FitProgress) -> None:
        self.system, self.config, self.accelerator, self.progress = system, system.config, accelerator, progress
        self.path = self.config.out / CHECKPOINT
        torch.manual_seed(derive_seed(self.config.seed, _WEIGHTS))
        self.bare = system.model().train()
        self.model, self.optimizer = accelerator.prepare(self.bare, system.optimizer(self.bare))
        self.rates = [group["lr"] for group in self.optimizer.param_groups]
        self.step, self.seconds = 0, 0.0
        self.losses: dict[str, float] = {}
        self.curve: list[dict[str, Any]] = []
        if self.path.exists():
            content = _read(self.path, self.config)
            load_weights(self.bare, content["model"], self.path)
            try:
                self.optimizer.load_state_dict(content["optimizer"])
            except ValueError as error:  # other parameters are trained: pretrained weights came then or come now
                raise CheckpointError(
                    f"{self.path} trained other parameters than this run would ({error}); were the pretrained weights "
                    "there then as they are now? Make them so, or give another --out"
                ) from error
            self.step, self.seconds, self.curve = content["step"], content["seconds"], content["curve"]
            self.losses = content["losses"]

    def train(self) -> None:
        params = sum(p.numel() for p in self.bare.parameters())
        self.progress.on_start(self.config, params, self.step)
        with Interrupt() as interrupt:
            saved = started = time.monotonic()
            before = self.seconds
            for batch in _batches(self.system, self.step, self.accelerator):
                self._train_step(batch)
                self.seconds = before + time.monotonic() - started
                every, last = self.config.evaluate_every, self.step == self.config.steps
                if last or (every and self.step % every == 0):
                    self._evaluate()
                asked = interrupt.asked_anywhere(self.accelerator)
                if last or asked or time.monotonic() - saved >= self.config.save_every:
                    self._save()
                    saved = time.monotonic()
                if asked:
                    raise KeyboardInterrupt

    def _train_step(self, batch: Any) -> None:
        factor = self.system.rate(self.step)
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate * factor
        torch.manual_seed(derive_seed(self.config.seed, self.step, _DROPOUT, self.accelerator.process_index))
        with self.accelerator.autocast():
            parts = self.system.losses(self.model, send_to_device(batch, self.accelerator.device))
        total = torch.stack([part.float() for part in parts.values()]).sum()
        self.optimizer.zero_grad()
        self.accelerator.backward(total)
        self.optimizer.step()
        self.step += 1
        for name, part in parts.items():
            value = part.item()
            if not math.isfinite(value):
                raise ConfigError(
                    f"the training of {self.config.title} diverged ({name} {value} at step {self.step}); give a "
                    f"smaller --lr than {self.config.lr}, and another --out"
                )
            self.losses[name] = value if self.step == 1 else 0.95 * self.losses.get(name, value) + 0.05 * value
        self.progress.on_step(self.step, self.losses, self.optimizer.param_groups[0]["lr"])

    def _evaluate(self) -> None:
        scores: dict[str, float] = {}
        if self.accelerator.is_main_process:
            self.bare.eval()
            with torch.no_grad():
                scores = self.system.scores(self.bare, self.accelerator.device)
            self.bare.train()
            self.progress.on_scores(self.step, scores)
        self.accelerator.wait_for_everyone()
        self.curve.append({"step": self.step, "seconds": self.seconds, "losses": dict(self.losses), "scores": scores})

    def _save(self) -> None:
        if self.accelerator.is_main_process:
            content = {
                "run": self.config.identity(),
                "model": self.bare.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "step": self.step,
                "seconds": self.seconds,
                "losses": self.losses,
                "curve": self.curve,
            }
            write_checkpoint(self.path, content, format=SYSTEM)

    def results(self, started: str) -> dict[str, Any]:
        """What results.json holds; draws the pictures."""
        self.bare.eval()
        with torch.no_grad():
            pictures = self.system.draw(self.bare, self.accelerator.device, self.config.out)
        return {
            "schema": 1,
            "system": self.config.name,
            "scores": self.curve[-1]["scores"],
            "curve": self.curve,
            "params": sum(p.numel() for p in self.bare.parameters()),
            "seconds": self.seconds,
            "pictures": [path.name for path in pictures],
            "run": {"command": self.config.command(), "started": started, "finished": now(), **self.config.to_dict()},
            "machine": machine(),
        }


class _Items(Dataset):
    """The system's items by (index, numbers that seed their generator)."""

    def __init__(self, system: System) -> None:
        self.system = system

    def __getitem__(self, key: tuple[int, tuple[int, ...]]) -> Any:
        index, numbers = key
        return self.system.item(index, generator(*numbers))


class _Steps:
    """This process's share of every step's batch from ``first`` on: one stream of epochs, each in its own order."""

    def __init__(self, system: System, first: int, share: slice) -> None:
        self.system, self.first, self.share = system, first, share

    def __iter__(self) -> Iterator[list[tuple[int, tuple[int, ...]]]]:
        config, size = self.system.config, self.system.size
        epoch, order = -1, torch.empty(0)
        for step in range(self.first, config.steps):
            batch = []
            for position in range(step * config.batch_size, (step + 1) * config.batch_size):
                now, place = divmod(position, size)
                if now != epoch:
                    epoch, order = now, epoch_order(size, config.seed, now)
                batch.append((int(order[place]), (config.seed, position, _ITEM)))
            yield batch[self.share]

    def __len__(self) -> int:
        return self.system.config.steps - self.first


def _batches(system: System, first: int, accelerator: Accelerator) -> DataLoader:
    steps = _Steps(system, first, slice(accelerator.process_index, None, accelerator.num_processes))
    workers = system.config.workers
    return DataLoader(_Items(system), batch_sampler=steps, collate_fn=system.collate, num_workers=workers)
