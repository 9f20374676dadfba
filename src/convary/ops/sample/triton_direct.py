# SPDX-License-Identifier: Apache-2.0
"""Triton kernels of a convolution with one kernel per sample whose groups have few channels: direct sums, no products.

Depthwise layers are bound by memory, and a product of matrices wants 16 channels. So a block of positions and outputs
walks over taps and the few channels that it sums, and x is read once. Sums are in float32.
"""

from __future__ import annotations

import triton
import triton.language as tl

from convary.ops.sample.triton_kernels import source
from convary.ops.triton.reduce import add


@triton.jit
def walk(
    x, weight, y,
    C, O, OUTPUTS, H, W, OH, OW, KW, T,
    stride_h, stride_w, step_h, step_w, start_h, start_w, every_h, every_w,
    x_b, x_c, x_h, x_w, weight_b, weight_g, weight_o, weight_c, weight_t, y_b, y_o, y_h, y_w,
    POSITIONS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """As ``gather`` of triton_kernels.py; C and O are channels of a group, OUTPUTS those of all groups.

    ``y[b, o, p] = sum_c sum_t weight[b, o, c, t] x[b, g(o) C + c, (p * stride + t * step + start) / every]``
    """
    b = tl.program_id(2).to(tl.int64)
    o = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    p = tl.program_id(0) * POSITIONS + tl.arange(0, POSITIONS)
    h, w = p // OW, p % OW
    g = o // O
    kernels = weight + b * weight_b + g * weight_g + (o % O) * weight_o
    features = x + b * x_b + g * C * x_c
    total = tl.full((POSITIONS, CHANNELS), 0.0, tl.float32)
    for t in range(T):
        at_h, here_h = source(h, t // KW, stride_h, step_h, start_h, every_h, H)
        at_w, here_w = source(w, t % KW, stride_w, step_w, start_w, every_w, W)
        inside = (p < OH * OW) & here_h & here_w
        places = at_h * x_h + at_w * x_w
        for c in range(C):
            seen = tl.load(
                features[None, :] + places[:, None] + c * x_c, mask=inside[:, None] & (o < OUTPUTS)[None, :], other=0.0
            )
            taps = tl.load(kernels + c * weight_c + t * weight_t, mask=o < OUTPUTS, other=0.0)
            total += seen.to(tl.float32) * taps.to(tl.float32)[None, :]
    tl.store(
        y + b * y_b + (h * y_h + w * y_w)[:, None] + o[None, :] * y_o,
        total.to(y.dtype.element_ty),
        mask=(p < OH * OW)[:, None] & (o < OUTPUTS)[None, :],
    )


@triton.jit
def compare(
    x, grad, weight,
    C, O, OUTPUTS, H, W, OH, OW, KW, T,
    stride_h, stride_w, step_h, step_w, start_h, start_w,
    x_b, x_c, x_h, x_w, grad_b, grad_o, grad_h, grad_w, weight_b, weight_g, weight_o, weight_c, weight_t,
    POSITIONS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """The gradient of the kernels: ``weight[b, o, c, t] = sum_p grad[b, o, p] x[b, g(o) C + c, q]``.

    Here q is ``p * stride + t * step + start``, and x is 0 outside. A program has one tap and one input channel.
    """
    b = tl.program_id(2).to(tl.int64)
    o = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    t, c = tl.program_id(0) % T, tl.program_id(0) // T
    g = o // O
    features = x + b * x_b + (g * C + c) * x_c
    rows = grad + b * grad_b + o * grad_o
    total = tl.full((CHANNELS,), 0.0, tl.float32)
    for first in range(0, OH * OW, POSITIONS):
        p = first + tl.arange(0, POSITIONS)
        h, w = p // OW, p % OW
        at_h = h * stride_h + (t // KW) * step_h + start_h
        at_w = w * stride_w + (t % KW) * step_w + start_w
        inside = (p < OH * OW) & (at_h >= 0) & (at_w >= 0) & (at_h < H) & (at_w < W)
        mask = inside[:, None] & (o < OUTPUTS)[None, :]
        seen = tl.load(features[None, :] + (at_h * x_h + at_w * x_w)[:, None], mask=mask, other=0.0)
        wanted = tl.load(rows[None, :] + (h * grad_h + w * grad_w)[:, None], mask=mask, other=0.0)
        total += tl.reduce(seen.to(tl.float32) * wanted.to(tl.float32), 0, add)
    tl.store(
        weight + b * weight_b + g * weight_g + (o % O) * weight_o + c * weight_c + t * weight_t,
        total.to(weight.dtype.element_ty),
        mask=o < OUTPUTS,
    )
