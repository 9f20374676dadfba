# SPDX-License-Identifier: Apache-2.0
"""Calls of pixel_conv of any geometry, their right results, and how near is near enough."""

from __future__ import annotations

from math import prod

import torch
from hypothesis import assume
from hypothesis import strategies as st

from convary import ops
from convary.errors import ShapeError
from convary.ops import reference
from convary.ops.pixel.arguments import spell
from convary.ops.pixel.window import Window

BORDERS = st.sampled_from(["zeros", "zeros", "zeros", "replicate", "reflect", "circular", "clamp"])
COLUMNS = [1, 2, 3, 4, 5, 7, 8, 9, 13, 15, 16, 17, 28, 31, 33, 40]


def draw_call(data, ranks=(1, 2, 2, 3), dtype=torch.float64) -> tuple[torch.Tensor, torch.Tensor, dict]:
    """(x, weight) and the other arguments of any call that pixel_conv takes."""
    draw = data.draw
    rank = draw(st.sampled_from(ranks))
    wide = COLUMNS if rank < 3 else COLUMNS[:7]
    size = [draw(st.sampled_from(wide if axis == rank - 1 else [1, 2, 3, 6, 9])) for axis in range(rank)]
    arguments = {
        "kernel_size": [draw(st.integers(1, 5 if rank < 3 else 3)) for _ in size],
        "stride": [draw(st.sampled_from([1, 1, 1, 2, 3])) for _ in size],
        "padding": [draw(st.sampled_from([0, 1, 2, 5])) for _ in size],
        "dilation": [draw(st.sampled_from([1, 1, 2, 4])) for _ in size],
        "border": draw(BORDERS),
        "group_order": draw(st.sampled_from(["contiguous", "interleaved"])),
        "scale_factor": draw(st.sampled_from([1, 1, 1, 2, 3])),
    }
    B, G = draw(st.integers(1, 3)), draw(st.sampled_from([1, 1, 2, 3]))
    C = G * draw(st.sampled_from([1, 2, 3, 4, 5, 9]))
    out = Window(*(tuple(v) if isinstance(v, list) else v for v in arguments.values())).out_size(size)
    assume(min(out) >= 1)
    torch.manual_seed(draw(st.integers(0, 2**31)))
    x = torch.randn(B, C, *size, dtype=dtype)
    weight = torch.randn(B, G, prod(arguments["kernel_size"]), *out, dtype=dtype)
    try:
        window_of(x, weight, arguments)
    except ShapeError:  # a border that this size has not enough positions for
        assume(False)
    return x, weight, arguments


def window_of(x, weight, arguments: dict) -> Window:
    """The arguments spelled out, checked as a call checks them."""
    usual = {
        "stride": 1,
        "padding": 0,
        "dilation": 1,
        "border": "zeros",
        "group_order": "contiguous",
        "scale_factor": 1,
    }
    return spell(x, weight, **usual | arguments).check().window


def results(function, x, weight, arguments: dict, dtype=torch.float64, grad=None) -> list[torch.Tensor]:
    """Y and the gradients of x and weight of sum(grad * y)."""
    leaves = [t.detach().to(dtype).requires_grad_() for t in (x, weight)]
    y = function(*leaves, **arguments)
    if grad is None:
        grad = torch.randn(y.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    return [y.detach(), *torch.autograd.grad(y, leaves, grad.to(dtype))]


def truth(x, weight, arguments: dict, grad=None) -> list[torch.Tensor]:
    """The same by the reference, in float64."""
    return results(reference.pixel_conv, x, weight, window_of(x, weight, arguments)._asdict(), grad=grad)


def assert_close(found: list, x, weight, arguments: dict, dtype: torch.dtype) -> None:
    """Each sum of n products within n + 8 roundings of the truth, relative to the same sum of absolute values."""
    wants = truth(x, weight, arguments)
    grad = torch.randn(wants[0].shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).abs()
    bounds = truth(x.abs(), weight.abs(), arguments, grad)
    terms = weight.shape[2] * max(1, weight[0, 0, 0].numel() // max(1, x[0, 0].numel())) * 4 + x.shape[1] + 8
    for i, (got, want, bound) in enumerate(zip(found, wants, bounds, strict=True)):
        assert got.shape == want.shape
        error = (got.double() - want).abs()
        assert (error <= bound * terms * torch.finfo(dtype).eps + 1e-30).all(), (
            f"{i} {x.shape} {weight.shape} {arguments}"
        )


class Layer(torch.nn.Module):
    def __init__(self, arguments: dict):
        super().__init__()
        self.arguments = arguments

    def forward(self, x, weight):
        return ops.pixel_conv(x, weight, **self.arguments)
