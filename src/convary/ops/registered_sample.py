# SPDX-License-Identifier: Apache-2.0
"""Strategy ``native`` of ``sample_conv`` as torch sees it: differentiable, and as operators.

``torch.ops.convary.sample_conv`` is the forward; its gradients are ``sample_conv_grad_x`` and
``sample_conv_grad_weight``, which have none of their own.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from convary.ops import autograd, native_sample, operators
from convary.ops.geometry import Geometry, check_conv, resolve
from convary.ops.instances import check_kernels
from convary.ops.strategy import is_watched, needs_gradient


def run(x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry, index: Tensor | None) -> Tensor:
    """Strategy ``native``: ``sample_conv`` after its checks."""
    if is_watched(x, weight):
        y = torch.ops.convary.sample_conv.default(x, weight, bias, index, *geometry)
    elif needs_gradient(x, weight, bias):
        y = autograd.apply(_Eager, x, weight, bias, index, geometry)
    else:
        y = native_sample.forward(x, weight, bias, geometry, index)
    return operators.in_format_of(x, y)


class _Eager(torch.autograd.Function):
    """Forward and backward by the native kernels."""

    @staticmethod
    def forward(
        ctx, x: Tensor, weight: Tensor, bias: Tensor | None, index: Tensor | None, geometry: Geometry
    ) -> Tensor:
        native_sample.remember(ctx, x, weight, bias, index, geometry)
        return native_sample.forward(x, weight, bias, geometry, index)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        if is_watched(grad):
            found = native_sample.gradients(ctx, grad, _of_x, _of_weight)
        else:
            found = native_sample.gradients(ctx, grad, native_sample.gradient_of_x, native_sample.gradient_of_weight)
        return *found, None, None


def _checked(x: Tensor, weight: Tensor, bias: Tensor | None, index: Tensor | None, geometry: Sequence) -> Geometry:
    """The geometry; checked as in ``sample_conv``, for the kernels trust the sizes they are told."""
    x, resolved = resolve(x, weight.shape[3:], *geometry)
    check_conv(x, weight, resolved, mixed_dtypes=False)
    check_kernels(x, weight, bias, index)
    operators.check_dtype(x, "sample_conv")
    return resolved


def _y_shape(x: Tensor, weight: Tensor, geometry: Geometry) -> tuple[int, ...]:
    return (*weight.shape[:2], *geometry.out_size(x.shape[2:], weight.shape[3:]))


def _conv(x: Tensor, weight: Tensor, bias: Tensor | None, index: Tensor | None, *rest) -> Tensor:
    geometry = _checked(x, weight, bias, index, rest)
    if x.numel() and weight.numel():
        return native_sample.forward(x, weight, bias, geometry, index)
    return operators.of_nothing(x, _y_shape(x, weight, geometry), bias)


def _conv_fake(x: Tensor, weight: Tensor, bias: Tensor | None, index: Tensor | None, *rest) -> Tensor:
    geometry = _checked(x, weight, bias, index, rest)
    return x.new_empty(_y_shape(x, weight, geometry))


def _grad_x(grad: Tensor, size: Sequence[int], weight: Tensor, index: Tensor | None, *rest) -> Tensor:
    x = operators.shaped(grad, size)
    geometry = _checked(x, weight, None, index, rest)
    operators.check_grad(grad, _y_shape(x, weight, geometry), x)
    if grad.numel() and weight.numel():
        return native_sample.gradient_of_x(grad, size, weight, geometry, index)
    return grad.new_zeros(size)


def _grad_x_fake(grad: Tensor, size: Sequence[int], weight: Tensor, index: Tensor | None, *rest) -> Tensor:
    x = grad.new_empty(size)
    geometry = _checked(x, weight, None, index, rest)
    operators.check_grad(grad, _y_shape(x, weight, geometry), x)
    return x


def _grad_weight(grad: Tensor, x: Tensor, size: Sequence[int], index: Tensor | None, *rest) -> Tensor:
    weight = operators.shaped(grad, size)
    geometry = _checked(x, weight, None, index, rest)
    operators.check_grad(grad, _y_shape(x, weight, geometry), x)
    if x.numel() and weight.numel():
        return native_sample.gradient_of_weight(grad, x, size, geometry, index)
    return grad.new_zeros(size)


def _grad_weight_fake(grad: Tensor, x: Tensor, size: Sequence[int], index: Tensor | None, *rest) -> Tensor:
    weight = grad.new_empty(size)
    geometry = _checked(x, weight, None, index, rest)
    operators.check_grad(grad, _y_shape(x, weight, geometry), x)
    return weight


def _setup_context(ctx, inputs: tuple, output: Tensor) -> None:
    x, weight, bias, index, stride, padding, dilation, groups = inputs
    geometry = Geometry(tuple(stride), tuple(padding), tuple(dilation), groups)
    native_sample.remember(ctx, x, weight, bias, index, geometry)


def _backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
    return *native_sample.gradients(ctx, grad, _of_x, _of_weight), *[None] * 5


def _of_x(grad: Tensor, size: torch.Size, weight: Tensor, geometry: Geometry, index: Tensor | None) -> Tensor:
    return torch.ops.convary.sample_conv_grad_x.default(grad, size, weight, index, *geometry)


def _of_weight(grad: Tensor, x: Tensor, size: torch.Size, geometry: Geometry, index: Tensor | None) -> Tensor:
    return torch.ops.convary.sample_conv_grad_weight.default(grad, x, size, index, *geometry)


def _flops(out: Sequence[int], weight: Sequence[int]) -> int:
    """Of y (N, O, *S_out) or its gradient, with weight (N, O, C/G, *k)."""
    return 2 * torch.Size(out).numel() * torch.Size(weight[2:]).numel()


_conv_flops, _grad_x_flops, _grad_weight_flops = operators.flop_formulas(_flops)

operators.register(
    "sample_conv",
    f"(Tensor x, Tensor weight, Tensor? bias, Tensor? index, {operators.GEOMETRY}) -> Tensor",
    _conv,
    _conv_fake,
    _conv_flops,
    _backward,
    setup_context=_setup_context,
)
operators.register(
    "sample_conv_grad_x",
    f"(Tensor grad, SymInt[] size, Tensor weight, Tensor? index, {operators.GEOMETRY}) -> Tensor",
    _grad_x,
    _grad_x_fake,
    _grad_x_flops,
)
operators.register(
    "sample_conv_grad_weight",
    f"(Tensor grad, Tensor x, SymInt[] size, Tensor? index, {operators.GEOMETRY}) -> Tensor",
    _grad_weight,
    _grad_weight_fake,
    _grad_weight_flops,
)
