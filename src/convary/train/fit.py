# SPDX-License-Identifier: Apache-2.0
"""Train a system. Killed at any moment it resumes, to the same result."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from convary.bench.machine import machine
from convary.errors import ConfigError
from convary.files import read_json, write_json
from convary.train import processes
from convary.train.checkpoint import read_own
from convary.train.files import claim_folder, now
from convary.train.log import heard
from convary.train.progress import Progress
from convary.train.system import SystemConfig
from convary.train.training import Training
from convary.weights import load_weights

CHECKPOINT, RESULTS = "checkpoint.pt", "results.json"


def fit(config: SystemConfig, progress: Progress | None = None) -> dict[str, Any]:
    """Train a system; write its checkpoint, pictures and ``OUT/results.json``.

    An interrupted run resumes when it is called again; a finished one is only read. Under a launcher of
    several processes each takes its share of every batch; the first one evaluates.

    Args:
        config: What to do.
        progress: Hears what happens.

    Returns:
        What ``results.json`` holds: ``scores``, ``measures``, ``scored_on``, ``curve``, ``pictures``, ``run``,
        ``machine``.

    Raises:
        ConfigError: a value that cannot work, a training that diverged, or an output folder of something else.
        DataError: the data are missing or broken.
        CheckpointError: the checkpoint in the output folder is truncated or foreign.
        KeyboardInterrupt: Ctrl-C; the state is saved.
    """
    accelerator = processes.start(cpu=config.cpu, precision=config.precision)
    progress = heard(config, progress or Progress(), is_first=accelerator.is_main_process)
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
            training = Training(system, accelerator, config.out / CHECKPOINT)
            training.run(progress)
            if accelerator.is_main_process:
                write_json(results, _results(training, config, started))
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
    content = read_own(path, system)
    model = system.model()
    load_weights(model, content["model"], path)
    return model.eval()


def _results(training: Training, config: SystemConfig, started: str) -> dict[str, Any]:
    """What results.json holds; draws the pictures."""
    model = training.kept.eval()
    with torch.no_grad():
        pictures = training.system.draw(model, training.accelerator.device, config.out)
    return {
        "schema": 1,
        "system": config.name,
        "title": config.title,
        "citation": config.citation,
        "scored_on": training.system.scored_on,
        "measures": training.system.measures,
        "scores": training.curve[-1]["scores"],
        "curve": training.curve,
        "params": sum(p.numel() for p in model.parameters()),
        "seconds": training.seconds,
        "pictures": [path.name for path in pictures],
        "run": {"command": config.command(), "started": started, "finished": now(), **config.to_dict()},
        "machine": machine(),
    }
