# SPDX-License-Identifier: Apache-2.0
"""Strategy ``native`` of ``pixel_conv`` as torch sees it: differentiable, and as operators.

``torch.ops.convary.pixel_conv`` is the forward; its gradients are ``pixel_conv_grad_x`` and
``pixel_conv_grad_weight``, which have none of their own.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from convary.ops import autograd, native_pixel, operators
from convary.ops.strategy import is_watched, needs_gradient
from convary.ops.window import Window, resolve

WINDOW = "int[] kernel_size, int[] stride, int[] padding, int[] dilation, str border, str group_order, int scale_factor"


def run(x: Tensor, weight: Tensor, window: Window) -> Tensor:
    """Strategy ``native``: ``pixel_conv`` after its checks."""
    if is_watched(x, weight):
        return torch.ops.convary.pixel_conv.default(x, weight, *window)
    if needs_gradient(x, weight):
        return autograd.apply(_Eager, x, weight, window)
    return native_pixel.forward(x, weight, window)


class _Eager(torch.autograd.Function):
    """Forward and backward by the native kernels."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, window: Window) -> Tensor:
        native_pixel.remember(ctx, x, weight, window)
        return native_pixel.forward(x, weight, window)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        if is_watched(grad):
            found = native_pixel.gradients(ctx, grad, _of_x, _of_weight)
        else:
            found = native_pixel.gradients(ctx, grad, native_pixel.gradient_of_x, native_pixel.gradient_of_weight)
        return *found, None


def _checked(x: Tensor, weight: Tensor, rest: Sequence) -> Window:
    """The window; checked as in ``pixel_conv``, for the kernels trust the sizes they are told."""
    window = resolve(x, weight, *rest)
    operators.check_dtype(x, "pixel_conv", "taps")
    return window


def _conv(x: Tensor, weight: Tensor, *rest) -> Tensor:
    window = _checked(x, weight, rest)
    if x.numel() and weight.numel():
        return native_pixel.forward(x, weight, window)
    return x.new_zeros(*x.shape[:2], *weight.shape[3:])


def _conv_fake(x: Tensor, weight: Tensor, *rest) -> Tensor:
    _checked(x, weight, rest)
    return x.new_empty(*x.shape[:2], *weight.shape[3:])


def _grad_x(grad: Tensor, size: Sequence[int], weight: Tensor, *rest) -> Tensor:
    x = operators.shaped(grad, size)
    window = _checked(x, weight, rest)
    operators.check_grad(grad, (*size[:2], *weight.shape[3:]), x)
    if x.numel() and weight.numel():
        return native_pixel.gradient_of_x(grad, size, weight, window)
    return grad.new_zeros(size)


def _grad_x_fake(grad: Tensor, size: Sequence[int], weight: Tensor, *rest) -> Tensor:
    x = grad.new_empty(size)
    _checked(x, weight, rest)
    operators.check_grad(grad, (*size[:2], *weight.shape[3:]), x)
    return x


def _grad_weight(grad: Tensor, x: Tensor, size: Sequence[int], *rest) -> Tensor:
    weight = operators.shaped(grad, size)
    window = _checked(x, weight, rest)
    operators.check_grad(grad, (*x.shape[:2], *size[3:]), x)
    if x.numel() and weight.numel():
        return native_pixel.gradient_of_weight(grad, x, size, window)
    return grad.new_zeros(size)


def _grad_weight_fake(grad: Tensor, x: Tensor, size: Sequence[int], *rest) -> Tensor:
    weight = grad.new_empty(size)
    _checked(x, weight, rest)
    operators.check_grad(grad, (*x.shape[:2], *size[3:]), x)
    return weight


def _setup_context(ctx, inputs: tuple, output: Tensor) -> None:
    x, weight, kernel_size, stride, padding, dilation, *rest = inputs
    window = Window(tuple(kernel_size), tuple(stride), tuple(padding), tuple(dilation), *rest)
    native_pixel.remember(ctx, x, weight, window)


def _backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
    return *native_pixel.gradients(ctx, grad, _of_x, _of_weight), *[None] * len(ctx.window)


def _of_x(grad: Tensor, size: torch.Size, weight: Tensor, window: Window) -> Tensor:
    return torch.ops.convary.pixel_conv_grad_x.default(grad, size, weight, *window)


def _of_weight(grad: Tensor, x: Tensor, size: torch.Size, window: Window) -> Tensor:
    return torch.ops.convary.pixel_conv_grad_weight.default(grad, x, size, *window)


def _flops(y: Sequence[int], weight: Sequence[int]) -> int:
    """Of y (B, C, *S_out) or a gradient, with weight (B, G, T, *S_out)."""
    return 2 * torch.Size(y).numel() * weight[2]


_conv_flops, _grad_x_flops, _grad_weight_flops = operators.flop_formulas(_flops)

operators.register(
    "pixel_conv",
    f"(Tensor x, Tensor weight, {WINDOW}) -> Tensor",
    _conv,
    _conv_fake,
    _conv_flops,
    _backward,
    setup_context=_setup_context,
)
operators.register(
    "pixel_conv_grad_x",
    f"(Tensor grad, SymInt[] size, Tensor weight, {WINDOW}) -> Tensor",
    _grad_x,
    _grad_x_fake,
    _grad_x_flops,
)
operators.register(
    "pixel_conv_grad_weight",
    f"(Tensor grad, Tensor x, SymInt[] size, {WINDOW}) -> Tensor",
    _grad_weight,
    _grad_weight_fake,
    _grad_weight_flops,
)
