# SPDX-License-Identifier: Apache-2.0
"""Adaptive average pooling that every target can hold."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from convary.ops.tracing import is_onnx_trace, is_traced

_POOL: dict[int, Any] = {1: F.adaptive_avg_pool1d, 2: F.adaptive_avg_pool2d, 3: F.adaptive_avg_pool3d}


def adaptive_avg_pool(x: Tensor, size: int | Sequence[int]) -> Tensor:
    """``torch.nn.functional.adaptive_avg_pool*d``; where ONNX may come of it, as a matrix product per axis.

    The bins of a map that ``size`` does not divide differ in width and overlap. ONNX has no operator for that, and
    recorders write down the bins of the example's size; these matrices are computed from the size in the graph.

    Args:
        x: (B, C, *S), one to three spatial axes.
        size: Positions per axis of the result; an int for all of them.

    Returns:
        (B, C, *size).

    >>> adaptive_avg_pool(torch.randn(2, 3, 5, 9), (3, 1)).shape
    torch.Size([2, 3, 3, 1])
    """
    sizes = (size,) * (x.ndim - 2) if isinstance(size, int) else tuple(size)
    if not is_traced(x) or (
        torch._C._get_tracing_state() is not None and not is_onnx_trace()
    ):  # a trace itself pools every size
        return _POOL[len(sizes)](x, sizes)
    return by_products(x, sizes)


def by_products(x: Tensor, sizes: tuple[int, ...]) -> Tensor:
    """The same as a matrix product per axis."""
    for size in reversed(sizes):  # each turn pools the last axis and puts it first
        inside, counts = _bins(x, x.shape[-1], size)
        x = (x @ inside.transpose(0, 1) / counts).movedim(x.ndim - 1, 2)
    return x


def _bins(x: Tensor, length: int, size: int) -> tuple[Tensor, Tensor]:
    """Which of ``length`` positions is in which bin (size, length), as 0 and 1, and how many are in each (size,).

    Counts are divided by after the product, so that the matrices are exact in half precision.
    """
    position = torch.arange(length, device=x.device)
    bin = torch.arange(size, device=x.device).unsqueeze(1)
    first, last = bin * length // size, ((bin + 1) * length + size - 1) // size
    inside = (position >= first).to(x.dtype) * (position < last).to(x.dtype)  # Core ML does not know &
    return inside, (last - first).squeeze(1).to(x.dtype)
