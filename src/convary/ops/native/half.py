# SPDX-License-Identifier: Apache-2.0
"""Half precision on the CPU: numbers are kept in 16 bits, summed in float32, and rounded once at the end.

The convolutions by banks and by given kernels read and write bfloat16 as it lies, beside kernels in bfloat16 or
float32. Where the processor multiplies pairs of such numbers (``avx512_bf16``) the mixed kernels are rounded to
bfloat16 as well, once, after mixing in float32; elsewhere nothing is rounded but the result. Everything else (float16,
``pixel_conv``, graphs) is widened to float32, which costs a pass over features on each side.
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


def kept(tensors: Sequence[Tensor | None], dtype: torch.dtype) -> list[Tensor | None]:
    """What the convolutions' kernels take for a result of ``dtype``: x, then the kernels, then all else in float32."""
    x, kernels, *rest = tensors
    assert x is not None
    if not x.dtype is dtype is torch.bfloat16:
        return widened(tensors)
    if kernels is not None and kernels.dtype is not torch.bfloat16:
        kernels = wide(kernels)
    return [x, kernels, *widened(rest)]


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
