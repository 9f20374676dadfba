# SPDX-License-Identifier: Apache-2.0
"""What ``tl.reduce`` takes: Triton's interpreter does not know ``tl.sum`` where torch imported Triton before."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def add(a, b):
    """The sum."""
    return a + b


@triton.jit
def larger(a, b):
    """The maximum."""
    return tl.maximum(a, b)
