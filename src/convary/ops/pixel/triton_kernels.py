# SPDX-License-Identifier: Apache-2.0
"""Triton kernels of a convolution with one kernel per position: one pass over features, kernels and results.

Each kernel works on blocks of positions; a position's weights are read once for a block of its group's channels. What
lies outside x is arithmetic on positions, so nothing is padded. Sums are in float32.
"""

from __future__ import annotations

import triton
import triton.language as tl

from convary.ops.triton.reduce import add


@triton.jit
def place(window, tap, stride, pad, dilation, reach, size, BORDER: tl.constexpr):
    """Where a tap of a window reads along one axis, and whether that counts; BORDER as in ``window.BORDERS``."""
    start = window * stride - pad
    if BORDER == 4:  # clamp: the whole window is moved until it lies inside
        start = tl.minimum(tl.maximum(start, 0), size - reach)
    at = start + tap * dilation
    counts = (at >= 0) & (at < size)
    if BORDER == 1:
        at = tl.minimum(tl.maximum(at, 0), size - 1)
    if BORDER == 2:
        at = (size - 1) - tl.abs((size - 1) - tl.abs(at))
    if BORDER == 3:
        at = (at + size) % size
    if BORDER > 0:
        counts = at >= 0
    return at, counts


@triton.jit
def filter(
    x, weight, y,
    CG, CHANNEL_STEP, GROUP_STEP, H, W, OH, OW, KW, T, F,
    stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w, reach_h, reach_w,
    x_b, x_c, x_h, x_w, weight_b, weight_g, weight_t, y_b, y_c, y_h, y_w,
    BORDER: tl.constexpr, POSITIONS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """``y[b, c, p] = sum_t weight[b, g, t, p] x[b, c, at(p, t)]``, c = g GROUP_STEP + i CHANNEL_STEP.

    g is a group and i one of its CG channels, F output positions of a window along each axis.
    """
    b = tl.program_id(2).to(tl.int64)
    blocks = (CG + CHANNELS - 1) // CHANNELS
    g = tl.program_id(1) // blocks
    i = (tl.program_id(1) % blocks) * CHANNELS + tl.arange(0, CHANNELS)
    c = g * GROUP_STEP + i * CHANNEL_STEP
    p = tl.program_id(0) * POSITIONS + tl.arange(0, POSITIONS)
    h, w = p // OW, p % OW
    x += b * x_b
    weight += b * weight_b + g * weight_g
    total = tl.full((POSITIONS, CHANNELS), 0.0, tl.float32)
    for t in range(T):
        at_h, here_h = place(h // F, t // KW, stride_h, pad_h, dilation_h, reach_h, H, BORDER)
        at_w, here_w = place(w // F, t % KW, stride_w, pad_w, dilation_w, reach_w, W, BORDER)
        inside = (p < OH * OW) & here_h & here_w
        own = tl.load(weight + t * weight_t + p, mask=inside, other=0.0).to(tl.float32)
        seen = tl.load(
            x + (at_h * x_h + at_w * x_w)[:, None] + c[None, :] * x_c,
            mask=inside[:, None] & (i < CG)[None, :],
            other=0.0,
        )
        total += own[:, None] * seen.to(tl.float32)
    tl.store(
        y + b * y_b + (h * y_h + w * y_w)[:, None] + c[None, :] * y_c,
        total.to(y.dtype.element_ty),
        mask=(p < OH * OW)[:, None] & (i < CG)[None, :],
    )


@triton.jit
def gradient_of_weight(
    x, grad, weight,
    CG, CHANNEL_STEP, GROUP_STEP, H, W, OH, OW, KW, T, F,
    stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w, reach_h, reach_w,
    x_b, x_c, x_h, x_w, grad_b, grad_c, grad_h, grad_w, weight_b, weight_g, weight_t,
    BORDER: tl.constexpr, POSITIONS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """``weight[b, g, t, p] = sum_c grad[b, c, p] x[b, c, at(p, t)]`` over a group; a program has one tap."""
    b = tl.program_id(2).to(tl.int64)
    g = tl.program_id(1)
    t = tl.program_id(0) % T
    p = (tl.program_id(0) // T) * POSITIONS + tl.arange(0, POSITIONS)
    h, w = p // OW, p % OW
    at_h, here_h = place(h // F, t // KW, stride_h, pad_h, dilation_h, reach_h, H, BORDER)
    at_w, here_w = place(w // F, t % KW, stride_w, pad_w, dilation_w, reach_w, W, BORDER)
    inside = (p < OH * OW) & here_h & here_w
    x += b * x_b
    grad += b * grad_b
    total = tl.full((POSITIONS,), 0.0, tl.float32)
    for first in range(0, CG, CHANNELS):
        i = first + tl.arange(0, CHANNELS)
        c = g * GROUP_STEP + i * CHANNEL_STEP
        mask = inside[:, None] & (i < CG)[None, :]
        seen = tl.load(x + (at_h * x_h + at_w * x_w)[:, None] + c[None, :] * x_c, mask=mask, other=0.0)
        wanted = tl.load(grad + (h * grad_h + w * grad_w)[:, None] + c[None, :] * grad_c, mask=mask, other=0.0)
        total += tl.reduce(seen.to(tl.float32) * wanted.to(tl.float32), 1, add)
    tl.store(
        weight + b * weight_b + g * weight_g + t * weight_t + p, total.to(weight.dtype.element_ty), mask=p < OH * OW
    )


@triton.jit
def came_from(at, tap, extra, stride, pad, dilation, reach, size, windows, CLAMP: tl.constexpr):
    """The ``extra``-th window whose tap reads ``at`` along one axis, and whether there is one."""
    start = at - tap * dilation
    n = (start + pad) // stride
    if CLAMP:
        last = size - reach
        n = tl.where(start == 0, 0, tl.where(start == last, (last + pad + stride - 1) // stride, n)) + extra
        moved = tl.minimum(tl.maximum(n * stride - pad, 0), last)
    else:
        moved = n * stride - pad
    return n, (n >= 0) & (n < windows) & (moved == start)


@triton.jit
def gradient_of_x(
    grad, weight, x,
    CG, CHANNEL_STEP, GROUP_STEP, H, W, OH, OW, KW, T, F, NH, NW, EXTRA_H, EXTRA_W,
    stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w, reach_h, reach_w,
    grad_b, grad_c, grad_h, grad_w, weight_b, weight_g, weight_t, x_b, x_c, x_h, x_w,
    CLAMP: tl.constexpr, POSITIONS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """``x[b, c, q] = sum of weight[b, g, t, p] grad[b, c, p]`` over the p and t that read q; NH x NW windows.

    Nobody else writes a position of x, so sums have one order. At a border that moves windows several read the same:
    EXTRA_H x EXTRA_W at most.
    """
    b = tl.program_id(2).to(tl.int64)
    blocks = (CG + CHANNELS - 1) // CHANNELS
    g = tl.program_id(1) // blocks
    i = (tl.program_id(1) % blocks) * CHANNELS + tl.arange(0, CHANNELS)
    c = g * GROUP_STEP + i * CHANNEL_STEP
    q = tl.program_id(0) * POSITIONS + tl.arange(0, POSITIONS)
    at_h, at_w = q // W, q % W
    grad += b * grad_b
    weight += b * weight_b + g * weight_g
    total = tl.full((POSITIONS, CHANNELS), 0.0, tl.float32)
    for t in range(T):
        for more in range(EXTRA_H * EXTRA_W):
            n_h, here_h = came_from(at_h, t // KW, more // EXTRA_W, stride_h, pad_h, dilation_h, reach_h, H, NH, CLAMP)
            n_w, here_w = came_from(at_w, t % KW, more % EXTRA_W, stride_w, pad_w, dilation_w, reach_w, W, NW, CLAMP)
            inside = (q < H * W) & here_h & here_w
            for f in range(F * F):
                h, w = n_h * F + f // F, n_w * F + f % F
                real = inside & (h < OH)  # a line, one position high, has one also where windows have several
                own = tl.load(weight + t * weight_t + h * OW + w, mask=real, other=0.0).to(tl.float32)
                wanted = tl.load(
                    grad + (h * grad_h + w * grad_w)[:, None] + c[None, :] * grad_c,
                    mask=real[:, None] & (i < CG)[None, :],
                    other=0.0,
                )
                total += own[:, None] * wanted.to(tl.float32)
    tl.store(
        x + b * x_b + (at_h * x_h + at_w * x_w)[:, None] + c[None, :] * x_c,
        total.to(x.dtype.element_ty),
        mask=(q < H * W)[:, None] & (i < CG)[None, :],
    )
