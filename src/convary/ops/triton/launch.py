# SPDX-License-Identifier: Apache-2.0
"""May Triton kernels run this, and how one is launched; the sizes of a program's block."""

from __future__ import annotations

import importlib.util
import os
from typing import Any

import torch
from torch import Tensor

from convary.errors import StrategyError

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
MOST = 65535  # programs along a grid's second and third axis
BLOCK = 256  # elements of a program that multiplies no matrices; tests of the interpreter, which is slow, have fewer


def interpreted() -> bool:
    """Whether Triton runs its kernels on the CPU, one program after another: for tests."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def obstacle(device: str, dtype: torch.dtype) -> str | None:
    """Why no Triton kernel can compute there in that dtype, or None."""
    if not device.startswith("cuda") and not (device == "cpu" and interpreted()):
        return f"its kernels run on CUDA devices; x is on {device}"
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed"
    if dtype not in DTYPES:
        return f"x is {dtype}; it takes {', '.join(map(str, DTYPES))}"
    return None


def launch(kernel: Any, grid: tuple[int, ...], x: Tensor, *arguments: Tensor | int | float | None, **constants) -> None:
    """Run a kernel on x's device.

    Raises:
        StrategyError: Triton can't build it for this device.
    """
    from triton.errors import TritonError

    try:
        with torch.cuda.device_of(x):
            kernel[grid](x, *arguments, **constants)
    except TritonError as error:  # no RuntimeError, which is what tuning leaves out
        raise StrategyError(
            f"Triton can't run strategy 'triton' on {x.device} ({error}); force another, or let ops.autotune() choose"
        ) from error


def blocks(size: int, block: int) -> int:
    """How many blocks cover an axis."""
    return -(-size // block)


def power(size: int) -> int:
    """The least power of two that is no smaller: Triton's blocks are such."""
    return 1 << max(size - 1, 0).bit_length()


def tile(positions: int, channels: int, *, channels_last: bool) -> tuple[int, int]:
    """A block of about ``BLOCK`` elements: positions and channels, the axis that lies dense in memory first."""
    inner, outer = (channels, positions) if channels_last else (positions, channels)
    first = min(power(inner), BLOCK if not channels_last else 64)
    second = min(power(outer), max(1, BLOCK // first))
    return (second, first) if channels_last else (first, second)
