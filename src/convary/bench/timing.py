# SPDX-License-Identifier: Apache-2.0
"""Times of one call against another, interleaved in one process: A B, B A, A B, ...

Machines drift; the ratio of two calls that follow each other does not. So the figure is the median of the pairwise
ratios, with its 10th and 90th percentiles.
"""

from __future__ import annotations

import contextlib
import math
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from convary.errors import ConfigError

WARM_UP, LEAST, MOST = 3, 9, 500
DEVICE_WARM_UP = 0.2  # seconds besides: an idle accelerator's own clock rises with the load
FEWEST = 3  # pairs, where nine would take longer than there is patience for


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Times of one thing to do.

    Attributes:
        ms: Median, milliseconds.
        base_ms: Median of what it is compared with.
        ratio: Median of the pairwise ratios.
        low: 10th percentile of the ratios.
        high: 90th percentile.
        pairs: How many there were.
    """

    ms: float
    base_ms: float
    ratio: float
    low: float
    high: float
    pairs: int


def interleave(
    ours: Callable[[], object],
    base: Callable[[], object],
    seconds: float,
    clock: Callable[[], float] = time.perf_counter,
    patience: float = math.inf,
) -> Timing:
    """Call both in turns for about ``seconds``, at least nine pairs after the warm-up.

    Args:
        ours: What is timed.
        base: What it is compared with.
        seconds: How long this takes.
        clock: ``time.process_time`` for calls of one thread: it leaves out the time that other programs have the core.
            ``clock_of(device)`` for calls on an accelerator.
        patience: Seconds, warm-up included, after which three pairs are enough, and one to warm up; see ``duration``.
    """
    start = time.perf_counter()
    late, warm = start + patience, start + (DEVICE_WARM_UP if isinstance(clock, DeviceClock) else 0.0)
    for turn in range(MOST):
        if turn and (time.perf_counter() >= late or (turn >= WARM_UP and time.perf_counter() >= warm)):
            break
        _timed(ours, clock)
        _timed(base, clock)
    pairs: list[tuple[float, float]] = []
    until = time.perf_counter() + seconds
    while len(pairs) < _least(late) or (time.perf_counter() < until and len(pairs) < MOST):
        if len(pairs) % 2:
            time_base = _timed(base, clock)
            pairs.append((_timed(ours, clock), time_base))
        else:
            time_ours = _timed(ours, clock)
            pairs.append((time_ours, _timed(base, clock)))
    times = torch.tensor(pairs, dtype=torch.float64)
    low, middle, high = (times[:, 0] / times[:, 1]).quantile(times.new_tensor([0.1, 0.5, 0.9])).tolist()
    ms, base_ms = (1e3 * times.median(0).values).tolist()
    return Timing(ms=ms, base_ms=base_ms, ratio=middle, low=low, high=high, pairs=len(pairs))


def duration(pair: float, seconds: float, patience: float = math.inf) -> float:
    """How long ``interleave`` takes where both calls together take ``pair`` seconds.

    >>> duration(0.01, 1.0, 5.0)
    1.03
    """
    warm_up = min(WARM_UP * pair, max(patience, pair))
    nine_or_late = min(LEAST * pair, max(patience - warm_up, 0.0))
    return warm_up + max(min(FEWEST, LEAST) * pair, nine_or_late, min(seconds, MOST * pair))


def _least(late: float) -> int:
    return LEAST if time.perf_counter() < late else min(FEWEST, LEAST)


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Let torch use one thread; afterwards as many as before."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class DeviceClock:
    """Times calls on an accelerator, which computes after the call has returned: it has finished before and after.

    On CUDA by two events of the device's own stream, which take in what the host needs to launch the call.

    Args:
        device: Where the calls compute.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def __call__(self) -> float:
        """The wall's time, once all is computed."""
        torch.get_device_module(self.device).synchronize(self.device)
        return time.perf_counter()

    def seconds(self, call: Callable[[], object]) -> float:
        """Of one call."""
        start = self()
        if self.device.type != "cuda":
            call()
            return self() - start
        with torch.cuda.device(self.device):
            first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            first.record()
            call()
            last.record()
        last.synchronize()
        return first.elapsed_time(last) / 1e3


def clock_of(device: torch.device) -> Callable[[], float]:
    """The wall's clock for a CPU, and a :class:`DeviceClock` for anything else."""
    return time.perf_counter if device.type == "cpu" else DeviceClock(device)


def fitting_clock(device: torch.device) -> Callable[[], float]:
    """The clock that other programs disturb least: of the process where one thread of a CPU does all, else `clock_of`.

    With more threads the time of the process is the sum of theirs; Windows counts it in steps of 16 ms.
    """
    alone = device.type == "cpu" and torch.get_num_threads() == 1 and os.name == "posix"
    return time.process_time if alone else clock_of(device)


def device_here(name: str) -> torch.device:
    """The device of that name, with its number.

    Raises:
        ConfigError: there is none here, or torch can't compute on it.
    """
    try:
        device = torch.device(name)
        if device.type == "cpu":
            return device
        module = torch.get_device_module(device)
        count = module.device_count() if module.is_available() else 0
    except (RuntimeError, AttributeError):
        raise ConfigError(f"torch knows no device {name!r} to compute on; use cpu or cuda") from None
    index = module.current_device() if device.index is None and count else device.index or 0
    if index >= count:
        found = f"{count} of that kind" if count else "none"
        raise ConfigError(f"there is no device {name!r} here, torch {torch.__version__} sees {found}; use --device cpu")
    return torch.device(device.type, index)


def _timed(call: Callable[[], object], clock: Callable[[], float]) -> float:
    """Seconds of one call."""
    if isinstance(clock, DeviceClock):
        return clock.seconds(call)
    start = clock()
    call()
    return clock() - start
