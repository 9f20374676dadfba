# SPDX-License-Identifier: Apache-2.0
"""Convolution with one given kernel per output position."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Literal

from torch import Tensor

from convary.errors import ConfigError, DeviceError, DtypeError, ShapeError
from convary.ops import reference
from convary.ops.geometry import Geometry, Size, autocasting, per_axis, resolve

Border = Literal["zeros", "replicate", "reflect", "circular", "clamp"]
GroupOrder = Literal["contiguous", "interleaved"]
BORDERS = ("zeros", "replicate", "reflect", "circular", "clamp")
GROUP_ORDERS = ("contiguous", "interleaved")


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
    """
    geometry, sizes = _check(x, weight, kernel_size, stride, padding, dilation, border, group_order, scale_factor)
    return reference.pixel_conv(
        x,
        weight,
        kernel_size=sizes,
        stride=geometry.stride,
        padding=geometry.padding,
        dilation=geometry.dilation,
        border=border,
        group_order=group_order,
        scale_factor=scale_factor,
    )


def _check(
    x: Tensor,
    weight: Tensor,
    kernel_size: Size,
    stride: Size,
    padding: Size | str,
    dilation: Size,
    border: str,
    group_order: str,
    scale_factor: int,
) -> tuple[Geometry, tuple[int, ...]]:
    rank = x.ndim - 2
    if not 1 <= rank <= 3 or weight.ndim != rank + 3:
        raise ShapeError(
            f"x wants one to three spatial axes, (B, C, *S), and weight (B, G, T, *S_out); got {tuple(x.shape)} and "
            f"{tuple(weight.shape)}"
        )
    k = per_axis(kernel_size, rank, "kernel_size")
    for name, value, allowed in (("border", border, BORDERS), ("group_order", group_order, GROUP_ORDERS)):
        if value not in allowed:
            raise ConfigError(f"{name} must be one of {', '.join(allowed)}; got {value!r}")
    per_axis(scale_factor, rank, "scale_factor")
    padded, geometry = resolve(x, k, stride, padding, dilation, 1)
    if padded is not x:
        raise ConfigError(
            f"padding='same' wants stride 1 and an odd reach, dilation*(kernel_size-1)+1; got {k=}, {stride=}, "
            f"{dilation=}; give padding in numbers"
        )
    reach = [d * (n - 1) + 1 for n, d in zip(k, geometry.dilation, strict=True)]
    if any(s + 2 * p < r for s, p, r in zip(x.shape[2:], geometry.padding, reach, strict=True)):
        raise ShapeError(
            f"the kernels reach over {reach} positions but x has only {list(x.shape[2:])} with padding "
            f"{list(geometry.padding)}; use a larger input or more padding"
        )
    _check_border(x.shape[2:], border, geometry.padding, reach)
    B, C = x.shape[:2]
    S_out = [scale_factor * n for n in geometry.out_size(x.shape[2:], k)]
    G = weight.shape[1]
    if weight.shape[0] != B or weight.shape[2] != prod(k) or list(weight.shape[3:]) != S_out or G < 1 or C % G:
        raise ShapeError(
            f"weight must be (B, G, T, *S_out) = ({B}, G, {prod(k)}, {', '.join(map(str, S_out))}) with G dividing {C} "
            f"channels; got {tuple(weight.shape)}"
        )
    if x.dtype != weight.dtype and not autocasting(x):
        raise DtypeError(f"x is {x.dtype} but weight is {weight.dtype}; cast one of them or use torch.autocast")
    if x.device != weight.device:
        raise DeviceError(f"x is on {x.device} but weight is on {weight.device}; move one of them")
    return geometry, k


def _check_border(size: Sequence[int], border: str, padding: Sequence[int], reach: Sequence[int]) -> None:
    """Raise where one turn at the edge does not reach, or no window lies inside."""
    for s, p, r in zip(size, padding, reach, strict=True):
        if (border == "reflect" and p >= s) or (border == "circular" and p > s):
            raise ShapeError(f"border={border!r} provides fewer than {s} positions a side; got padding {p} on size {s}")
        if border == "clamp" and s < r:
            raise ShapeError(f"border='clamp' wants a window inside x; got size {s} for a reach of {r}")
