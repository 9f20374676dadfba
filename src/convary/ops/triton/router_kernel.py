# SPDX-License-Identifier: Apache-2.0
"""A router as one Triton kernel: pooling, hidden layer, normalisation, last layer, activations. A program is a sample.

Sums are in float32. Weights are read by every program; they are small and stay in the cache.
"""

# pyright: reportGeneralTypeIssues=false, reportOperatorIssue=false, reportArgumentType=false
# Triton compiles these functions, whose compile-time arguments and returns no checker of Python knows.

from __future__ import annotations

import triton
import triton.language as tl

from convary.ops.triton.reduce import add, larger


@triton.jit
def activated(logits, inside, SOFTMAX: tl.constexpr):
    """Of one piece: the sigmoid of each, or the softmax over those inside."""
    if SOFTMAX:
        logits = tl.where(inside, logits, -float("inf"))
        logits = tl.exp(logits - tl.reduce(logits, 0, larger))
        return logits / tl.reduce(logits, 0, add)
    return 1.0 / (1.0 + tl.exp(-logits))


@triton.jit
def of_pooled(
    x, weight, j, C, P, WIDTH, x_c, x_p, HIDDEN: tl.constexpr, POSITIONS: tl.constexpr, CHANNELS: tl.constexpr
):  # fmt: skip
    """A layer (WIDTH, C) of the means of x over its P positions: unit j."""
    total = tl.full((HIDDEN,), 0.0, tl.float32)
    for start in range(0, C, CHANNELS):
        c = start + tl.arange(0, CHANNELS)
        pooled = tl.full((CHANNELS,), 0.0, tl.float32)
        for first in range(0, P, POSITIONS):
            p = first + tl.arange(0, POSITIONS)
            seen = tl.load(x + c[:, None] * x_c + p[None, :] * x_p, mask=(c < C)[:, None] & (p < P)[None, :], other=0.0)
            pooled += tl.reduce(seen.to(tl.float32), 1, add)
        weights = tl.load(weight + j[:, None] * C + c[None, :], mask=(j < WIDTH)[:, None] & (c < C)[None, :], other=0.0)
        total += tl.reduce(weights.to(tl.float32) * (pooled / P)[None, :], 1, add)
    return total


@triton.jit
def of_sample(
    x, squeeze, squeeze_bias, mean, variance, gain, shift, last, last_bias, temperature, out,
    B, C, P, WIDTH, EPSILON, LENGTH_0, LENGTH_1, LENGTH_2, LENGTH_3, x_b, x_c, x_p,
    HIDDEN: tl.constexpr, HAS_SQUEEZE: tl.constexpr, HAS_SQUEEZE_BIAS: tl.constexpr, HAS_NORM: tl.constexpr,
    HAS_LAST_BIAS: tl.constexpr, HAS_TEMPERATURE: tl.constexpr, SOFTMAX: tl.constexpr, PIECES: tl.constexpr,
    POSITIONS: tl.constexpr, CHANNELS: tl.constexpr, OUT: tl.constexpr, REST: tl.constexpr,
):  # fmt: skip
    """The pieces of the coefficients of a sample; piece i is (B, LENGTH_i), after those before it.

    WIDTH is the length of what is made of the pooled vector, padded to HIDDEN: the hidden layer, or without one the
    logits themselves. With SOFTMAX the last piece gets one, all others a sigmoid.
    """
    b = tl.program_id(0).to(tl.int64)
    j = tl.arange(0, HIDDEN)
    hidden = of_pooled(
        x + b * x_b, squeeze if HAS_SQUEEZE else last, j, C, P, WIDTH, x_c, x_p, HIDDEN, POSITIONS, CHANNELS
    )
    if HAS_SQUEEZE:
        if HAS_SQUEEZE_BIAS:
            hidden += tl.load(squeeze_bias + j, mask=j < WIDTH, other=0.0).to(tl.float32)
        if HAS_NORM:
            scale = tl.load(gain + j, mask=j < WIDTH, other=0.0).to(tl.float32)
            scale = scale / tl.sqrt(tl.load(variance + j, mask=j < WIDTH, other=1.0).to(tl.float32) + EPSILON)
            hidden = (hidden - tl.load(mean + j, mask=j < WIDTH, other=0.0).to(tl.float32)) * scale
            hidden += tl.load(shift + j, mask=j < WIDTH, other=0.0).to(tl.float32)
        hidden = tl.maximum(hidden, 0.0)
    heat = 1.0
    if HAS_TEMPERATURE:
        heat = tl.load(temperature).to(tl.float32)
    before = 0
    for piece in tl.static_range(PIECES):
        length = LENGTH_0
        if piece == 1:
            length = LENGTH_1
        if piece == 2:
            length = LENGTH_2
        if piece == 3:
            length = LENGTH_3
        own = out + B * before + b * length
        if HAS_SQUEEZE:
            # A softmax needs its piece at once, sigmoids go block by block.
            if SOFTMAX and piece == PIECES - 1:
                i = tl.arange(0, REST)
                logits = head(last, last_bias, hidden, before, i, length, j, WIDTH, HAS_LAST_BIAS)
                tl.store(own + i, activated(logits / heat, i < length, True).to(out.dtype.element_ty), mask=i < length)
            else:
                for start in range(0, length, OUT):
                    i = start + tl.arange(0, OUT)
                    logits = head(last, last_bias, hidden, before, i, length, j, WIDTH, HAS_LAST_BIAS)
                    values = activated(logits / heat, i < length, False)
                    tl.store(own + i, values.to(out.dtype.element_ty), mask=i < length)
        else:
            if HAS_LAST_BIAS:
                hidden += tl.load(last_bias + j, mask=j < WIDTH, other=0.0).to(tl.float32)
            values = activated(hidden / heat, j < length, SOFTMAX)
            tl.store(own + j, values.to(out.dtype.element_ty), mask=j < length)
        before += length


@triton.jit
def head(last, last_bias, hidden, before, i, length, j, WIDTH, HAS_LAST_BIAS: tl.constexpr):
    """Logits i of the piece that begins at ``before``."""
    weights = tl.load(
        last + (before + i)[:, None] * WIDTH + j[None, :], mask=(i < length)[:, None] & (j < WIDTH)[None, :], other=0.0
    )
    logits = tl.reduce(weights.to(tl.float32) * hidden[None, :], 1, add)
    if HAS_LAST_BIAS:
        logits += tl.load(last_bias + before + i, mask=i < length, other=0.0).to(tl.float32)
    return logits
