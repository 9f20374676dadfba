# SPDX-License-Identifier: Apache-2.0
"""The frequencies of a real matrix, sorted by radius and cut into groups (FDConv's kernels)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def by_radius(rows: int, columns: int, device: Any = None) -> Tensor:
    """Numbers of the frequencies of ``rfft2``, row by row, from low to high; equal radii in the order of the numbers.

    The same on every machine: radii are compared as integers, so that no rounding splits equal ones.
    """
    down, across = torch.arange(rows, device=device), torch.arange(columns // 2 + 1, device=device)
    down = torch.minimum(down, rows - down)
    radius = (down * columns).square().unsqueeze(1) + (across * rows).square()
    return radius.flatten().argsort(stable=True)


def by_released_radius(rows: int, columns: int) -> Tensor:
    """The same in the order that the released code makes, call by call.

    Equal radii come as this machine rounds and sorts them: float32 norms and an unstable sort, whose order depends on
    torch's version and the processor. The released layer makes it anew on the machine that it is loaded on.
    """
    grid = torch.meshgrid(
        torch.fft.fftfreq(rows, dtype=torch.float32, device="cpu"),
        torch.fft.rfftfreq(columns, dtype=torch.float32, device="cpu"),
        indexing="ij",
    )
    return torch.norm(torch.stack(grid, dim=-1), dim=-1).view(-1).sort().indices


def numbered(count: int, K: int, device: Any = None) -> Tensor:
    """(count,) group of each of the sorted frequencies: as many in each as can be."""
    return torch.arange(count, device=device) * K // count
