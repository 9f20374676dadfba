# SPDX-License-Identifier: Apache-2.0
"""Half precision on the CPU: numbers are kept in 16 bits, computed with in float32, and rounded once at the end.

So a convolution under autocast costs what it costs in float32 and two passes over features. Torch's own convolutions in
half precision are faster than that only where the processor multiplies such numbers.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

HALVES = (torch.bfloat16, torch.float16)


def wide(tensor: Tensor) -> Tensor:
    """The tensor, in float32 where it has 16 bits."""
    return tensor.float() if tensor.dtype in HALVES else tensor


def widened(tensors: Iterable[Tensor | None]) -> list[Tensor | None]:
    """Several of them."""
    return [None if t is None else wide(t) for t in tensors]


def exactly(y: Tensor, dtype: torch.dtype) -> Tensor:
    """A result in the dtype that is asked for."""
    return y if y.dtype is dtype else y.to(dtype)


def of_convolution(tensors: Sequence[Tensor | None]) -> torch.dtype:
    """The dtype that torch's convolutions answer: autocast's where it is on, else that of x, the first tensor."""
    if torch.is_autocast_enabled("cpu"):
        return torch.get_autocast_dtype("cpu")
    x = tensors[0]
    assert x is not None
    return x.dtype


def of_product(tensors: Sequence[Tensor | None]) -> torch.dtype:
    """The dtype that torch's products answer, which autocast leaves alone."""
    return functools.reduce(torch.promote_types, (t.dtype for t in tensors if t is not None))
