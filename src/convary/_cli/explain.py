# SPDX-License-Identifier: Apache-2.0
"""``convary explain``: which strategy would run a dynamic convolution of a given shape, and at what cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Literal

from convary._cli.parse import parse
from convary.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Explain:
    """Show which strategy would run a dynamic convolution of this shape, why the others can't, and what each costs."""

    op: Literal["mixed_conv", "sample_conv", "pixel_conv"] = "mixed_conv"
    """mixed_conv mixes a bank of kernels for each image; sample_conv is given a kernel for each image; pixel_conv is
    given a kernel for each position, which the channels of a group share."""
    in_channels: int = 64
    """C, input channels."""
    out_channels: int = 64
    """O, output channels; pixel_conv has as many as input channels."""
    kernel_size: tuple[int, ...] = (3,)
    """Kernel size; one number for every axis."""
    size: tuple[int, ...] = (28, 28)
    """Size of the image; as many numbers as axes: 1, 2 or 3."""
    batch: int = 16
    """B, images at a time."""
    experts: int = 4
    """K, kernels in the bank (mixed_conv)."""
    groups: int = 1
    """Groups of the convolution; in_channels for a depthwise one. In pixel_conv, kernels at each position."""
    stride: int = 1
    """Stride."""
    padding: int | None = None
    """Zero padding; by default half the kernel, which keeps the size at stride 1."""
    dilation: int = 1
    """Dilation."""
    training: bool = False
    """Estimate forward and backward instead of forward alone."""
    measure: bool = False
    """Time the strategies here instead of estimating; convary.ops.autotune keeps the times for later."""


def run(argv: Sequence[str]) -> int:
    """Parse, explain, print."""
    flags = parse(Explain, argv, "convary explain")
    rank = len(flags.size)
    kernel = flags.kernel_size * rank if len(flags.kernel_size) == 1 else flags.kernel_size
    _check(flags, kernel, rank)

    from convary import ops

    padding = tuple(flags.dilation * (side - 1) // 2 for side in kernel) if flags.padding is None else flags.padding
    geometry = {"stride": flags.stride, "padding": padding, "dilation": flags.dilation}
    if flags.op == "pixel_conv":
        geometry |= {"kernel_size": kernel}
    else:
        geometry |= {"groups": flags.groups}
    tensors = _tensors(flags, kernel, padding)
    if flags.measure:
        ops.autotune()
        getattr(ops, flags.op)(*tensors, **geometry)
    print(ops.explain(flags.op, *tensors, **geometry))
    return 0


def _tensors(flags: Explain, kernel: tuple[int, ...], padding: int | tuple[int, ...]) -> Sequence:
    """The tensors of the call, whose numbers count only where it is timed."""
    import torch

    from convary.ops import Coefficients

    make = torch.randn if flags.measure else torch.empty
    x = make(flags.batch, flags.in_channels, *flags.size)
    if flags.op == "pixel_conv":
        pads = (padding,) * len(kernel) if isinstance(padding, int) else padding
        axes = zip(flags.size, kernel, pads, strict=True)
        out = [(s + 2 * p - flags.dilation * (k - 1) - 1) // flags.stride + 1 for s, k, p in axes]
        sizes = (flags.batch, flags.groups, prod(kernel), *(max(side, 0) for side in out))
        return x, make(sizes, requires_grad=flags.training)
    one = (flags.out_channels, flags.in_channels // flags.groups, *kernel)
    if flags.op == "sample_conv":
        return x, make(flags.batch, *one, requires_grad=flags.training)
    coeffs = Coefficients(kernel=make(flags.batch, flags.experts))
    return x, make(flags.experts, *one, requires_grad=flags.training), coeffs


def _check(flags: Explain, kernel: tuple[int, ...], rank: int) -> None:
    if not 1 <= rank <= 3 or len(kernel) != rank:
        raise ConfigError(
            f"want --size of 1 to 3 numbers and --kernel-size of one or as many; got {flags.size} and {kernel}"
        )
    counts = ("in_channels", "out_channels", "batch", "experts", "groups", "stride", "dilation")
    for name, value in [(name, getattr(flags, name)) for name in counts] + [("size", min(flags.size))]:
        if value < 1:
            raise ConfigError(f"--{name.replace('_', '-')} must be at least 1; got {value}")
    if min(kernel) < 1:
        raise ConfigError(f"--kernel-size must be at least 1; got {min(kernel)}")
    uneven = flags.op != "pixel_conv" and flags.out_channels % flags.groups
    if flags.in_channels % flags.groups or uneven:
        raise ConfigError(
            f"groups must divide both channel counts; got in_channels={flags.in_channels}, "
            f"out_channels={flags.out_channels}, groups={flags.groups}; use --groups 1"
        )
