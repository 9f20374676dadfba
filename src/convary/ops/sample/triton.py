# SPDX-License-Identifier: Apache-2.0
"""Strategy ``triton``: convolution with one kernel per sample on a GPU, forward and backward, without unfolding.

Groups of 16 channels or more are products of matrices (``triton_kernels.py``), others direct sums
(``triton_direct.py``). Nobody has measured either, so no estimate chooses it until a table of costs has it:
``ops.autotune()`` does where it is faster, or ``ops.strategy("triton")``. Its values are tested in Triton's
interpreter, which runs kernels on the CPU.
"""

from __future__ import annotations

from math import prod
from typing import Any

import torch
from torch import Tensor

from convary.ops.geometry import Geometry
from convary.ops.problem import Problem
from convary.ops.sample.aten import add_bias, grouped
from convary.ops.shapes import in_format_of, is_channels_last
from convary.ops.triton.launch import MOST, blocks, launch, obstacle, tile

BLOCK = {"POSITIONS": 64, "OUT": 64, "IN": 32}  # of a program that multiplies matrices; products want 16 at least
LEAST = 16


def why_not(problem: Problem) -> str | None:
    """Why the kernels can't run a problem, or None."""
    if (reason := obstacle(problem.device, problem.dtype)) is not None:
        return reason
    if problem.traced:
        return "graphs record torch's operations there"
    if len(problem.kernel_size) == 3:
        return "it takes one or two spatial axes"
    if min(problem.B, problem.P, problem.C, problem.O) == 0:
        return "a tensor is empty"
    if problem.B > MOST:
        return f"it takes {MOST} kernels at a time; got {problem.B}"
    return None


def run(x: Tensor, weight: Tensor, bias: Tensor | None, index: Tensor | None, geometry: Geometry) -> Tensor:
    """As :func:`convary.ops.sample_conv`; with ``index``, features are copied."""
    device = x.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
    x, weight = x.to(dtype), weight.to(dtype).contiguous()
    if index is not None:
        x = x.index_select(0, index)
    if x.ndim == 3:  # a line is a map one row high
        line = Geometry((1, *geometry.stride), (0, *geometry.padding), (1, *geometry.dilation), geometry.groups)
        return add_bias(_Convolution.apply(x.unsqueeze(2), weight.unsqueeze(3), line).squeeze(2), bias)
    return add_bias(_Convolution.apply(x, weight, geometry), bias)


def forward(x: Tensor, weight: Tensor, geometry: Geometry) -> Tensor:
    """Of x (B, C, H, W) with contiguous kernels (B, O, C/G, *k) of its dtype."""
    (sh, sw), (ph, pw), (dh, dw), G = geometry
    size = geometry.out_size(x.shape[2:], weight.shape[3:])
    y = in_format_of(x, x.new_empty(x.shape[0], weight.shape[1], *size))
    _gather(x, weight, y, G, _strides(weight, G), (sh, sw, dh, dw, -ph, -pw, 1, 1))
    return y


def gradient_of_x(grad: Tensor, x: Tensor, weight: Tensor, geometry: Geometry) -> Tensor:
    """From outputs to inputs, by each position's own way back; of x only shape and strides count."""
    (sh, sw), (ph, pw), (dh, dw), G = geometry
    of_x = torch.empty_like(x)
    b, g, o, c, t = _strides(weight, G)
    _gather(grad, weight, of_x, G, (b, g, c, o, t), (1, 1, -dh, -dw, ph, pw, sh, sw))
    return of_x


def gradient_of_weight(grad: Tensor, x: Tensor, weight: Tensor, geometry: Geometry) -> Tensor:
    """The gradient of the kernels, of which only the shape counts."""
    (sh, sw), (ph, pw), (dh, dw), G = geometry
    of_weight = torch.empty_like(weight)
    _correlate(x, grad, of_weight, G, (sh, sw, dh, dw, -ph, -pw))
    return of_weight


class _Convolution(torch.autograd.Function):
    """Of x (B, C, H, W) with contiguous kernels (B, O, C/G, *k) of its dtype."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, geometry: Geometry) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.geometry = geometry
        return forward(x, weight, geometry)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x, weight = ctx.saved_tensors
        if torch.is_grad_enabled():  # gradients that are to be differentiated: by torch's own operations
            leaves = [t for t, needed in zip((x, weight), ctx.needs_input_grad, strict=False) if needed]
            y = grouped(x, weight, None, None, ctx.geometry)
            grads = dict(zip(map(id, leaves), torch.autograd.grad(y, leaves, grad, create_graph=True), strict=True))
            return grads.get(id(x)), grads.get(id(weight)), None
        given = (grad, x, weight, ctx.geometry)
        of_x = gradient_of_x(*given) if ctx.needs_input_grad[0] else None
        return of_x, gradient_of_weight(*given) if ctx.needs_input_grad[1] else None, None


def _strides(weight: Tensor, G: int) -> tuple[int, ...]:
    """Of contiguous kernels (B, O, C/G, *k), in numbers: of samples, groups, output and input channels, taps."""
    _, O, C, *kernel_size = weight.shape
    T = prod(kernel_size)
    return O * C * T, O // G * C * T, C * T, T, 1


def _gather(x: Tensor, weight: Tensor, y: Tensor, G: int, strides: tuple[int, ...], walk: tuple[int, ...]) -> None:
    (B, C, H, W), (_, O, OH, OW) = x.shape, y.shape
    KH, KW = weight.shape[3:]
    maps, rest = (H, W, OH, OW, KW, KH * KW), (*walk, *x.stride(), *strides, *y.stride())
    if min(C, O) // G < LEAST:
        from convary.ops.sample import triton_direct

        positions, channels = tile(OH * OW, O, channels_last=is_channels_last(y))
        grid = (blocks(OH * OW, positions), blocks(O, channels), B)
        sizes = (C // G, O // G, O, *maps)
        launch(triton_direct.walk, grid, x, weight, y, *sizes, *rest, POSITIONS=positions, CHANNELS=channels)
        return
    from convary.ops.sample import triton_kernels

    grid = (blocks(OH * OW, BLOCK["POSITIONS"]), G * blocks(O // G, BLOCK["OUT"]), B)
    sizes = (C // G, O // G, *maps)
    launch(triton_kernels.gather, grid, x, weight, y, *sizes, *rest, PRECISION=_precision(x), **BLOCK)


def _correlate(x: Tensor, grad: Tensor, weight: Tensor, G: int, walk: tuple[int, ...]) -> None:
    (B, C, H, W), (_, O, OH, OW) = x.shape, grad.shape
    KH, KW = weight.shape[3:]
    maps, rest = (H, W, OH, OW, KW, KH * KW), (*walk, *x.stride(), *grad.stride())
    b, g, o, c, t = _strides(weight, G)
    if min(C, O) // G < LEAST:
        from convary.ops.sample import triton_direct

        positions, channels = tile(OH * OW, O, channels_last=is_channels_last(x))
        grid, sizes = (C // G * KH * KW, blocks(O, channels), B), (C // G, O // G, O, *maps)
        blocked = {"POSITIONS": positions, "CHANNELS": channels}
        launch(triton_direct.compare, grid, x, grad, weight, *sizes, *rest, b, g, o, c, t, **blocked)
        return
    from convary.ops.sample import triton_kernels

    grid = (blocks(C // G, BLOCK["IN"]) * KH * KW, G * blocks(O // G, BLOCK["OUT"]), B)
    sizes = (C // G, O // G, *maps)
    precise = {"PRECISION": _precision(x), **BLOCK}
    launch(triton_kernels.correlate, grid, x, grad, weight, *sizes, *rest, b, o, c, t, **precise)


def _precision(x: Tensor) -> str:
    """Of products of float32: what torch's own convolutions have."""
    return "tf32" if x.is_cuda and torch.backends.cudnn.allow_tf32 else "ieee"
