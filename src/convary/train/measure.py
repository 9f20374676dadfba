# SPDX-License-Identifier: Apache-2.0
"""Times of a network against the static one, interleaved in one process: A B, B A, A B, ...

Machines drift; the ratio of two calls that follow each other does not. So the figure is the median of the pairwise
ratios, with its 10th and 90th percentiles.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from convary.train.config import CompareConfig
from convary.train.loop import make_optimizer

WARM_UP, LEAST, MOST = 3, 9, 500


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Times of one thing to do.

    Attributes:
        ms: Median, milliseconds.
        ratio: Median of the pairwise ratios to the static network.
        low: 10th percentile of the ratios.
        high: 90th percentile.
    """

    ms: float
    ratio: float
    low: float
    high: float


def interleave(ours: Callable[[], object], static: Callable[[], object], seconds: float) -> Timing:
    """Call both in turns for about ``seconds``, at least nine pairs after the warm-up."""
    for _ in range(WARM_UP):
        _timed(ours)
        _timed(static)
    pairs: list[tuple[float, float]] = []
    until = time.perf_counter() + seconds
    while len(pairs) < LEAST or (time.perf_counter() < until and len(pairs) < MOST):
        if len(pairs) % 2:
            base = _timed(static)
            pairs.append((_timed(ours), base))
        else:
            time_ours = _timed(ours)
            pairs.append((time_ours, _timed(static)))
    times = torch.tensor(pairs, dtype=torch.float64)
    low, middle, high = (times[:, 0] / times[:, 1]).quantile(times.new_tensor([0.1, 0.5, 0.9])).tolist()
    return Timing(ms=1e3 * float(times[:, 0].median()), ratio=middle, low=low, high=high)


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
    return interleave(_stepper(model, x, y, config), _stepper(static, x, y, config), seconds)


def _stepper(model: nn.Module, x: Tensor, y: Tensor, config: CompareConfig) -> Callable[[], object]:
    model = copy.deepcopy(model).train()
    optimizer = make_optimizer(model, config)

    def step() -> None:
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()

    return step


def _timed(call: Callable[[], object]) -> float:
    """Seconds of one call; waits for an accelerator to finish."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    start = time.perf_counter()
    call()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start
