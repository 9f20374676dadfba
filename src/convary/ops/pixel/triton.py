# SPDX-License-Identifier: Apache-2.0
"""Strategy ``triton`` of ``pixel_conv``: one pass on a GPU where strategy ``taps`` has one per tap; both gradients.

Nobody has measured it, so no estimate chooses it until a table of costs has it. Its values are tested in Triton's
interpreter.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from convary.ops.native.autograd import apply, differentiable
from convary.ops.pixel.aten import sum_of_taps
from convary.ops.pixel.window import BORDERS, Window
from convary.ops.problem import Problem
from convary.ops.shapes import in_format_of, is_channels_last
from convary.ops.triton.launch import MOST, blocks, launch, obstacle, tile

SIZES = 10  # of the arguments that all kernels share; the window's follow


def why_not(problem: Problem) -> str | None:
    """Why the kernels can't run a problem, or None."""
    if (reason := obstacle(problem.device, problem.dtype)) is not None:
        return reason
    if problem.traced:
        return "graphs record torch's operations there, of which a compiler makes one loop"
    if len(problem.kernel_size) == 3:
        return "it takes one or two spatial axes"
    if min(problem.B, problem.C, problem.P) == 0:
        return "a tensor is empty"
    if max(problem.B, problem.C) > MOST:
        return f"it takes {MOST} samples and channels; got {problem.B} and {problem.C}"
    return None


def run(x: Tensor, weight: Tensor, window: Window) -> Tensor:
    """``pixel_conv`` after its checks."""
    dtype = torch.promote_types(x.dtype, weight.dtype)  # they differ under autocast
    features, kernels = x.to(dtype), weight.to(dtype).contiguous()
    return in_format_of(x, apply(_Filter, features, kernels, window))


class _Filter(torch.autograd.Function):
    """Keeps x and weight for the backward pass and nothing else."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, window: Window) -> Tensor:
        ctx.window = window
        ctx.save_for_backward(x, weight)
        return _filtered(x, weight, window)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        needed = ctx.needs_input_grad[:2]
        if torch.is_grad_enabled():
            again = lambda x, weight: sum_of_taps(x, weight, ctx.window)  # noqa: E731
            return *differentiable(again, (x, weight), needed, grad), None
        of_x = _gradient_of_x(grad, x, weight, ctx.window) if needed[0] else None
        return of_x, _gradient_of_weight(grad, x, weight, ctx.window) if needed[1] else None, None


class _Flat(NamedTuple):
    """A window over a map; a line is a map one row high."""

    kernel: list[int]
    stride: list[int]
    pad: list[int]
    dilation: list[int]
    reach: list[int]


def _flat(window: Window) -> _Flat:
    line = 2 - len(window.kernel_size)
    fields = (window.kernel_size, window.stride, window.padding, window.dilation, window.reach)
    return _Flat(*([int(name != "pad")] * line + list(v) for name, v in zip(_Flat._fields, fields, strict=True)))


def _as_map(tensor: Tensor, axes: int) -> Tensor:
    """A tensor with so many axes before the spatial ones: with two of these."""
    return tensor if tensor.ndim == axes + 2 else tensor.unsqueeze(axes)


def _steps(C: int, G: int, window: Window) -> tuple[int, int, int]:
    """Channels of a group, from one of them to the next, and from one group to the next."""
    return (C // G, 1, C // G) if window.group_order == "contiguous" else (C // G, G, 1)


def _filtered(x: Tensor, weight: Tensor, window: Window) -> Tensor:
    from convary.ops.pixel import triton_kernels

    y = in_format_of(x, x.new_empty(*x.shape[:2], *weight.shape[3:]))
    grid, block = _programs(y, weight.shape[1])
    given, strides = _as_map(x, 2), (*_as_map(x, 2).stride(), *weight.stride()[:3], *_as_map(y, 2).stride())
    border = {"BORDER": BORDERS.index(window.border)}
    launch(
        triton_kernels.filter, grid, given, weight, y, *_arguments(given, weight, window), *strides, **border, **block
    )
    return y


def _gradient_of_weight(grad: Tensor, x: Tensor, weight: Tensor, window: Window) -> Tensor:
    from convary.ops.pixel import triton_kernels

    found, T, P = torch.empty_like(weight), weight.shape[2], weight[0, 0, 0].numel()
    _, block = _programs(grad, weight.shape[1])
    grid = (T * blocks(P, block["POSITIONS"]), weight.shape[1], weight.shape[0])
    x, grad = _as_map(x, 2), _as_map(grad, 2)
    strides = (*x.stride(), *grad.stride(), *found.stride()[:3])
    border = {"BORDER": BORDERS.index(window.border)}
    arguments = (x, grad, found, *_arguments(x, weight, window), *strides)
    launch(triton_kernels.gradient_of_weight, grid, *arguments, **border, **block)
    return found


def _gradient_of_x(grad: Tensor, x: Tensor, weight: Tensor, window: Window) -> Tensor:
    """What the other borders read outside x is folded back by torch's own rules for its padding."""
    if window.border in ("zeros", "clamp") or not any(window.padding):
        return _came_from(grad, x, weight, window)
    with torch.enable_grad():
        leaf = x.detach().requires_grad_()
        padded = F.pad(leaf, [p for p in reversed(window.padding) for _ in range(2)], mode=window.border)
    inner = window._replace(padding=(0,) * len(window.padding))
    return torch.autograd.grad(padded, leaf, _came_from(grad, padded.detach(), weight, inner))[0]


def _came_from(grad: Tensor, x: Tensor, weight: Tensor, window: Window) -> Tensor:
    from convary.ops.pixel import triton_kernels

    found, flat = torch.empty_like(x), _flat(window)
    grid, block = _programs(found, weight.shape[1])
    given, grad = _as_map(found, 2), _as_map(grad, 2)
    windows = [1] * (2 - len(window.stride)) + window.count(x.shape[2:])
    extra = [1, 1]
    if window.border == "clamp":
        extra = [_most(*axis) for axis in zip(given.shape[2:], windows, flat.stride, flat.pad, flat.reach, strict=True)]
    both = _arguments(given, weight, window)
    sizes, geometry = both[:SIZES], both[SIZES:]
    strides = (*grad.stride(), *weight.stride()[:3], *given.stride())
    arguments = (grad, weight, given, *sizes, *windows, *extra, *geometry, *strides)
    launch(triton_kernels.gradient_of_x, grid, *arguments, CLAMP=window.border == "clamp", **block)
    return found


def _most(size: int, windows: int, stride: int, pad: int, reach: int) -> int:
    """How many windows of an axis start at the same place at most, where they are moved until they lie inside."""
    last = size - reach
    if last == 0:
        return windows
    return max(1, min(windows, pad // stride + 1), windows - blocks(last + pad, stride))


def _arguments(x: Tensor, weight: Tensor, window: Window) -> tuple[int, ...]:
    """Sizes, then the window, in the order of the kernels; x is a map."""
    kernel, *geometry = _flat(window)
    (_, C, *size), out_size = x.shape, _as_map(weight, 3).shape[3:]
    sizes = (*_steps(C, weight.shape[1], window), *size, *out_size, kernel[1], weight.shape[2], window.scale_factor)
    return *sizes, *(n for axis in geometry for n in axis)


def _programs(y: Tensor, G: int) -> tuple[tuple[int, int, int], dict[str, int]]:
    """The grid and the block of a kernel that writes y (B, C, *S): a block's channels are of one group."""
    B, C, *size = y.shape
    P = torch.Size(size).numel()
    positions, channels = tile(P, C // G, channels_last=is_channels_last(y))
    grid = (blocks(P, positions), G * blocks(C // G, channels), B)
    return grid, {"POSITIONS": positions, "CHANNELS": channels}
