# SPDX-License-Identifier: Apache-2.0
"""What callers of the C ABI are given to do harm with: sizes, pointers, and memory that shows where was written."""

from __future__ import annotations

import random
from math import prod

import pytest
import torch

from convary.ops import native

needs_library = pytest.mark.skipif(native.available() is not None, reason=str(native.available()))
SMALL = [0, 1, 2, 3, 4, 5, 7]
HOSTILE = [*SMALL, -1, -(2**63), 2**16, 46341, 2**31 - 1, 2**31, 2**32 + 1, 2**62, 2**63 - 1]
GUARD = 32
MOST = 1 << 14  # elements of a tensor that is really there


def guarded(
    shape: tuple[int, ...], value: float | None, seed: int, dtype: torch.dtype = torch.float32
) -> tuple[torch.Tensor, torch.Tensor]:
    """A tensor, random or filled, between two margins of NaN; the whole and the tensor."""
    whole = torch.full((prod(shape) + 2 * GUARD,), torch.nan, dtype=dtype)
    inner = whole[GUARD : whole.numel() - GUARD].view(shape)
    inner.copy_(torch.randn(shape, generator=torch.Generator().manual_seed(seed)) if value is None else inner)
    return whole, inner


def spoil(rng: random.Random, pointers: list, output: int) -> str:
    """Make one pointer null, misaligned or that of another tensor, now and then; what was done."""
    kind = rng.choice(["", "", "", "null", "misaligned", "overlap"])
    target = rng.randrange(output + 1)
    tensor = pointers[target]
    if not kind or tensor is None or tensor.numel() == 0 or pointers[output].numel() == 0:
        return ""
    if kind == "null" and (target == output or target < 2):
        pointers[target] = None
        return f"{target} is null"
    if kind == "misaligned":
        pointers[target] = tensor.data_ptr() + 1
        return f"{target} is misaligned"
    # The first of the output's bytes lie where the other tensor's last ones are; refused before any is read.
    if kind == "overlap" and target != output and tensor.dtype.is_floating_point:
        pointers[target] = pointers[output].data_ptr()
        return f"{target} is the output"
    return ""
