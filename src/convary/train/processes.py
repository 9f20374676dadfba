# SPDX-License-Identifier: Apache-2.0
"""The processes of one run: Accelerate's part of it."""

from __future__ import annotations

import datetime

from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs

from convary.errors import ConfigError

WAIT = datetime.timedelta(
    hours=12
)  # while the first process evaluates and measures, the others wait; usual: 10 minutes


def start(*, cpu: bool, precision: str = "fp32") -> Accelerator:
    """Accelerate's device and processes.

    Args:
        cpu: Stay on the CPU where there is an accelerator.
        precision: "fp32", "bf16" or "fp16".

    Raises:
        ConfigError: this process trained with another precision or device before; fp16 without an accelerator.
    """
    try:
        accelerator = Accelerator(
            cpu=cpu,
            mixed_precision="no" if precision == "fp32" else precision,
            kwargs_handlers=[InitProcessGroupKwargs(timeout=WAIT)],
        )
    except ValueError as error:  # Accelerate keeps one state per process
        raise ConfigError(
            f"this process has trained with another precision or device than {precision=} and {cpu=}; start a new "
            "process"
        ) from error
    if precision == "fp16" and accelerator.scaler is None:
        raise ConfigError(f"fp16 wants a GPU, whose gradients are then scaled; got {accelerator.device}; give bf16")
    return accelerator
