# SPDX-License-Identifier: Apache-2.0
"""Calls of mixed_conv of any geometry, their right results, and how near is near enough."""

from __future__ import annotations

import torch
from hypothesis import strategies as st

from convary.ops import Coefficients, reference

CHANNELS = [1, 2, 3, 5, 8, 15, 16, 17, 31, 32, 33, 48, 65]
COLUMNS = [1, 2, 6, 7, 8, 13, 14, 15, 16, 17, 28, 29, 33]


def double(factor: torch.Tensor | None) -> torch.Tensor | None:
    return None if factor is None else factor.double()


def truth(x, bank, coeffs, bias, **geometry) -> torch.Tensor:
    """The reference in float64."""
    coeffs = Coefficients(**{axis: value.double() for axis, value in coeffs.factors().items()})
    return reference.mixed_conv(x.double(), bank.double(), coeffs, double(bias), **geometry)


def magnitude(x, bank, coeffs, bias, **geometry) -> torch.Tensor:
    """The same with every number positive: what rounding errors are relative to."""
    coeffs = Coefficients(**{axis: value.abs() for axis, value in coeffs.factors().items()})
    return truth(x.abs(), bank.abs(), coeffs, None if bias is None else bias.abs(), **geometry)


def assert_right(y, x, bank, coeffs, bias, **geometry) -> None:
    """Each sum of n products is within n roundings of the truth, and nothing is left unwritten."""
    products = bank[0, 0].numel() + bank.shape[0] + 8
    bound = magnitude(x, bank, coeffs, bias, **geometry) * products * 2**-23 + 1e-30
    error = (y.double() - truth(x, bank, coeffs, bias, **geometry)).abs()
    assert (error <= bound).all(), f"{(error / bound).max()} {x.shape} {bank.shape} {geometry}"


def draw_call(data) -> tuple[tuple, dict]:
    """Tensors and geometry of any call that mixed_conv takes."""
    draw = data.draw
    rank = draw(st.sampled_from([1, 2, 2, 2]))
    kind = draw(st.sampled_from(["dense", "dense", "pointwise", "grouped", "depthwise"]))
    groups = {"grouped": draw(st.integers(2, 4)), "depthwise": draw(st.sampled_from(CHANNELS))}.get(kind, 1)
    C_group, O_group = (1, 1) if kind == "depthwise" else (draw(st.sampled_from(CHANNELS)) for _ in range(2))
    kernel_size = [1 if kind == "pointwise" else draw(st.integers(1, 4)) for _ in range(rank)]
    geometry = {
        "stride": [draw(st.sampled_from([1, 1, 2, 3])) for _ in range(rank)],
        "padding": [draw(st.sampled_from([0, 0, 1, 3])) for _ in range(rank)],
        "dilation": [draw(st.sampled_from([1, 1, 2, 3])) for _ in range(rank)],
        "groups": groups,
    }
    reach = [d * (k - 1) for k, d in zip(kernel_size, geometry["dilation"], strict=True)]
    size = [draw(st.sampled_from(COLUMNS if i == rank - 1 else [1, 2, 3, 9])) + r for i, r in enumerate(reach)]
    B, K = draw(st.integers(1, 9)), draw(st.integers(1, 5))
    torch.manual_seed(draw(st.integers(0, 2**31)))
    rows = {axis: draw(st.sampled_from([None, None, 1, K])) for axis in ("filter", "channel", "tap")}
    numbers = {"filter": O_group * groups, "channel": C_group * groups, "tap": torch.Size(kernel_size).numel()}
    factors = {axis: torch.randn(B, rows[axis], numbers[axis]) for axis in rows if rows[axis]}
    if not factors or draw(st.booleans()):
        factors["kernel"] = torch.randn(B, K)
    x = torch.randn(B, C_group * groups, *size)
    if rank == 2 and draw(st.booleans()):
        x = x.contiguous(memory_format=torch.channels_last)
    bank = torch.randn(K, O_group * groups, C_group, *kernel_size)
    bias = draw(st.sampled_from([None, torch.randn(bank.shape[1]), torch.randn(K, bank.shape[1])]))
    return (x, bank, Coefficients(**factors), bias), geometry
