# SPDX-License-Identifier: Apache-2.0
"""Times of a network against the static one."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from convary.bench.timing import Timing, interleave
from convary.train.classification import make_optimizer
from convary.train.config import CompareConfig


def latency(model: nn.Module, static: nn.Module, x: Tensor, seconds: float) -> Timing:
    """Forward passes in eval mode on x (B, C, H, W)."""
    model.eval()
    static.eval()
    with torch.inference_mode():
        return interleave(lambda: model(x), lambda: static(x), seconds)


def training_step(
    model: nn.Module, static: nn.Module, x: Tensor, y: Tensor, config: CompareConfig, seconds: float
) -> Timing:
    """Forward, backward and optimizer step on x (B, C, H, W) and y (B,), with copies of both networks."""
    return interleave(stepper(model, x, y, config), stepper(static, x, y, config), seconds)


def stepper(model: nn.Module, x: Tensor, y: Tensor, config: CompareConfig) -> Callable[[], object]:
    """A training step on x (B, C, H, W) and y (B,) as a function; it trains a copy of the network."""
    model = copy.deepcopy(model).train()
    optimizer = make_optimizer(model, config, config.lr[0], config.init)

    def step() -> None:
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()

    return step
