# SPDX-License-Identifier: Apache-2.0
"""Strategy ``native`` of ``sample_conv``: a kernel per sample or per instance; features are never copied."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from convary.ops import autograd, eligible, native, reference
from convary.ops.coefficients import Coefficients
from convary.ops.geometry import Geometry
from convary.ops.native_conv import _call, _dense, _gradient_of_row, _Sizes, _sizes

_NONE = Coefficients()


def obstacle(x: Tensor, weight: Tensor, bias: Tensor | None, index: Tensor | None) -> str | None:
    """Why the native kernels can't take these tensors, or None."""
    if index is not None and not eligible.is_plain(index):
        return f"index is a {type(index).__name__}, whose memory may not be its own"
    return eligible.obstacle(x, weight, bias)


def _empty(like: Tensor, *shape: int) -> Tensor:
    return like.new_empty(shape)


def _structure(
    x: Sequence[int], weight: Sequence[int], bias: Tensor | None, geometry: Geometry
) -> tuple[_Sizes, int, tuple[int, ...]]:
    """The C structure, its address and the shape of a map of y, for shapes of one call."""
    rows = (1, 1, 1, bias.shape[0] if bias is not None and bias.ndim == 2 else 1)
    sizes, address, shape = _sizes(torch.Size(x), torch.Size(weight), geometry, rows, False, torch.get_num_threads())
    return sizes, address, shape[1:]


def _images(index: Tensor | None) -> Tensor | None:
    return None if index is None else _dense(index.to(torch.int64))


def forward(x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry, index: Tensor | None) -> Tensor:
    """The convolution by the native kernel, without a gradient.

    Args:
        x: (B, C, *S), one or two spatial axes.
        weight: (N, O, C/G, *k); N is B without index.
        bias: (O,), (N, O) or None.
        geometry: stride, padding, dilation, groups.
        index: (N,) integers or None: the image of each kernel.

    Returns:
        (N, O, *S_out), contiguous.

    Raises:
        ConvaryError: the library refuses; the sizes are named.
    """
    sizes, address, map_shape = _structure(x.shape, weight.shape, bias, geometry)
    tensors = [
        *(None if t is None else _dense(t) for t in (x, weight, bias)),
        _images(index),
    ]  # named: a copy must live until the call is over
    y = _empty(x, weight.shape[0], *map_shape)
    _call(native.loaded().sample_conv, sizes, address, *tensors, y)
    return y


def gradient_of_x(
    grad: Tensor, size: Sequence[int], weight: Tensor, geometry: Geometry, index: Tensor | None
) -> Tensor:
    """The gradient of x, whose size is (B, C, *S), from that of y."""
    sizes, address, _ = _structure(size, weight.shape, None, geometry)
    tensors = [_dense(grad), _dense(weight), _images(index)]
    grad_x = _empty(grad, *size)
    _call(native.loaded().sample_conv_grad_x, sizes, address, *tensors, grad_x)
    return grad_x


def gradient_of_weight(
    grad: Tensor, x: Tensor, size: Sequence[int], geometry: Geometry, index: Tensor | None
) -> Tensor:
    """The gradient of weight, whose size is (N, O, C/G, *k)."""
    sizes, address, _ = _structure(x.shape, size, None, geometry)
    tensors = [_dense(x), _dense(grad), _images(index)]
    grad_weight = _empty(grad, *size)
    _call(native.loaded().sample_conv_grad_weight, sizes, address, *tensors, grad_weight)
    return grad_weight


def remember(ctx, x: Tensor, weight: Tensor, bias: Tensor | None, index: Tensor | None, geometry: Geometry) -> None:
    """Keep in an autograd context what :func:`gradients` needs: x, weight and index, no copy of them."""
    ctx.geometry = geometry
    ctx.bias_ndim = None if bias is None else bias.ndim
    ctx.save_for_backward(x, weight, index)


def gradients(
    ctx, grad: Tensor, of_x: Callable[..., Tensor], of_weight: Callable[..., Tensor]
) -> tuple[Tensor | None, ...]:
    """The gradients of x, weight and bias that are asked for.

    Args:
        ctx: After :func:`remember`; its first three inputs are these.
        grad: (N, O, *S_out).
        of_x: :func:`gradient_of_x` or its like.
        of_weight: :func:`gradient_of_weight` or its like.
    """
    x, weight, index = ctx.saved_tensors
    needs_x, needs_weight, needs_bias = ctx.needs_input_grad[:3]
    grad_bias = _gradient_of_row(grad, ctx.bias_ndim) if needs_bias else None
    if torch.is_grad_enabled():

        def again(x: Tensor, weight: Tensor) -> Tensor:
            return reference.sample_conv(x, weight, index=index, **ctx.geometry._asdict())

        return *autograd.differentiable(again, (x, weight), (needs_x, needs_weight), grad), grad_bias
    grad_x = of_x(grad, x.shape, weight, ctx.geometry, index) if needs_x else None
    grad_weight = of_weight(grad, x, weight.shape, ctx.geometry, index) if needs_weight else None
    return grad_x, grad_weight, grad_bias
