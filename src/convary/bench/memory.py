# SPDX-License-Identifier: Apache-2.0
"""Peak memory of training one network: ``python -m convary.bench.memory MODEL METHOD BATCH SIZE THREADS DEVICE``.

On a CPU resident memory, as the operating system counts it: torch's tensors, buffers inside its libraries and ours
alike. On a CUDA device what torch's allocator handed out there, cuDNN's buffers included.
"""

from __future__ import annotations

import contextlib
import gc
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from convary.bench.models import networks, step

STEPS = 3


def resident(field: str) -> int:
    """Bytes of ``VmRSS`` (now) or ``VmHWM`` (at most) of this process; Linux only."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith(field))


def forget_peak() -> None:
    """Count the peak from now on, where the system lets us; otherwise building the network counts too."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def main(argv: Sequence[str]) -> None:
    """Train a little and print {"peak": bytes above the idle process, "parameters": bytes}."""
    name, method_name, batch, size, threads = argv[0], argv[1], *(int(word) for word in argv[2:5])
    device = torch.device(argv[5])
    torch.set_num_threads(threads)
    torch.nn.functional.conv2d(torch.zeros(1, 3, 8, 8), torch.zeros(3, 3, 3, 3))  # loads the libraries
    idle = resident("VmRSS") if device.type == "cpu" else 0
    static, model = networks(name, method_name, size)
    del static
    gc.collect()
    model, x = model.to(device), torch.randn(batch, 3, size, size).to(device)
    forget_peak()
    train = step(model.train(), x, "training")
    for _ in range(STEPS):
        train()
    peak = resident("VmHWM") if device.type == "cpu" else torch.cuda.max_memory_allocated(device)
    parameters = sum(p.numel() * p.element_size() for p in model.parameters())
    print(json.dumps({"peak": peak - idle, "parameters": parameters}))


if __name__ == "__main__":
    main(sys.argv[1:])
