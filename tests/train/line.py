# SPDX-License-Identifier: Apache-2.0
"""A system that costs nothing: a line through noisy points; and one that is interrupted."""

import dataclasses
import os
import signal
from typing import ClassVar

import torch
from torch import nn

from convary.train import Progress
from convary.train.fit import restore
from convary.train.system import System, SystemConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class LineConfig(SystemConfig):
    """Fits a line with dropout to noisy points."""

    name: ClassVar[str] = "line"
    title: ClassVar[str] = "Line"
    citation: ClassVar[str] = "Gauss, 1809"
    steps: int = 12
    batch_size: int = 4
    lr: float = 0.1

    def load(self):
        return Line(self)


class Line(System):
    size = 10

    def __init__(self, config):
        self.config = config

    def item(self, index, rng):
        x = torch.tensor([index / 10.0])
        return {"x": x, "y": 2 * x + 1 + 0.01 * torch.randn(1, generator=rng)}

    def model(self):
        return nn.Sequential(nn.Dropout(0.1), nn.Linear(1, 1))

    def losses(self, model, batch):
        error = model(batch["x"]) - batch["y"]
        return {"square": error.square().mean(), "absolute": error.abs().mean()}

    def scores(self, model, device):
        return {"slope": model[1].weight.item()}

    def draw(self, model, device, folder):
        path = folder / "line.txt"
        path.write_text("/")
        return [path]


class StopAt(Progress):
    """Presses Ctrl-C at a step."""

    def __init__(self, step):
        self.stop = step

    def on_step(self, run, step):
        if step.step == self.stop:
            os.kill(os.getpid(), signal.SIGINT)


def weights(config):
    return {name: value.clone() for name, value in restore(config).state_dict().items()}
