# SPDX-License-Identifier: Apache-2.0
"""Strategy ``native`` of ``pixel_conv``: a kernel is read once for all channels of its group; no window is copied."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from functools import lru_cache

import torch
from torch import Tensor

from convary.errors import ConvaryError
from convary.ops import native, taps
from convary.ops.native_conv import _dense
from convary.ops.strategy import Problem
from convary.ops.window import BORDERS, Window

SIZES = (
    "B", "C", "H", "W", "G", "kernel_h", "kernel_w", "stride_h", "stride_w", "pad_h", "pad_w", "dilation_h",
    "dilation_w", "scale_h", "scale_w", "border", "interleaved", "threads",
)  # fmt: skip


class _Sizes(ctypes.Structure):
    """``convary_pixel_sizes`` of csrc/convary.h."""

    _fields_ = tuple((name, ctypes.c_int64) for name in SIZES)


def why_not(problem: Problem) -> str | None:
    """Why the strategy can't run a problem, or None."""
    if len(problem.kernel_size) == 3:
        return "it takes one or two spatial axes"
    if problem.obstacle is not None or problem.traced:  # the sizes of a recorded graph are known when it runs
        return problem.obstacle
    if min(problem.B, problem.C, *problem.size) == 0:
        return "a tensor is empty"
    if max(problem.B, problem.C, *problem.reach, *problem.out_size) >= 2**31:
        return "a size is beyond 32 bits"
    return None


@lru_cache(maxsize=1024)
def _sizes(x: torch.Size, G: int, window: Window, threads: int) -> tuple[_Sizes, int]:
    """The C structure and its address, for the sizes of one call."""
    one = (1,) * (4 - len(x))  # one spatial axis is a map one row high
    B, C, *size = x
    f = window.scale_factor
    axes = [
        (*one, *window.kernel_size), (*one, *window.stride), (*(0,) * len(one), *window.padding),
        (*one, *window.dilation), (*one, *(f,) * len(size)),
    ]  # fmt: skip
    border, interleaved = BORDERS.index(window.border), window.group_order == "interleaved"
    sizes = _Sizes(B, C, *one, *size, G, *(n for axis in axes for n in axis), border, interleaved, threads)
    return sizes, ctypes.addressof(sizes)


def _call(function: Callable[..., int], x: Sequence[int], G: int, window: Window, *tensors: Tensor) -> None:
    """Raise ConvaryError, naming the sizes, where the library refuses. The last tensor is written."""
    sizes, address = _sizes(torch.Size(x), G, window, torch.get_num_threads())
    dense = [_dense(t) for t in tensors]  # named: a copy must live until the call is over
    code = function(address, *(t.data_ptr() for t in dense))
    if code:
        listed = ", ".join(f"{name}={getattr(sizes, name)}" for name in SIZES)
        text = native.loaded().error_text(code).decode()
        raise ConvaryError(f"the native convolution per position failed: {text}; got {listed}")


def _empty(like: Tensor, shape: Sequence[int]) -> Tensor:
    return like.new_empty(shape)


def forward(x: Tensor, weight: Tensor, window: Window) -> Tensor:
    """The convolution by the native kernel, without a gradient.

    Args:
        x: (B, C, *S), one or two spatial axes.
        weight: (B, G, T, *S_out).
        window: The other arguments.

    Returns:
        (B, C, *S_out), contiguous.

    Raises:
        ConvaryError: the library refuses; the sizes are named.
    """
    y = _empty(x, (*x.shape[:2], *weight.shape[3:]))
    _call(native.loaded().pixel_conv, x.shape, weight.shape[1], window, x, weight, y)
    return y


def gradient_of_x(grad: Tensor, size: Sequence[int], weight: Tensor, window: Window) -> Tensor:
    """The gradient of x, whose size is (B, C, *S), from that of y."""
    grad_x = _empty(grad, size)
    _call(native.loaded().pixel_conv_grad_x, size, weight.shape[1], window, grad, weight, grad_x)
    return grad_x


def gradient_of_weight(grad: Tensor, x: Tensor, size: Sequence[int], window: Window) -> Tensor:
    """The gradient of weight, whose size is (B, G, T, *S_out), from that of y."""
    grad_weight = _empty(grad, size)
    _call(native.loaded().pixel_conv_grad_weight, x.shape, size[1], window, x, grad, grad_weight)
    return grad_weight


def remember(ctx, x: Tensor, weight: Tensor, window: Window) -> None:
    """Keep in an autograd context what :func:`gradients` needs: x and weight, no copy of them."""
    ctx.window = window
    ctx.save_for_backward(x, weight)


def gradients(
    ctx, grad: Tensor, of_x: Callable[..., Tensor], of_weight: Callable[..., Tensor]
) -> tuple[Tensor | None, ...]:
    """The gradients of x and weight that are asked for.

    Args:
        ctx: After :func:`remember`; its first two inputs are these.
        grad: (B, C, *S_out).
        of_x: :func:`gradient_of_x` or its like.
        of_weight: :func:`gradient_of_weight` or its like.
    """
    x, weight = ctx.saved_tensors
    if torch.is_grad_enabled():
        return taps.differentiable_gradients(ctx, x, weight, grad, ctx.window)
    needs_x, needs_weight = ctx.needs_input_grad[:2]
    grad_x = of_x(grad, x.shape, weight, ctx.window) if needs_x else None
    return grad_x, of_weight(grad, x, weight.shape, ctx.window) if needs_weight else None
