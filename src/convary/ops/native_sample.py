# SPDX-License-Identifier: Apache-2.0
"""Strategy ``native`` of ``sample_conv``: a kernel per sample or per instance; features are never copied."""

from __future__ import annotations

import torch
from torch import Tensor

from convary.ops import native, native_conv, reference
from convary.ops.coefficients import Coefficients
from convary.ops.geometry import Geometry
from convary.ops.native_conv import _call, _dense, _gradient_of_row, structure

_NONE = Coefficients()


def obstacle(x: Tensor, weight: Tensor, index: Tensor | None) -> str | None:
    """Why the native kernels can't take these tensors, or None."""
    if native_conv.is_watched(x):
        return "a tracer or a dispatch mode is watching, which sees torch's own operations only"
    if index is not None and type(index) is not Tensor:
        return f"index is a {type(index).__name__}, whose memory may not be its own"
    return native_conv.obstacle(x, weight, _NONE, None)


def _empty(like: Tensor, *shape: int) -> Tensor:
    return like.new_empty(shape)


def forward(x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry, index: Tensor | None) -> Tensor:
    """The convolution by the native kernel, without a gradient.

    Args:
        x: (B, C, *S), one or two spatial axes.
        weight: (N, O, C/G, *k); N is B without index.
        bias: (O,), (N, O) or None.
        geometry: stride, padding, dilation, groups.
        index: (N,) int64 on the CPU, row-major, or None: the image of each kernel.

    Returns:
        (N, O, *S_out), contiguous.

    Raises:
        ConvaryError: the library refuses; the sizes are named.
    """
    sizes, address, (_, *map_shape) = structure(x.shape, weight, _NONE, bias, geometry)
    tensors = [_dense(t) for t in (x, weight, bias)]  # named, because a copy must live until the call is over
    y = _empty(x, weight.shape[0], *map_shape)
    _call(native.loaded().sample_conv, sizes, address, *tensors, index, y)
    return y


def gradient_of_x(grad: Tensor, x: Tensor, weight: Tensor, geometry: Geometry, index: Tensor | None) -> Tensor:
    """The gradient of x (B, C, *S) from that of y; of x only the shape is used."""
    sizes, address, _ = structure(x.shape, weight, _NONE, None, geometry)
    tensors = [_dense(t) for t in (grad, weight)]
    grad_x = _empty(grad, *x.shape)
    _call(native.loaded().sample_conv_grad_x, sizes, address, *tensors, index, grad_x)
    return grad_x


def gradient_of_weight(grad: Tensor, x: Tensor, weight: Tensor, geometry: Geometry, index: Tensor | None) -> Tensor:
    """The gradient of weight (N, O, C/G, *k); of weight only the shape is used."""
    sizes, address, _ = structure(x.shape, weight, _NONE, None, geometry)
    tensors = [_dense(t) for t in (x, grad)]
    grad_weight = _empty(grad, *weight.shape)
    _call(native.loaded().sample_conv_grad_weight, sizes, address, *tensors, index, grad_weight)
    return grad_weight


class _NativeSampleConv(torch.autograd.Function):
    """Forward and backward by the native kernels; keeps x, weight and index, no copy of them."""

    @staticmethod
    def forward(
        ctx, geometry: Geometry, index: Tensor | None, x: Tensor, weight: Tensor, bias: Tensor | None
    ) -> Tensor:
        ctx.geometry = geometry
        ctx.bias_ndim = None if bias is None else bias.ndim
        ctx.save_for_backward(x, weight, index)
        return forward(x, weight, bias, geometry, index)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            return _differentiable_backward(ctx, grad)
        x, weight, index = ctx.saved_tensors
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad[2:]
        grad_x = gradient_of_x(grad, x, weight, ctx.geometry, index) if needs_x else None
        grad_weight = gradient_of_weight(grad, x, weight, ctx.geometry, index) if needs_weight else None
        return None, None, grad_x, grad_weight, _gradient_of_row(grad, ctx.bias_ndim) if needs_bias else None


def _differentiable_backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
    """For ``create_graph=True``: the same gradients by the reference, whose operations can be differentiated again."""
    x, weight, index = ctx.saved_tensors
    y = reference.sample_conv(x, weight, index=index, **ctx.geometry._asdict())
    *needs, needs_bias = ctx.needs_input_grad[2:]
    wanted = [t for t, need in zip((x, weight), needs, strict=True) if need]
    found = iter(torch.autograd.grad(y, wanted, grad, create_graph=True) if wanted else ())
    grad_x, grad_weight = (next(found) if need else None for need in needs)
    return None, None, grad_x, grad_weight, _gradient_of_row(grad, ctx.bias_ndim) if needs_bias else None


def run(x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry, index: Tensor | None) -> Tensor:
    """The strategy: ``sample_conv`` after its checks."""
    if bias is not None:
        bias = bias.to(torch.float32)
    if index is not None:
        index = index.to(torch.int64).contiguous()
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, weight, bias)):
        y: Tensor = _NativeSampleConv.apply(geometry, index, x, weight, bias)  # pyright: ignore[reportAssignmentType]
    else:
        y = forward(x, weight, bias, geometry, index)
    if x.ndim == 4 and not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last):
        return y.contiguous(memory_format=torch.channels_last)  # as torch's convolutions answer
    return y
