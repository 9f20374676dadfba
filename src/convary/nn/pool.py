# SPDX-License-Identifier: Apache-2.0
"""Adaptive average pooling that every target can hold."""

from __future__ import annotations

import torch
from torch import Tensor


def adaptive_avg_pool(x: Tensor, size: int) -> Tensor:
    """``torch.nn.functional.adaptive_avg_pool2d(x, size)`` as two small matrix products.

    The bins of a map that ``size`` does not divide differ in width and overlap. ONNX has no operator for that, and
    recorders write down the bins of the example's size; these matrices are computed from the size in the graph.

    Args:
        x: (B, C, H, W).
        size: Rows and columns of the result.

    Returns:
        (B, C, size, size).

    >>> x = torch.randn(2, 3, 5, 9)
    >>> torch.allclose(adaptive_avg_pool(x, 3), torch.nn.functional.adaptive_avg_pool2d(x, 3), atol=1e-6)
    True
    """
    rows, row_counts = _bins(x, x.shape[2], size)
    columns, column_counts = _bins(x, x.shape[3], size)
    return rows @ x / row_counts @ columns.mT / column_counts.mT


def _bins(x: Tensor, length: int, size: int) -> tuple[Tensor, Tensor]:
    """Which of ``length`` positions is in which bin (size, length), as 0 and 1, and how many are in each (size, 1).

    Counts are divided by after the product, so that the matrices are exact in half precision.
    """
    position = torch.arange(length, device=x.device)
    bin = torch.arange(size, device=x.device).unsqueeze(1)
    first, last = bin * length // size, ((bin + 1) * length + size - 1) // size
    inside = (position >= first) & (position < last)
    return inside.to(x.dtype), (last - first).to(x.dtype)
