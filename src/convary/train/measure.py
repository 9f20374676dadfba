# SPDX-License-Identifier: Apache-2.0
"""Times of a network against the static one, and the memory that its training takes."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn, optim

from convary.bench.peak import peak
from convary.bench.timing import Timing, fitting_clock, interleave
from convary.train.classification import make_optimizer
from convary.train.config import CompareConfig

PATIENCE = 5.0  # seconds for a timing of slow networks, three pairs at least; fast ones have their nine by then


def latency(model: nn.Module, static: nn.Module, x: Tensor, seconds: float) -> Timing:
    """Forward passes in eval mode on x (B, C, H, W)."""
    model.eval()
    static.eval()
    with torch.inference_mode():
        return interleave(lambda: model(x), lambda: static(x), seconds, fitting_clock(x.device), PATIENCE)


def training_step(
    model: nn.Module, static: nn.Module, x: Tensor, y: Tensor, config: CompareConfig, seconds: float
) -> Timing:
    """Forward, backward and optimizer step on x (B, C, H, W) and y (B,), with copies of both networks."""
    ours, base = (stepper(net, x, y, config) for net in (model, static))
    return interleave(ours, base, seconds, fitting_clock(x.device), PATIENCE)


def memory(model: nn.Module, x: Tensor, y: Tensor, config: CompareConfig) -> int:
    """Bytes of tensors at the worst moment of a training step: weights, optimizer, gradients, activations.

    Args:
        model: The network; a copy of it is trained.
        x: Images (B, C, H, W), not counted.
        y: Their classes (B,).
        config: Says how it is trained.
    """
    model = copy.deepcopy(model).train()
    optimizer = make_optimizer(model, config, config.lr[0], str(config.init))
    step = _step(model, optimizer, x, y)
    step()
    optimizer.zero_grad()
    kept = [value for state in optimizer.state.values() for value in state.values() if isinstance(value, Tensor)]
    held = sum(tensor.numel() * tensor.element_size() for tensor in (*model.parameters(), *model.buffers(), *kept))
    return held + peak(step, x.device)


def stepper(model: nn.Module, x: Tensor, y: Tensor, config: CompareConfig) -> Callable[[], object]:
    """A training step on x (B, C, H, W) and y (B,) as a function; it trains a copy of the network."""
    model = copy.deepcopy(model).train()
    return _step(model, make_optimizer(model, config, config.lr[0], str(config.init)), x, y)


def _step(model: nn.Module, optimizer: optim.Optimizer, x: Tensor, y: Tensor) -> Callable[[], object]:
    def step() -> None:
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()

    return step
