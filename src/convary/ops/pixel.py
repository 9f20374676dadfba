# SPDX-License-Identifier: Apache-2.0
"""Convolution with one given kernel per output position."""

from __future__ import annotations

import torch
from torch import Tensor

from convary.ops import eligible, native_pixel, registered_pixel, taps
from convary.ops.geometry import Size
from convary.ops.operators import in_format_of
from convary.ops.shapes import plain_shape
from convary.ops.strategy import Problem, Strategy, choose, choose_traced, is_traced, needs_gradient
from convary.ops.window import Border, GroupOrder, Window, resolve


def pixel_conv(
    x: Tensor,
    weight: Tensor,
    *,
    kernel_size: Size,
    stride: Size = 1,
    padding: Size | str = 0,
    dilation: Size = 1,
    border: Border = "zeros",
    group_order: GroupOrder = "contiguous",
    scale_factor: int = 1,
) -> Tensor:
    """Filter each position with its own kernel; the C/G channels of a group share it, and no channels are summed.

    ``y[b,c,p] = sum_t weight[b, g(c), t, p] x[b, c, (p // scale_factor)*stride + t*dilation - padding]``

    Args:
        x: (B, C, *S), one to three spatial axes.
        weight: (B, G, T, *S_out), taps row-major; used as it is, normalise it before if you want it normalised.
        kernel_size: An int or one per spatial axis; T is their product.
        stride: As in ``torch.nn.functional.conv2d``.
        padding: As in ``torch.nn.functional.conv2d``, ``"same"`` and ``"valid"`` included (``"same"`` here wants an odd
            reach and a stride of 1, for both sides are padded alike).
        dilation: As in ``torch.nn.functional.conv2d``.
        border: What is read outside x: ``"zeros"``, ``"replicate"`` (the nearest position), ``"reflect"`` (mirrored at
            the edge position), ``"circular"``; or ``"clamp"``: the whole window is moved until it lies inside x
            (ContMix).
        group_order: Channel c belongs to group c // (C/G) (``"contiguous"``, as in grouped convolutions and
            involution) or c % G (``"interleaved"``, LSNet).
        scale_factor: Every window serves this many output positions per axis, as if x were enlarged by nearest
            neighbour but with taps on the input grid (CARAFE).

    Returns:
        (B, C, *S_out) with ``S_out = scale_factor * ((S + 2 padding - dilation (k - 1) - 1) // stride + 1)``.

    Raises:
        ShapeError, DtypeError, DeviceError: the tensors do not fit together.
        ConfigError: an argument that is not one of those named.
        StrategyError: the forced strategy can't run.
    """
    return run(x, weight, resolve(x, weight, kernel_size, stride, padding, dilation, border, group_order, scale_factor))


def run(x: Tensor, weight: Tensor, window: Window) -> Tensor:
    """``pixel_conv`` after its checks."""
    if is_traced(x, weight):
        name = choose_traced(STRATEGIES, describe(x, weight, window))
    elif x.numel() == 0 or weight.numel() == 0:
        dtype = torch.promote_types(x.dtype, weight.dtype)  # they differ under autocast
        return x.new_zeros(*x.shape[:2], *weight.shape[3:], dtype=dtype) + 0 * (x.sum() + weight.sum())  # for backward
    else:
        obstacle = eligible.obstacle(x, weight)
        key = ("pixel_conv", x.shape, weight.shape, window, needs_gradient(x, weight), x.device.type, x.dtype, obstacle)
        name = choose(STRATEGIES, key, lambda: describe(x, weight, window))
    return in_format_of(x, STRATEGIES[name].run(x, weight, window))


def describe(x: Tensor, weight: Tensor, window: Window) -> Problem:
    """The problem that a call poses: a depthwise convolution of C channels, with kernels that G groups share."""
    (B, C, *size), (_, G, _, *out_size) = plain_shape(x), plain_shape(weight)
    return Problem(
        op="pixel_conv",
        B=B,
        C=C,
        O=C,
        G=G,
        K=1,
        kernel_size=window.kernel_size,
        size=tuple(size),
        out_size=tuple(out_size),
        stride=window.stride,
        axes=(),
        shared=(),
        training=needs_gradient(x, weight),
        traced=is_traced(x, weight),
        device=x.device.type,
        itemsize=x.element_size(),
        reach=tuple(s + 2 * p for s, p in zip(size, window.padding, strict=True)),
        obstacle=eligible.obstacle(x, weight),
    )


STRATEGIES = {
    "taps": Strategy(lambda problem: None, taps.run),
    "native": Strategy(native_pixel.why_not, registered_pixel.run),
}
