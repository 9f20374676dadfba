# SPDX-License-Identifier: Apache-2.0
"""The windows of a per-position convolution: where each one lies, what it reads outside x, who shares a kernel."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from convary.errors import ConfigError, DeviceError, DtypeError, ShapeError
from convary.ops import geometry
from convary.ops.geometry import Size, autocasting, per_axis
from convary.ops.shapes import plain_shape

Border = Literal["zeros", "replicate", "reflect", "circular", "clamp"]
GroupOrder = Literal["contiguous", "interleaved"]
BORDERS = ("zeros", "replicate", "reflect", "circular", "clamp")
GROUP_ORDERS = ("contiguous", "interleaved")


class Window(NamedTuple):
    """The arguments of ``pixel_conv``, checked and spelled out per spatial axis."""

    kernel_size: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    border: Border
    group_order: GroupOrder
    scale_factor: int

    @property
    def T(self) -> int:
        """Taps of a kernel."""
        return prod(self.kernel_size)

    @property
    def reach(self) -> list[int]:
        """Positions per axis from the first to the last that a window covers."""
        return [d * (k - 1) + 1 for k, d in zip(self.kernel_size, self.dilation, strict=True)]

    def count(self, size: Sequence[int]) -> list[int]:
        """Windows per axis over a spatial input ``size``."""
        axes = zip(size, self.padding, self.reach, self.stride, strict=True)
        return [(s + 2 * p - r) // stride + 1 for s, p, r, stride in axes]

    def out_size(self, size: Sequence[int]) -> list[int]:
        """Spatial output size for a spatial input ``size``."""
        return [self.scale_factor * n for n in self.count(size)]


def resolve(
    x: Tensor,
    weight: Tensor,
    kernel_size: Size,
    stride: Size,
    padding: Size | str,
    dilation: Size,
    border: str,
    group_order: str,
    scale_factor: int,
) -> Window:
    """Spell the arguments of ``pixel_conv`` out.

    Raises:
        ShapeError: x and weight have no axes that belong together.
        ConfigError: an argument that is not one of those named.
    """
    rank = x.ndim - 2
    if not 1 <= rank <= 3 or weight.ndim != rank + 3:
        raise ShapeError(
            f"x wants one to three spatial axes, (B, C, *S), and weight (B, G, T, *S_out); got {tuple(x.shape)} and "
            f"{tuple(weight.shape)}"
        )
    for name, value, allowed in (("border", border, BORDERS), ("group_order", group_order, GROUP_ORDERS)):
        if value not in allowed:
            raise ConfigError(f"{name} must be one of {', '.join(allowed)}; got {value!r}")
    k = per_axis(kernel_size, rank, "kernel_size")
    (scale,) = per_axis(scale_factor, 1, "scale_factor")
    padded, resolved = geometry.resolve(x, k, stride, padding, dilation, 1)
    if padded is not x:
        raise ConfigError(
            f"padding='same' wants stride 1 and an odd reach, dilation*(kernel_size-1)+1; got {k=}, {stride=}, "
            f"{dilation=}; give padding in numbers"
        )
    return Window(k, *resolved[:3], border, group_order, scale)  # pyright: ignore[reportArgumentType]


def check(x: Tensor, weight: Tensor, window: Window) -> None:
    """Raise unless the tensors fit the window and each other.

    Raises:
        ShapeError, DtypeError, DeviceError: they do not.
    """
    _check_border(window, plain_shape(x)[2:])
    _check_weight(window, x, weight)


def _check_border(window: Window, size: Sequence[int]) -> None:
    """Raise where no window fits, one turn at the edge does not reach, or no window lies inside."""
    if any(s + 2 * p < r for s, p, r in zip(size, window.padding, window.reach, strict=True)):
        raise ShapeError(
            f"the kernels reach over {window.reach} positions but x has only {list(size)} with padding "
            f"{list(window.padding)}; use a larger input or more padding"
        )
    border = window.border
    for s, p, r in zip(size, window.padding, window.reach, strict=True):
        least = {"reflect": p + 1, "circular": p, "replicate": 1}.get(border, 0)
        if s < least:
            raise ShapeError(f"border={border!r} with padding {p} wants at least {least} positions; got {s}")
        if border == "clamp" and s < r:
            raise ShapeError(f"border='clamp' wants a window inside x; got size {s} for a reach of {r}")


def _check_weight(window: Window, x: Tensor, weight: Tensor) -> None:
    (B, C, *S), (N, G, T, *given) = plain_shape(x), plain_shape(weight)
    S_out = window.out_size(S)
    if N != B or T != window.T or given != S_out or G < 1 or C % G:
        raise ShapeError(
            f"weight must be (B, G, T, *S_out) = ({B}, G, {window.T}, {', '.join(map(str, S_out))}) with G dividing "
            f"{C} channels; got {(N, G, T, *given)}"
        )
    if x.dtype != weight.dtype and not autocasting(x):
        raise DtypeError(f"x is {x.dtype} but weight is {weight.dtype}; cast one of them or use torch.autocast")
    if not x.dtype.is_floating_point and not x.dtype.is_complex:
        raise DtypeError(f"x is {x.dtype}; cast it to {torch.get_default_dtype()}")
    if x.device != weight.device:
        raise DeviceError(f"x is on {x.device} but weight is on {weight.device}; move one of them")
