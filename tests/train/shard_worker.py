# SPDX-License-Identifier: Apache-2.0
"""One of two processes of tests/train/test_sharding.py: makes comparisons over gloo on the CPU, one after the other.

Argument: a folder with plan.json. Of each comparison the fields that ``CompareConfig.to_dict`` gives, the step at which
the second process alone hears Ctrl-C, or 0, and whether networks are without norms, whose statistics are of a process.
"""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import nn

from convary.train import CompareConfig, Progress, compare
from convary.train.layout import Layout
from convary.train.replica import Replica
from tests.train.line import StopAt


class BasicBlock(nn.Module):
    """A residual block, by its name, with nothing that looks at other images."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = (nn.Conv2d(width, width, 3, padding=1) for _ in range(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(x + self.conv2(F.relu(self.conv1(x))))


def without_norms(*args: object) -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 6, 3, stride=2), nn.ReLU(), BasicBlock(6), BasicBlock(6)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4))


def run(config: CompareConfig, progress: Progress, normless: bool) -> None:
    with mock.patch("convary.models.architecture.build", without_norms) if normless else mock.MagicMock():
        compare(config, progress)


def noted(shares: list[int]) -> Callable[..., Replica]:
    """``Layout.replica``, which tells how many numbers of the last network in shares lie here, and of how many."""
    usual = Layout.replica

    def replica(self: Layout, model: nn.Module, accelerator: Accelerator) -> Replica:
        made = usual(self, model, accelerator)
        if self.shard:
            here: list[Any] = list(model.parameters())
            shares[:] = [sum(p.to_local().numel() for p in here), sum(p.numel() for p in here)]
        return made

    return replica


def main(folder: Path) -> None:
    rank, shares = os.environ["RANK"], []
    Layout.replica = noted(shares)
    for step in json.loads((folder / "plan.json").read_text()):
        hears = step["stop"] and rank == "1"
        try:
            run(
                CompareConfig.from_dict(step["config"]), StopAt(step["stop"]) if hears else Progress(), step["normless"]
            )
            assert not step["stop"], "nobody stopped"
        except KeyboardInterrupt:
            assert step["stop"], "stopped though nobody asked"
    (folder / f"shares{rank}.json").write_text(json.dumps(shares))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
