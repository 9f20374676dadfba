# SPDX-License-Identifier: Apache-2.0
"""The choice of a strategy by measurement: the first call of a shape times those that can run, as cuDNN can do.

What was measured is kept in memory and in a file of this machine, so that later processes choose the same without
timing anything. Graphs are not concerned: what they record may depend on no machine.
"""

from __future__ import annotations

import contextlib
import functools
import math
import os
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from convary.ops.coefficients import Coefficients
from convary.ops.cost.times import Times, device_name
from convary.ops.problem import Problem
from convary.ops.shapes import is_channels_last
from convary.ops.tracing import PLAIN, in_forward_mode, inside_functorch, is_intercepted

ROUNDS, LEAST = 9, 2
SECONDS = 0.2  # of rounds, for one shape
HOPELESS = 3.0  # times the fastest: no more rounds for such a strategy
NATIVE_MARGIN = 1.05  # native keeps no mixed kernels in memory, and wins a draw
MOST_SHAPES = 512  # of a process: one whose shapes never come twice would measure for ever


def wanted(variable: str | None) -> bool:
    """Whether the environment asks for it."""
    return (variable or "").lower() not in ("", "0", "no", "false", "off")


_on = wanted(os.environ.get("CONVARY_AUTOTUNE"))
_measured, _seconds = 0, 0.0  # problems, and what they cost this process
_times = functools.cache(Times)


def autotune(enabled: bool = True) -> None:
    """Let the first call of every shape time the strategies that can run it, and keep the fastest.

    Measures forward and backward where the call needs a gradient; about a fifth of a second for a shape, and at
    least three calls of every strategy. Results are kept for this process and, by machine, torch and convary, in
    ``autotune-*.json`` of ``$CONVARY_CACHE`` (by default ``~/.cache/convary``), where later processes find them:
    the choice is the same from then on. Remove the file to measure anew. The environment variable
    ``CONVARY_AUTOTUNE=1`` turns it on without a change of code. A process measures 512 shapes at most.

    Strategies differ by rounding: with another choice a training is not the same to the last bit.

    Use it where the estimates do not come from your device, on a GPU for instance, and shapes come again and again.
    Compiled and exported graphs record what they did before: :func:`explain` says which.

    Args:
        enabled: Off is the default of the library: strategies are chosen by estimated time.

    Examples:
        >>> import convary.ops
        >>> convary.ops.autotune()
        >>> convary.ops.autotune(False)
    """
    global _on
    _on = enabled


def is_on() -> bool:
    """Whether calls choose by measurement."""
    return _on


@dataclass(frozen=True)
class Tuned:
    """What :func:`tuned` found; print it.

    Attributes:
        rows: Of every shape that this process measured or found in the file: seconds of a call by strategy.
        measured: How many of them this process measured.
        seconds: What that took.
        path: The file.
    """

    rows: Mapping[str, Mapping[str, float]]
    measured: int
    seconds: float
    path: Path

    def __str__(self) -> str:
        lines = [f"{len(self.rows)} shapes in {self.path}, {self.measured} measured here in {self.seconds:.2f} s"]
        for key, times in self.rows.items():
            listed = ", ".join(f"{name} {1e3 * times[name]:.3f}" for name in sorted(times, key=times.__getitem__))
            lines.append(f"  {key}\n    ms: {listed}")
        return "\n".join(lines)


def tuned() -> Tuned:
    """What has been measured on this machine, in this process or before, and what it cost this process."""
    return Tuned(dict(_times().known), _measured, _seconds, _times().path)


def state(x: Tensor) -> tuple:
    """What a measured choice depends on beside the shapes."""
    return torch.get_num_threads(), is_channels_last(x), _autocast(x.device.type), _may_measure(x)


def known(problem: Problem) -> Mapping[str, float] | None:
    """Seconds of a call by strategy where choices are measured and this one was; else None."""
    return _times().known.get(_key(problem)) if _on else None


def preferred(times: Mapping[str, float]) -> str:
    """The fastest strategy; ``native`` also where another is faster by no more than noise."""
    return min(times, key=lambda name: times[name] * (1.0 if name == "native" else NATIVE_MARGIN))


def measure(problem: Problem, arguments: Any, runs: Mapping[str, Callable[..., Tensor]]) -> None:
    """Time the strategies of a call unless its times are known, nothing may be timed here, or there is one only.

    Args:
        problem: What the call poses.
        arguments: The op's checked arguments, a named tuple.
        runs: The strategies that can run them, by name.
    """
    global _measured, _seconds
    tensors = [t for t in arguments.tensors() if t is not None]
    if len(runs) < 2 or known(problem) is not None or _measured >= MOST_SHAPES or not _may_measure(*tensors):
        return
    start = time.perf_counter()
    times = _race({name: _call(run, arguments) for name, run in runs.items()}, problem)
    _measured, _seconds = _measured + 1, _seconds + time.perf_counter() - start
    if times:
        _times().keep(_key(problem), times)


def _may_measure(*tensors: Tensor) -> bool:
    """Whether a timed call computes numbers, and is nobody's business: no recorder, no transform, no CUDA graph.

    Tensors of other types than torch's own may have no numbers (fake ones), or others elsewhere (distributed ones).
    """
    if any(type(t) not in PLAIN or t.is_meta for t in tensors):
        return False
    if is_intercepted(*tensors) or inside_functorch() or in_forward_mode():
        return False
    return not (tensors[0].is_cuda and torch.cuda.is_current_stream_capturing())


def _call(run: Callable[..., Tensor], arguments: Any) -> Callable[[], None]:
    """One call on the same numbers that leaves no trace: no graph behind it, no hooks of the caller's."""

    def call() -> None:
        leaves: list[Tensor] = []
        fresh = [_detached(value, leaves) for value in arguments]
        with _apart(bool(leaves)):
            y = run(*fresh)
            if leaves:
                torch.autograd.grad(y, leaves, torch.ones_like(y), allow_unused=True)

    return call


@contextlib.contextmanager
def _apart(gradients: bool) -> Iterator[None]:
    """No hook of the caller's is called, and autocast keeps no copy of the numbers."""
    cached = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)
    try:
        # Of hooks, the innermost alone are called: a checkpoint around the call counts what is saved.
        with torch.autograd.graph.saved_tensors_hooks(lambda t: t, lambda t: t), torch.set_grad_enabled(gradients):
            yield
    finally:
        torch.set_autocast_cache_enabled(cached)


def _detached(value: Any, leaves: list[Tensor]) -> Any:
    """``value`` apart from the caller's graph; tensors that want a gradient are added to ``leaves``."""
    if isinstance(value, Coefficients):
        return type(value)(**{axis: _detached(factor, leaves) for axis, factor in value.factors().items()})
    if not isinstance(value, Tensor):
        return value
    wanted = torch.is_grad_enabled() and value.requires_grad
    value = value.detach().requires_grad_(wanted)
    if wanted:
        leaves.append(value)
    return value


def _race(calls: dict[str, Callable[[], None]], problem: Problem) -> dict[str, float]:
    """The fastest of several calls of each, interleaved: other work on the machine only adds."""
    racing = {name: call for name, call in calls.items() if _runs(name, call, problem)}
    times = dict.fromkeys(racing, math.inf)
    until = time.perf_counter() + SECONDS
    for round in range(ROUNDS):
        for name, call in racing.items():
            times[name] = min(times[name], _timed(call, problem.device))
        if round >= LEAST - 1:
            racing = {name: call for name, call in racing.items() if times[name] <= HOPELESS * min(times.values())}
            if len(racing) < 2 or time.perf_counter() > until:
                break
    return times


def _runs(name: str, call: Callable[[], None], problem: Problem) -> bool:
    """Whether a first call, which loads code and fills caches, does not raise."""
    try:
        call()
    except RuntimeError as error:  # out of memory included
        warnings.warn(f"autotune leaves out {name!r} for {_key(problem)}: {error}", stacklevel=2)
        if problem.device != "cpu":
            torch.get_device_module(problem.device).empty_cache()
        return False
    return True


def _timed(call: Callable[[], None], device: str) -> float:
    _wait(device)
    start = time.perf_counter()
    call()
    _wait(device)
    return time.perf_counter() - start


def _wait(device: str) -> None:
    if device != "cpu":
        torch.get_device_module(device).synchronize()


def _key(problem: Problem) -> str:
    """A problem in words, with the name of its device."""
    sizes = {name: value for name, value in asdict(problem).items() if value not in (None, (), False)}
    sizes["device"] = f"{problem.device} ({device_name(problem.device)})"
    sizes["threads"] = torch.get_num_threads()
    if (dtype := _autocast(torch.device(problem.device).type)) is not None:
        sizes["autocast"] = dtype
    words = (f"{name}={'x'.join(map(str, v)) if isinstance(v, tuple) else v}" for name, v in sizes.items())
    return ", ".join(words)


def _autocast(device: str) -> torch.dtype | None:
    """The dtype that autocast wants there, where it is on: features may have it, and weights not."""
    if not torch.amp.is_autocast_available(device) or not torch.is_autocast_enabled(device):
        return None
    return torch.get_autocast_dtype(device)
