# SPDX-License-Identifier: Apache-2.0
"""The processes of one run: Accelerate's part of it."""

from __future__ import annotations

import datetime
import os

from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs

from convary.errors import ConfigError

WAIT = datetime.timedelta(
    hours=12
)  # while the first process evaluates and measures, the others wait; usual: 10 minutes


def start(*, cpu: bool, precision: str = "fp32", shard: bool = False) -> Accelerator:
    """Accelerate's device and processes.

    Args:
        cpu: Stay on the CPU where there is an accelerator.
        precision: "fp32", "bf16" or "fp16".
        shard: Weights are to lie in shares, one for each process.

    Raises:
        ConfigError: this process trained with another precision or device before; fp16 without an accelerator; shares
            for one process; a launcher asks for what the trainer does otherwise, or not at all.
    """
    _check_launcher(precision)
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
    if shard and accelerator.num_processes == 1:
        raise ConfigError(
            "shard gives each of several processes a share of the weights; got 1 process: start more, as in torchrun "
            "--nproc-per-node 2 -m convary ..., or leave out --shard"
        )
    return accelerator


_SHARD = "launch without it; to share out the weights, convary compare and reproduce have --shard (FSDP2)"
_LAUNCHED = {
    "ACCELERATE_USE_FSDP": _SHARD,
    "ACCELERATE_USE_DEEPSPEED": _SHARD,
    "ACCELERATE_USE_MEGATRON_LM": _SHARD,
    "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "launch without it; convary compare and reproduce have --accumulate",
    "ACCELERATE_DYNAMO_BACKEND": "launch without it; convary compare and reproduce have --compile",
}
"""What ``accelerate launch`` or its configuration sets, and what to do instead."""
_NOTHING = ("", "0", "1", "no", "false")


def _check_launcher(precision: str) -> None:
    """Raise ConfigError where a launcher asks for what would be ignored, or done twice."""
    for name, instead in _LAUNCHED.items():
        value = os.environ.get(name, "")
        if value.lower() not in _NOTHING:
            raise ConfigError(f"the launcher asks for {name}={value}: {instead}")
    launched = os.environ.get("ACCELERATE_MIXED_PRECISION", "no").lower()
    if launched not in ("", "no", precision):
        raise ConfigError(
            f"the launcher asks for --mixed_precision {launched}, but this run is of {precision=}; give convary "
            f"--precision {launched}, or launch with --mixed_precision no"
        )
