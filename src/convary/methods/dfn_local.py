# SPDX-License-Identifier: Apache-2.0
"""Dynamic local filtering with given filters (De Brabandere et al., "Dynamic Filter Networks", Sec. 3.3)."""

from __future__ import annotations

from math import prod

import torch
from torch import Tensor

from convary.errors import ConfigError, ShapeError
from convary.ops import pixel_conv
from convary.ops.geometry import Size, per_axis
from convary.ops.pixel import Border
from convary.ops.shapes import plain_shape, unflatten


def local_filter(
    x: Tensor,
    filters: Tensor,
    bias: Tensor | None = None,
    *,
    kernel_size: Size,
    grouping: bool = False,
    border: Border = "zeros",
) -> Tensor:
    """Dynamic local filtering (Eq. 3) with given filters: each position has its own, over all channels or for each.

    Args:
        x: (B, C, *S), one to three spatial axes.
        filters: (B, C*T, *S), channel by channel with the T taps row-major; with ``grouping`` (B, T, *S). Used as they
            are.
        bias: (B, 1, *S), added to x before filtering, as the released code does.
        kernel_size: Odd; an int or one per spatial axis.
        grouping: Filter each channel by the same filter instead of contracting them all to one.
        border: What is read outside x, see ``ops.pixel_conv``; zeros as released, so that positions near the border see
            less than the whole filter.

    Returns:
        (B, 1, *S), with ``grouping`` (B, C, *S).

    Raises:
        ShapeError, DtypeError, DeviceError: the tensors do not fit together.
        ConfigError: an even kernel size, an unknown border.
    """
    taps = prod(odd_sizes(kernel_size, x.ndim - 2))
    (_, C, *S), (_, given, *size) = plain_shape(x), plain_shape(filters)
    G = 1 if grouping else C
    if filters.ndim != x.ndim or given != G * taps or size != S:
        raise ShapeError(
            f"filters must be (B, {G * taps}, *S), {taps} taps for {'any channel' if grouping else f'each of {G}'}, at "
            f"every position of x {tuple(x.shape)}; got {tuple(filters.shape)}"
        )
    if bias is not None:
        x = x + bias
    y = pixel_conv(x, unflatten(filters, 1, (G, taps)), kernel_size=kernel_size, padding="same", border=border)
    return y if grouping else y.sum(1, keepdim=True)


def filter_flow(filters: Tensor, kernel_size: Size) -> Tensor:
    """Where each position looks: the mean of the taps' offsets under filters that sum to one.

    Args:
        filters: (B, T, *S), one filter per position, at least 0 and summing to 1 over the T taps.
        kernel_size: An int or one per spatial axis.

    Returns:
        (B, R, *S), offsets along each of the R spatial axes, in axis order: 2-D has rows (down) first.

    >>> left = torch.tensor([[1.0, 0.0, 0.0]]).reshape(1, 3, 1)
    >>> filter_flow(left, 3)
    tensor([[[-1.]]])
    """
    sizes = odd_sizes(kernel_size, filters.ndim - 2)
    axes = [torch.arange(k, device=filters.device) - k // 2 for k in sizes]
    offsets = torch.stack(torch.meshgrid(*axes, indexing="ij")).flatten(1).to(filters.dtype)  # (R, T)
    return torch.einsum("rt,bt...->br...", offsets, filters)


def odd_sizes(kernel_size: Size, rank: int) -> tuple[int, ...]:
    """The kernel's size per axis; a filter per position wants a middle tap.

    Raises:
        ConfigError: an even size.
    """
    sizes = per_axis(kernel_size, rank, "kernel_size")
    if not all(k % 2 for k in sizes):
        raise ConfigError(f"a filter at every position needs a middle tap, so odd sizes; got kernel_size={kernel_size}")
    return sizes


def split_filters(theta: Tensor, *, softmax: bool, dynamic_bias: bool) -> tuple[Tensor, Tensor | None]:
    """What a generator gives, (B, N, *S), as filters and the bias: its last channel, if there is one."""
    filters, bias = (theta[:, :-1], theta[:, -1:]) if dynamic_bias else (theta, None)
    return filters.softmax(1) if softmax else filters, bias
