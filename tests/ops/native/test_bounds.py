# SPDX-License-Identifier: Apache-2.0
"""Bounds of a convolution's output, by the C ABI: as if it were cut afterwards, bit for bit, on every path."""

from __future__ import annotations

import ctypes
import math

import pytest
import torch
from torch import Tensor

from convary.ops.geometry import Geometry
from convary.ops.native.call import conv_sizes
from convary.ops.native.library import loaded
from tests.ops.native.hostile import needs_library

pytestmark = needs_library
CASES = {  # B, C, O, size, k, stride, groups
    "several windows": (2, 8, 40, (40, 37), 3, 1, 1),
    "several blocks of channels": (1, 600, 33, (3, 5), 3, 1, 1),
    "1x1": (2, 20, 33, (9, 9), 1, 1, 1),
    "a bank packed for several samples": (9, 64, 34, (5, 5), 3, 1, 2),
    "depthwise, in windows": (1, 40, 40, (100, 120), 3, 1, 40),
    "depthwise, strided": (2, 20, 20, (30, 31), 3, 2, 20),
    "depthwise, small maps": (2, 33, 33, (7, 7), 3, 1, 33),
}
every_case = pytest.mark.parametrize("case", CASES)


def called(entry: str, case: str, bounds: tuple | None, *, channels_last: bool = False, half: bool = False) -> Tensor:
    """What an entry makes of the same numbers every time, one of them NaN."""
    torch.manual_seed(0)
    B, C, O, size, k, stride, groups = CASES[case]
    of_samples = entry == "sample_conv"
    K = B if of_samples else 3
    x, bank = torch.randn(B, C, *size), torch.randn(K, O, C // groups, k, k)
    bias, factors = torch.randn(O), [torch.rand(B, K), torch.rand(B, O), torch.rand(B, C), torch.rand(B, k * k)]
    geometry = Geometry((stride,) * 2, (k // 2,) * 2, (1, 1), groups)
    sizes, shape = conv_sizes.__wrapped__(x.shape, bank.shape, geometry, (1, 1, 1, 1), channels_last, 1, (half, False))
    if bounds is not None:
        sizes.bounded, sizes.lower, sizes.upper = 1, *bounds
    kind = {
        "dtype": torch.bfloat16 if half else torch.float32,
        "memory_format": torch.channels_last if channels_last else torch.contiguous_format,
    }
    y = torch.empty(B, O, *shape[2:]).to(**kind)
    if entry == "mixed_conv_grad_x":
        y, x = torch.empty_like(x), torch.randn(y.shape)
    x[0, 0, 0, 0] = torch.nan
    rest = {"sample_conv": [bias, None], "mixed_conv": [*factors, bias], "mixed_conv_grad_x": factors}[entry]
    tensors = [x.to(**kind), bank, *rest, y]
    pointers = [None if t is None else t.data_ptr() for t in tensors]
    assert loaded().entries[entry](ctypes.addressof(sizes), *pointers) == 0
    return y


def check(case: str, entry: str = "mixed_conv", **kind: bool) -> None:
    free = called(entry, case, None, **kind)
    assert free.isnan().any() and (free < -1).any() and (free > 1.5).any()
    for lower, upper in ((0.0, math.inf), (-1.0, 1.5), (-math.inf, 0.0)):
        got = called(entry, case, (lower, upper), **kind)
        torch.testing.assert_close(got, free.clamp(lower, upper), rtol=0, atol=0, equal_nan=True)


@every_case
@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("channels_last", [False, True])
def test_mixed(case, half, channels_last):
    check(case, half=half, channels_last=channels_last)


@every_case
def test_kernels_of_samples(case):
    check(case, "sample_conv")


def test_every_instruction_set(another_isa):
    for case in CASES:
        check(case)
        check(case, half=True)


@every_case
def test_gradients_have_none(case):
    free, bounded = (called("mixed_conv_grad_x", case, bounds) for bounds in (None, (0.0, 1.0)))
    torch.testing.assert_close(free, bounded, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("bounds", [(1.0, 0.0), (math.nan, 1.0), (0.0, math.nan)])
def test_what_is_no_range(bounds):
    with pytest.raises(AssertionError, match="8 == 0"):
        called("mixed_conv", "1x1", bounds)
