# SPDX-License-Identifier: Apache-2.0
"""A process' part in one training: here it has the whole network, and of several processes the first one saves."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any, ClassVar

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from convary.weights import load_weights


class Replica:
    """Each process has the whole network: DDP where there are several.

    Args:
        model: The network that is trained.
        accelerator: Accelerate's device and processes.

    Attributes:
        together: Whether all processes must call every method at the same step; else ``whole`` alone.
    """

    together: ClassVar[bool] = False

    def __init__(self, model: nn.Module, accelerator: Accelerator) -> None:
        self.accelerator = accelerator

    def prepare(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[Any, Any]:
        """What is called in a step instead of the network and its optimizer."""
        return self.accelerator.prepare(model, optimizer)

    def another(self, model: nn.Module) -> nn.Module:
        """One more such network, to keep an average in."""
        return copy.deepcopy(model)

    def whole(self, model: nn.Module) -> nn.Module:
        """The network to be looked at, the same one in every process; never trained.

        DDP leaves each process the statistics of norms that its own share of the last step gave.
        """
        if self.accelerator.num_processes > 1:
            for buffer in model.buffers():
                of_the_first(buffer)
        return model

    def state(self, model: nn.Module) -> dict[str, Any]:
        """The network's state dict with whole tensors."""
        return model.state_dict()

    def load(self, model: nn.Module, state: dict[str, Any], path: Path) -> None:
        """Take what ``state`` gave; raises CheckpointError naming ``path`` where it does not fit."""
        load_weights(model, state, path)

    def optimizer_state(self, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        """The optimizer's state dict with whole tensors."""
        return optimizer.state_dict()

    def load_optimizer(self, optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
        """Take what ``optimizer_state`` gave; raises ValueError where it does not fit."""
        optimizer.load_state_dict(state)


def of_the_first(tensor: Tensor) -> Tensor:
    """The first process' tensor, in the place of this one's."""
    torch.distributed.broadcast(tensor, 0)
    return tensor
