# SPDX-License-Identifier: Apache-2.0
"""Strategy ``native`` of ``pixel_conv``: a kernel is read once for all channels of its group; no window is copied."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from convary.ops.native import call, half, library
from convary.ops.native.bridge import NativeOp
from convary.ops.pixel.arguments import spell
from convary.ops.pixel.aten import sum_of_taps
from convary.ops.pixel.window import BORDERS, Window
from convary.ops.shapes import in_format_of

PixelSizes = call.structure(  # convary_pixel_sizes of csrc/convary.h
    "PixelSizes",
    "B", "C", "H", "W", "G", "kernel_h", "kernel_w", "stride_h", "stride_w", "pad_h", "pad_w", "dilation_h",
    "dilation_w", "scale_h", "scale_w", "border", "interleaved", "threads",
)  # fmt: skip


@lru_cache(maxsize=1024)
def _sizes(x: torch.Size, G: int, window: Window, threads: int) -> ctypes.Structure:
    one = (1,) * (4 - len(x))  # one spatial axis is a map one row high
    B, C, *size = x
    f = window.scale_factor
    axes = [
        (*one, *window.kernel_size), (*one, *window.stride), (*(0,) * len(one), *window.padding),
        (*one, *window.dilation), (*one, *(f,) * len(size)),
    ]  # fmt: skip
    border, interleaved = BORDERS.index(window.border), window.group_order == "interleaved"
    return PixelSizes(B, C, *one, *size, G, *(n for axis in axes for n in axis), border, interleaved, threads)


def _call(entry: str, x: Sequence[int], G: int, window: Window, *tensors: Tensor) -> None:
    """The last tensor is written."""
    dense = call.all_dense(*tensors)
    call.call(entry, _sizes(torch.Size(x), G, window, library.threads()), *dense)


def _forward(x: Tensor, weight: Tensor, window: Window) -> Tensor:
    """The convolution (B, C, *S_out)."""
    y = call.empty(x, _y_shape(x.shape, weight.shape, window))
    _call("pixel_conv", x.shape, weight.shape[1], window, x, weight, y)
    return in_format_of(x, y)


def _gradient_of_x(grad: Tensor, size: Sequence[int], weight: Tensor, window: Window) -> Tensor:
    grad_x = call.empty(grad, size)
    _call("pixel_conv_grad_x", size, weight.shape[1], window, grad, weight, grad_x)
    return grad_x


def _gradient_of_weight(grad: Tensor, x: Tensor, weight: Tensor, window: Window) -> list[Tensor]:
    grad_weight = call.empty(grad, weight.shape)
    _call("pixel_conv_grad_weight", x.shape, weight.shape[1], window, x, grad, grad_weight)
    return [grad_weight]


def _check(x: Tensor, weight: Tensor, *window) -> Window:
    """The window of an operator's arguments, checked as in ``pixel_conv``."""
    arguments = spell(x, weight, *window).check()
    NATIVE.check_dtypes(x, weight)
    return arguments.window


def _y_shape(x: Sequence[int], weight: Sequence[int], window: Window) -> tuple[int, ...]:
    return (*x[:2], *weight[3:])


def _flops(y: Sequence[int], weight: Sequence[int], passes: int) -> int:
    """Of y (B, C, *S_out), with weight (B, G, T, *S_out), which is given."""
    return 2 * torch.Size(y).numel() * weight[2]


NATIVE = NativeOp(
    name="pixel_conv",
    portable="taps",
    weights=("Tensor weight",),
    bias=False,
    settings="int[] kernel_size, int[] stride, int[] padding, int[] dilation, str border, str group_order, "
    "int scale_factor",
    kind=Window,
    check=_check,
    y_shape=_y_shape,
    forward=_forward,
    gradient_of_x=_gradient_of_x,
    gradient_of_weights=_gradient_of_weight,
    again=sum_of_taps,
    flops=_flops,
    result=half.of_product,
)
