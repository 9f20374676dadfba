# SPDX-License-Identifier: Apache-2.0
"""Strategy ``triton``: convolution with one kernel per sample on a GPU, forward and backward, without unfolding.

Nobody has measured it yet, so no estimate chooses it: ``ops.autotune()`` does where it is faster, or
``ops.strategy("triton")``. Its values are tested in Triton's interpreter, which runs kernels on the CPU.
"""

from __future__ import annotations

import importlib.util
import os
from math import prod
from typing import Any

import torch
from torch import Tensor

from convary.errors import StrategyError
from convary.ops.geometry import Geometry
from convary.ops.problem import Problem
from convary.ops.sample.aten import add_bias, grouped
from convary.ops.shapes import in_format_of

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
BLOCK = {"POSITIONS": 64, "OUT": 64, "IN": 32}  # of a program; products want 16 at least
LEAST = 16
MOST = 65535  # kernels: programs along a grid's last axis


def interpreted() -> bool:
    """Whether Triton runs its kernels on the CPU, one program after another: for tests."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def why_not(problem: Problem) -> str | None:
    """Why the kernels can't run a problem, or None."""
    if not problem.device.startswith("cuda") and not (problem.device == "cpu" and interpreted()):
        return f"its kernels run on CUDA devices; x is on {problem.device}"
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed"
    if problem.traced:
        return "graphs record torch's operations there"
    if problem.dtype not in DTYPES:
        return f"x is {problem.dtype}; it takes {', '.join(map(str, DTYPES))}"
    if len(problem.kernel_size) == 3:
        return "it takes one or two spatial axes"
    if min(problem.C, problem.O) // problem.G < LEAST:
        return f"a group has fewer than {LEAST} channels, the least that its products take"
    if min(problem.B, problem.P) == 0:
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


class _Convolution(torch.autograd.Function):
    """Of x (B, C, H, W) with contiguous kernels (B, O, C/G, *k) of its dtype."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, geometry: Geometry) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.geometry = geometry
        (sh, sw), (ph, pw), (dh, dw), G = geometry
        size = geometry.out_size(x.shape[2:], weight.shape[3:])
        y = in_format_of(x, x.new_empty(x.shape[0], weight.shape[1], *size))
        _gather(x, weight, y, G, _strides(weight, G), (sh, sw, dh, dw, -ph, -pw, 1, 1))
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x, weight = ctx.saved_tensors
        if torch.is_grad_enabled():  # gradients that are to be differentiated: by torch's own operations
            leaves = [t for t, needed in zip((x, weight), ctx.needs_input_grad, strict=False) if needed]
            y = grouped(x, weight, None, None, ctx.geometry)
            grads = dict(zip(map(id, leaves), torch.autograd.grad(y, leaves, grad, create_graph=True), strict=True))
            return grads.get(id(x)), grads.get(id(weight)), None
        (sh, sw), (ph, pw), (dh, dw), G = ctx.geometry
        of_x = of_weight = None
        if ctx.needs_input_grad[0]:
            of_x = torch.empty_like(x)
            b, g, o, c, t = _strides(weight, G)  # from outputs to inputs, by each position's own way back
            _gather(grad, weight, of_x, G, (b, g, c, o, t), (1, 1, -dh, -dw, ph, pw, sh, sw))
        if ctx.needs_input_grad[1]:
            of_weight = torch.empty_like(weight)
            _correlate(x, grad, of_weight, G, (sh, sw, dh, dw, -ph, -pw))
        return of_x, of_weight, None


def _strides(weight: Tensor, G: int) -> tuple[int, ...]:
    """Of contiguous kernels (B, O, C/G, *k), in numbers: of samples, groups, output and input channels, taps."""
    _, O, C, *kernel_size = weight.shape
    T = prod(kernel_size)
    return O * C * T, O // G * C * T, C * T, T, 1


def _gather(x: Tensor, weight: Tensor, y: Tensor, G: int, strides: tuple[int, ...], walk: tuple[int, ...]) -> None:
    from convary.ops.sample.triton_kernels import gather

    (B, C, H, W), (_, O, OH, OW) = x.shape, y.shape
    KH, KW = weight.shape[3:]
    sizes = (C // G, O // G, H, W, OH, OW, KW, KH * KW)
    grid = (_blocks(OH * OW, "POSITIONS"), G * _blocks(O // G, "OUT"), B)
    _launch(gather, grid, x, weight, y, *sizes, *walk, *x.stride(), *strides, *y.stride())


def _correlate(x: Tensor, grad: Tensor, weight: Tensor, G: int, walk: tuple[int, ...]) -> None:
    from convary.ops.sample.triton_kernels import correlate

    (B, C, H, W), (_, O, OH, OW) = x.shape, grad.shape
    KH, KW = weight.shape[3:]
    sizes = (C // G, O // G, H, W, OH, OW, KW, KH * KW)
    b, _, o, c, t = _strides(weight, G)
    grid = (_blocks(C // G, "IN") * KH * KW, G * _blocks(O // G, "OUT"), B)
    _launch(correlate, grid, x, grad, weight, *sizes, *walk, *x.stride(), *grad.stride(), b, o, c, t)


def _launch(kernel: Any, grid: tuple[int, ...], x: Tensor, *arguments: Tensor | int) -> None:
    from triton.errors import TritonError

    try:
        with torch.cuda.device_of(x):
            kernel[grid](x, *arguments, PRECISION=_precision(x), **BLOCK)
    except TritonError as error:  # no RuntimeError, which is what tuning leaves out
        raise StrategyError(
            f"Triton can't run strategy 'triton' on {x.device} ({error}); force another, or let ops.autotune() choose"
        ) from error


def _blocks(size: int, axis: str) -> int:
    return -(-size // BLOCK[axis])


def _precision(x: Tensor) -> str:
    """Of products of float32: what torch's own convolutions have."""
    return "tf32" if x.is_cuda and torch.backends.cudnn.allow_tf32 else "ieee"
