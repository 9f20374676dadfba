# SPDX-License-Identifier: Apache-2.0
"""Peak memory of a call in this very process: what its tensors take, not what the process has."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile


def peak(call: Callable[[], object], device: torch.device) -> int:
    """Bytes of tensors that a call adds, at its worst moment, to those that were there before.

    On a CPU the profiler hears every allocation of torch; scratch inside libraries and native kernels is not counted.

    Args:
        call: What to run once; run it before, so that what it sets up the first time is there.
        device: Where it computes.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        call()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    os.environ.setdefault("KINETO_LOG_LEVEL", "9")  # else it complains on stderr where there is no GPU
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as heard:
        call()
    results: Any = heard.profiler and heard.profiler.kineto_results  # torch's stubs leave out what an event has
    events = [event for event in results.events() if event.name() == "[memory]"]
    now = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    return most
