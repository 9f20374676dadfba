# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: D102, D103
"""What a training step costs beyond forward and backward: reading, normalising, the optimizer, sums and logs.

    python benchmarks/step.py --root DATA --out benchmarks/results/step.json

The trainer of ``convary compare`` itself takes the steps, on one thread; forward (with the loss), backward and the
optimizer are timed inside it, by the processor time of the training process. What is left of a step is the trainer's.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from convary.bench.machine import load as load_of_machine
from convary.bench.machine import machine
from convary.data import load
from convary.files import write_json
from convary.train import processes
from convary.train.classification import Classification, Run
from convary.train.config import CompareConfig
from convary.train.progress import Progress
from convary.train.training import Training

if __package__:
    from benchmarks.reading import write_folders
else:
    from reading import write_folders

WARM_UP = 2


class Clock(Progress):
    """Processor time of whole steps, and of the calls inside them."""

    def __init__(self) -> None:
        self.steps: list[dict[str, float]] = []
        self.inside: dict[str, float] = {}
        self.last = 0.0

    def timing(self, name: str, call: Callable) -> Callable:
        def timed(*args: Any, **options: Any) -> Any:
            start = time.process_time()
            try:
                return call(*args, **options)
            finally:
                self.inside[name] = self.inside.get(name, 0.0) + time.process_time() - start

        return timed

    def on_step(self, run: Any, step: Any) -> None:
        now = time.process_time()
        self.steps.append({"step": now - self.last, **self.inside})
        self.inside, self.last = {}, now


def measured(config: CompareConfig, arm: str, steps: int) -> dict[str, Any]:
    accelerator = processes.start(cpu=True)
    torch.set_num_threads(1)
    system = Classification(config, Run(config.arms()[arm], 0, 0.01), config.load_images(), accelerator)
    training, clock = Training(system, accelerator, config.out / arm / "checkpoint.pt"), Clock()
    system.losses = clock.timing("forward", system.losses)
    accelerator.backward = clock.timing("backward", accelerator.backward)
    training.optimizer.step = clock.timing("optimizer", training.optimizer.step)
    with contextlib.suppress(KeyboardInterrupt):  # which is how it stops
        training.run(clock, stop=lambda: training.step >= WARM_UP + steps)
    del accelerator.backward  # the class's own comes back
    found = clock.steps[WARM_UP:]
    shares = sorted(1 - (s["forward"] + s["backward"] + s["optimizer"]) / s["step"] for s in found)
    both = statistics.median(s["optimizer"] / s["step"] for s in found)
    return {
        "model": config.model, "method": arm, "data": config.data.partition(":")[0], "batch": system.batch_size,
        "size": system.dataset.shape[1], "steps": len(found),
        "step_ms": round(1e3 * statistics.median(s["step"] for s in found), 1),
        "optimizer": round(both, 4),
        "rest": round(statistics.median(shares), 4),
        "rest_lowest": round(shares[0], 4),
        "rest_highest": round(shares[-1], 4),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    busy, rows = load_of_machine(), []
    with tempfile.TemporaryDirectory() as folder:
        large = write_folders(load("cifar10", given.root), Path(folder) / "large", 256, 500)
        small: dict[str, Any] = {"data": "cifar10", "root": given.root, "augment": True, "batch_size": 128}
        files: dict[str, Any] = {"data": f"folder:{large}", "image_size": 224, "crops": True, "workers": 1}
        for model, options, steps in (
            ("mobilenet_v2_tiny", small, 20),
            ("resnet20", small, 20),
            ("torchvision:mobilenet_v2", {**files, "batch_size": 16}, 8),
            ("torchvision:resnet18", {**files, "batch_size": 16}, 8),
        ):
            for arm in ("static", "odconv"):
                out = Path(folder) / f"{model.rpartition(':')[2]}-{arm}"
                config = CompareConfig(model=model, methods=(arm,), out=out, cpu=True, threads=1, **options)
                rows.append(measured(config, arm, steps))
                print(rows[-1], flush=True)
    write_json(given.out, {"machine": machine(), "load": busy, "rows": rows})


if __name__ == "__main__":
    main()
