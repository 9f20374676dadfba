# SPDX-License-Identifier: Apache-2.0
"""Triton kernels of a convolution with one kernel per sample: products of blocks, gathered on the way (implicit GEMM).

No window of x reaches memory. A block of output positions and channels walks over taps and blocks of input channels;
padding, stride and dilation are arithmetic on positions, so that one kernel serves the convolution and, with the roles
of channels exchanged, its gradient with respect to x. Sums are in float32.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def source(at, tap, stride, step, start, every, size):
    """The position that a tap reads along one axis, and whether it is a whole number and inside."""
    at = at * stride + tap * step + start
    counts = (at >= 0) & (at % every == 0)
    at = at // every
    return at, counts & (at < size)


@triton.jit
def gather(
    x, weight, y,
    C, O, H, W, OH, OW, KW, T,
    stride_h, stride_w, step_h, step_w, start_h, start_w, every_h, every_w,
    x_b, x_c, x_h, x_w, weight_b, weight_g, weight_o, weight_c, weight_t, y_b, y_o, y_h, y_w,
    PRECISION: tl.constexpr, POSITIONS: tl.constexpr, OUT: tl.constexpr, IN: tl.constexpr,
):  # fmt: skip
    """``y[b, g, o, p] = sum_c sum_t weight[b, g, o, c, t] x[b, g, c, (p * stride + t * step + start) / every]``.

    Positions of x that are no whole numbers, or outside, count as 0. C and O are channels of a group.
    """
    b = tl.program_id(2).to(tl.int64)
    blocks = (O + OUT - 1) // OUT
    g = tl.program_id(1) // blocks
    o = (tl.program_id(1) % blocks) * OUT + tl.arange(0, OUT)
    p = tl.program_id(0) * POSITIONS + tl.arange(0, POSITIONS)
    h, w = p // OW, p % OW
    x += b * x_b + g * C * x_c
    weight += b * weight_b + g * weight_g
    total = tl.full((POSITIONS, OUT), 0.0, tl.float32)
    for t in range(T):
        at_h, here_h = source(h, t // KW, stride_h, step_h, start_h, every_h, H)
        at_w, here_w = source(w, t % KW, stride_w, step_w, start_w, every_w, W)
        inside = (p < OH * OW) & here_h & here_w
        places = at_h * x_h + at_w * x_w
        for first in range(0, C, IN):
            c = first + tl.arange(0, IN)
            windows = tl.load(
                x + places[:, None] + c[None, :] * x_c, mask=inside[:, None] & (c < C)[None, :], other=0.0
            )
            taps = tl.load(
                weight + c[:, None] * weight_c + o[None, :] * weight_o + t * weight_t,
                mask=(c < C)[:, None] & (o < O)[None, :],
                other=0.0,
            )
            total = tl.dot(windows, taps, total, input_precision=PRECISION)
    places = h * y_h + w * y_w
    tl.store(
        y + b * y_b + places[:, None] + (g * O + o)[None, :] * y_o,
        total.to(y.dtype.element_ty),
        mask=(p < OH * OW)[:, None] & (o < O)[None, :],
    )


@triton.jit
def correlate(
    x, grad, weight,
    C, O, H, W, OH, OW, KW, T,
    stride_h, stride_w, step_h, step_w, start_h, start_w,
    x_b, x_c, x_h, x_w, grad_b, grad_o, grad_h, grad_w, weight_b, weight_o, weight_c, weight_t,
    PRECISION: tl.constexpr, POSITIONS: tl.constexpr, OUT: tl.constexpr, IN: tl.constexpr,
):  # fmt: skip
    """The gradient of the kernels, ``weight[b, g, o, c, t] = sum_p grad[b, g, o, p] x[b, g, c, q]``.

    Here q is ``p * stride + t * step + start``, and x is 0 outside. C and O are channels of a group.
    """
    b = tl.program_id(2).to(tl.int64)
    blocks = (O + OUT - 1) // OUT
    g = tl.program_id(1) // blocks
    o = (tl.program_id(1) % blocks) * OUT + tl.arange(0, OUT)
    t = tl.program_id(0) % T
    c = (tl.program_id(0) // T) * IN + tl.arange(0, IN)
    x += b * x_b + g * C * x_c
    grad += b * grad_b + g * O * grad_o
    total = tl.full((OUT, IN), 0.0, tl.float32)
    for first in range(0, OH * OW, POSITIONS):
        p = first + tl.arange(0, POSITIONS)
        h, w = p // OW, p % OW
        at_h = h * stride_h + (t // KW) * step_h + start_h
        at_w = w * stride_w + (t % KW) * step_w + start_w
        inside = (p < OH * OW) & (at_h >= 0) & (at_w >= 0) & (at_h < H) & (at_w < W)
        places = at_h * x_h + at_w * x_w
        windows = tl.load(x + places[:, None] + c[None, :] * x_c, mask=inside[:, None] & (c < C)[None, :], other=0.0)
        rows = tl.load(
            grad + o[:, None] * grad_o + (h * grad_h + w * grad_w)[None, :],
            mask=(o < O)[:, None] & (p < OH * OW)[None, :],
            other=0.0,
        )
        total = tl.dot(rows, windows, total, input_precision=PRECISION)
    tl.store(
        weight + b * weight_b + (g * O + o)[:, None] * weight_o + c[None, :] * weight_c + t * weight_t,
        total.to(weight.dtype.element_ty),
        mask=(o < O)[:, None] & (c < C)[None, :],
    )
