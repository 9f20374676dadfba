# SPDX-License-Identifier: Apache-2.0
"""Convolution geometry: the arguments of ``torch.nn.functional.conv*d``, checked and spelled out per spatial axis."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from convary.errors import ConfigError, DeviceError, DtypeError, ShapeError
from convary.ops.shapes import plain_shape

Size = int | Sequence[int]
CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


class Geometry(NamedTuple):
    """Stride, zero padding (both sides) and dilation per spatial axis, and the number of groups."""

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int

    def out_size(self, size: Sequence[int], kernel_size: Sequence[int]) -> list[int]:
        """Spatial output size for a spatial input ``size``."""
        return [
            (s + 2 * p - d * (k - 1) - 1) // st + 1
            for s, k, st, p, d in zip(size, kernel_size, self.stride, self.padding, self.dilation, strict=True)
        ]


def per_axis(value: Size, rank: int, name: str, *, least: int = 1) -> tuple[int, ...]:
    """``value`` for each of ``rank`` spatial axes.

    Raises:
        ConfigError: not an int or ``rank`` ints, or below ``least``.
    """
    if type(value) is int:
        value = (value,) * rank
    if type(value) is tuple and len(value) == rank:  # the usual case, and this is asked on every call
        for v in value:
            if type(v) is not int or v < least:
                break
        else:
            return value
    try:
        given = value if isinstance(value, Sequence) else (value,) * rank
        values = tuple(operator.index(v) for v in given)  # numpy's integers too
    except TypeError:
        values = ()
    if len(values) != rank or any(v < least for v in values):
        raise ConfigError(f"{name} must be an int or {rank} ints of at least {least}; got {value!r}")
    return values


def whole(**sizes: int) -> tuple[int, ...]:
    """The sizes as Python's ints; numpy's, from width multipliers and YAML, are taken too.

    Raises:
        ConfigError: one that is no whole number, or below 1.
    """
    try:
        values = tuple(operator.index(size) for size in sizes.values())
    except TypeError:
        values = (0,)
    if min(values) < 1:
        given = ", ".join(f"{name}={size!r}" for name, size in sizes.items())
        raise ConfigError(f"{', '.join(sizes)} must be ints above 0; got {given}")
    return values


def same_padding(
    size: Sequence[int], kernel_size: Sequence[int], stride: Sequence[int], dilation: Sequence[int]
) -> list[tuple[int, int]]:
    """(before, after) per axis of ``padding="same"``: the output has ceil(size / stride) positions.

    At stride 1 this is torch's rule, at other strides, which torch refuses, TensorFlow's (ONNX calls it SAME_UPPER).
    An odd total puts the extra zero after.
    """
    totals = [
        _same_total(n, d * (k - 1) + 1, s) for n, k, s, d in zip(size, kernel_size, stride, dilation, strict=True)
    ]
    return [(total // 2, total - total // 2) for total in totals]


def _same_total(size: int, reach: int, stride: int) -> int:
    if stride == 1 or reach == 1:  # whatever the size: a recorded graph need not know it
        return reach - 1
    total = ((size + stride - 1) // stride - 1) * stride + reach - size
    return total if reach >= stride else torch.sym_max(total, 0)  # type: ignore[return-value]


def resolve(
    x: Tensor,
    kernel_size: Sequence[int],
    stride: Size,
    padding: Size | str,
    dilation: Size,
    groups: int,
) -> tuple[Tensor, Geometry]:
    """Spell the arguments out; a ``"same"`` padding that is asymmetric, or depends on x, is applied to x right away.

    Raises:
        ConfigError: an argument that no convolution takes.
        ShapeError: the kernels have no axis or too many, or x has other axes than they.
    """
    rank = len(kernel_size)
    if not 1 <= rank <= 3:
        raise ShapeError(f"kernels want one to three spatial axes, (K, O, C/G, *kernel_size); got {rank}")
    if x.ndim != rank + 2:
        raise ShapeError(f"x is {tuple(x.shape)} but kernels of {rank} spatial axes want {rank + 2} axes (B, C, *S)")
    strides = per_axis(stride, rank, "stride")
    dilations = per_axis(dilation, rank, "dilation")
    if not isinstance(padding, str):
        return x, Geometry(strides, per_axis(padding, rank, "padding", least=0), dilations, groups)
    if padding == "valid":
        return x, Geometry(strides, (0,) * rank, dilations, groups)
    if padding != "same":
        raise ConfigError(f"padding must be ints, 'same' or 'valid'; got {padding!r}")
    sides = same_padding(x.shape[2:], kernel_size, strides, dilations)
    fixed = all(s == 1 or k == 1 for s, k in zip(strides, kernel_size, strict=True))
    if fixed and all(before == after for before, after in sides):
        return x, Geometry(strides, tuple(before for before, _ in sides), dilations, groups)
    x = F.pad(x, [amount for before_after in reversed(sides) for amount in before_after])
    return x, Geometry(strides, (0,) * rank, dilations, groups)


def check_conv(x: Tensor, weight: Tensor, geometry: Geometry, *, mixed_dtypes: bool) -> None:
    """Raise unless ``weight`` (B or K, O, C/G, *k) can convolve x (B, C, *S).

    Args:
        x: Features.
        weight: Kernels with one leading axis.
        geometry: The convolution's geometry.
        mixed_dtypes: Whether autocast is going to unify the dtypes.

    Raises:
        ShapeError: channels, groups or sizes do not fit.
        DtypeError: the dtypes differ.
        DeviceError: the devices differ.
    """
    shape, (_, C, *size) = plain_shape(weight), plain_shape(x)
    O, C_group, *kernel_size = shape[1:]
    groups = geometry.groups
    if groups < 1 or O % groups or C != C_group * groups:
        raise ShapeError(
            f"groups must divide both channel counts; got x with {C} channels, kernels "
            f"{tuple(shape)} (O={O}, C/G={C_group}) and {groups=}; they want {C_group * max(groups, 1)} channels"
        )
    reach = [d * (k - 1) + 1 for k, d in zip(kernel_size, geometry.dilation, strict=True)]
    if any(s + 2 * p < r for s, p, r in zip(size, geometry.padding, reach, strict=True)):
        raise ShapeError(
            f"the kernel reaches over {reach} positions but x has only {size} with padding "
            f"{list(geometry.padding)}; use a larger input or more padding"
        )
    if x.dtype != weight.dtype and not mixed_dtypes:
        raise DtypeError(f"x is {x.dtype} but the kernels are {weight.dtype}; cast one of them or use torch.autocast")
    if x.device != weight.device:
        raise DeviceError(f"x is on {x.device} but the kernels are on {weight.device}; move one of them")


def autocasting(x: Tensor) -> bool:
    """Whether autocast is going to unify dtypes on x's device (the meta device has none)."""
    return x.device.type != "meta" and torch.is_autocast_enabled(x.device.type)


def autocast_dtype(x: Tensor) -> torch.dtype | None:
    """The dtype in which torch's convolutions of x compute under autocast, which leaves float64 alone; else None."""
    if x.dtype is torch.float64 or not autocasting(x):
        return None
    return torch.get_autocast_dtype(x.device.type)


def check_bias(bias: Tensor, weight: Tensor, *, mixed_dtypes: bool) -> None:
    """Raise unless ``bias`` has the kernels' dtype and device.

    Raises:
        DtypeError: the dtypes differ and autocast is not going to unify them.
        DeviceError: the devices differ.
    """
    if bias.dtype != weight.dtype and not mixed_dtypes:
        raise DtypeError(f"bias is {bias.dtype} but the kernels are {weight.dtype}; cast one of them")
    if bias.device != weight.device:
        raise DeviceError(f"bias is on {bias.device} but the kernels are on {weight.device}; move one of them")


def nothing(x: Tensor, kernels: Tensor, geometry: Geometry, tensors: Sequence[Tensor | None]) -> Tensor:
    """What a convolution of no samples answers: empty, and connected to the tensors, so that backward gives zeros."""
    size = geometry.out_size(x.shape[2:], kernels.shape[3:])
    dtype = torch.get_autocast_dtype(x.device.type) if autocasting(x) else x.dtype
    return x.new_zeros(0, kernels.shape[1], *size, dtype=dtype) + 0 * sum(t.sum() for t in tensors if t is not None)
