# SPDX-License-Identifier: Apache-2.0
"""Measure what the networks of the finished blocks cost: apart from training, so that the machine can be quiet.

    python -m studies.cost [--seconds 10]

Ratios are the medians of interleaved pairs with the static network, on one thread; ``static`` against itself is noise.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from typing import Any

import torch

from convary.bench.machine import load as machine_load
from convary.bench.machine import machine
from convary.files import read_json, write_json
from convary.models import fold_excitation
from convary.train import measure
from convary.train.arms import Arm
from convary.train.files import now
from convary.train.networks import architecture
from studies.blocks import BLOCKS, SHAPE
from studies.results import FOLDER

BATCHES = (1, 16, 128)


class Images:
    """What ``architecture`` asks of a data set: CIFAR-10's size, without its images."""

    shape, classes = SHAPE, tuple("0123456789")


def main(argv: list[str]) -> int:
    """Measure every arm once, in the order of the blocks, and write cost.json."""
    parser = argparse.ArgumentParser(prog="python -m studies.cost", description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=10.0, help="for each timing")
    seconds = parser.parse_args(argv).seconds
    torch.set_num_threads(1)
    arms: dict[str, Any] = {}
    for block in BLOCKS:
        if not (path := FOLDER / f"{block.name}.json").exists() or tuple(read_json(path)["data"]["shape"]) != SHAPE:
            continue
        config = dataclasses.replace(block.config(FOLDER, None, 1), init="paper", start=None)
        static = architecture(Arm(name="static"), config, Images, 0).build()  # type: ignore[arg-type]
        for name, arm in config.arms().items():
            if name not in arms:
                model = architecture(arm, config, Images, 0).build()  # type: ignore[arg-type]
                arms[name] = _measured(model, static, config, seconds)
                print(name, {key: round(value["ratio"], 2) for key, value in arms[name].items()}, flush=True)
    content = {"machine": machine(), "load": machine_load(), "finished": now(), "seconds": seconds, "arms": arms}
    write_json(FOLDER / "cost.json", content)
    return 0


def _measured(model: torch.nn.Module, static: torch.nn.Module, config: Any, seconds: float) -> dict[str, Any]:
    x, y = torch.randn(config.batch_size, 3, 32, 32), torch.randint(10, (config.batch_size,))
    found = {"step": dataclasses.asdict(measure.training_step(model, static, x, y, config, seconds))}
    shipped = fold_excitation(model)
    for batch in BATCHES:
        timing = measure.latency(shipped, static, x[:batch], seconds)
        found[f"batch {batch}"] = dataclasses.asdict(timing)
    return found


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
