# SPDX-License-Identifier: Apache-2.0
"""HDFNet's layers: kernels per position and channel, generated from one modality and applied to another.

Pang et al., "Hierarchical Dynamic Filtering Network for RGB-D Salient Object Detection", ECCV 2020, arXiv 2007.06227.
Agrees with the authors' code (lartpang/HDFNet, MIT).
"""

from __future__ import annotations

import re
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from convary.errors import ConfigError, ShapeError
from convary.nn import Opaque
from convary.nn import recompute as recomputed
from convary.ops import pixel_conv
from convary.ops.geometry import Size, per_axis
from convary.ops.shapes import plain_shape, unflatten

CITATION = "Pang et al., Hierarchical Dynamic Filtering Network for RGB-D Salient Object Detection, ECCV 2020"


class ConvNormReLU(nn.Sequential):
    """3x3 convolution without bias, batch normalisation, ReLU: (B, C, H, W) -> (B, O, H, W)."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(
            nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False), nn.BatchNorm2d(out_channels), nn.ReLU()
        )

    @property
    def weight(self) -> Tensor:
        """That of its convolution, for initialisers that go by "Conv" in a class's name."""
        return self[0].get_parameter("weight")


class Released(nn.Module):
    """Knows the authors' names of its tensors, so that ``convary.load_released`` reads their checkpoints."""

    def released_name(self, name: str) -> str:
        """The authors' name of the tensor that ``state_dict`` calls ``name``."""
        for pattern, theirs in _THEIRS:
            name = re.sub(pattern, theirs, name)
        return name


_BLOCK = r"(^|\.)(fuse|merge|narrow|dense\.\d+|decoders\.\d+)\.(\d)\."  # a ConvNormReLU and the number inside it
_THEIRS = (
    (_BLOCK, r"\1\2.basicconv.\3."),
    (r"(^|\.)embed\.", r"\1gernerate_kernel."),
    (r"(^|\.)generate\.", r"\1gernerate_kernel.2."),
    (r"(^|\.)dense\.(\d)", r"\1denseblock.\2"),
    (r"(^|\.)merge\.", r"\1fuse_down_mul."),
    (r"(^|\.)refine\.", r"\1res_main."),
    (r"(^|\.)narrow\.", r"\1fuse_main."),
    (r"(^|\.)reduce\.", r"\1down_input."),
    (r"(^|\.)branches\.(\d)", lambda found: f"{found[1]}branch_{2 * int(found[2]) + 1}"),  # by dilation: 1, 3, 5
)


class DenseLayer(Released):
    """A densely connected block: a 1x1 convolution to m channels, then ``depth`` 3x3 blocks of m on all before them.

    ``out = block(cat(x, last))``, m = out_channels / reduction. The generator of ``DepthDC``'s kernels.

    Args:
        in_channels: C.
        out_channels: O.
        reduction: Divides O.
        depth: Number of inner blocks.

    Raises:
        ConfigError: reduction does not divide out_channels, or depth is below 1.
    """

    def __init__(self, in_channels: int, out_channels: int, *, reduction: int = 4, depth: int = 4) -> None:
        super().__init__()
        inner = _divided("reduction", out_channels, reduction)
        if depth < 1:
            raise ConfigError(f"depth must be at least 1; got {depth}")
        self.down = nn.Conv2d(in_channels, inner, 1)
        self.dense = nn.ModuleList(ConvNormReLU(inner * (i + 1), inner) for i in range(depth))
        self.fuse = ConvNormReLU(in_channels + inner, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, O, H, W)."""
        narrow = self.down(x)
        seen: list[Tensor] = []
        for block in self.dense:
            seen.append(block(torch.cat([*seen, narrow], 1)))
        return self.fuse(torch.cat([x, seen[-1]], 1))


class DenseTransLayer(Released):
    """The transport layer: features of two streams at one scale become the guidance that kernels are made from.

    ``f = block(rgb + depth)``, ``out = block(dense(f) + f)``.

    Args:
        in_channels: C of both streams.
        out_channels: O; divides C, and is the width inside the dense layer.

    Raises:
        ConfigError: out_channels does not divide in_channels.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        reduction = _divided("out_channels", in_channels, out_channels)
        self.merge = ConvNormReLU(in_channels, in_channels)
        self.refine = DenseLayer(in_channels, in_channels, reduction=reduction)
        self.narrow = ConvNormReLU(in_channels, out_channels)

    def forward(self, rgb: Tensor, depth: Tensor) -> Tensor:
        """Two of (B, C, H, W) -> (B, O, H, W)."""
        merged = self.merge(rgb + depth)
        return self.narrow(self.refine(merged) + merged)


class DepthDC(Opaque, Released):
    """Filter each channel at each position with a kernel that another feature map generates, then mix the channels.

    ``W = generate(dense(conv(guide)))``: one kernel per channel and position, not normalised;
    ``y = fuse(pixel_conv(x, W))`` with zeros outside x. The paper speaks of kernels enlarged by zeros (its KTU); that
    is dilation, and the authors' three modules differ in nothing else.

    Args:
        in_channels: C of x.
        guide_channels: D of the guide.
        out_channels: O.
        kernel_size: An int or two.
        dilation: An int or two; ``dilation * (kernel_size - 1)`` must be even, so that both sides are padded alike.
        reduction: Of the generator's dense layer; divides D.
        depth: Of the generator's dense layer. The released code takes it as ``down_factor``, whose name and comment
            speak of channels; these are always divided by 4 there.
        recompute: Make the kernels again in the backward pass instead of keeping them and what they are made of; see
            ``convary.nn.recompute``.

    Raises:
        ConfigError: such a kernel cannot be centred, reduction does not divide guide_channels, or depth is below 1.
    """

    def __init__(
        self,
        in_channels: int,
        guide_channels: int,
        out_channels: int,
        kernel_size: Size = 3,
        *,
        dilation: Size = 1,
        reduction: int = 4,
        depth: int = 4,
        recompute: bool = False,
    ) -> None:
        super().__init__()
        self.kernel_size = per_axis(kernel_size, 2, "kernel_size")
        self.dilation = per_axis(dilation, 2, "dilation")
        if any(d * (k - 1) % 2 for k, d in zip(self.kernel_size, self.dilation, strict=True)):
            raise ConfigError(
                f"dilation * (kernel_size - 1) must be even; got {kernel_size=}, {dilation=}; use an odd kernel size"
            )
        self.recompute = recompute
        self.embed = nn.Sequential(
            nn.Conv2d(guide_channels, guide_channels, 3, padding=1),
            DenseLayer(guide_channels, guide_channels, reduction=reduction, depth=depth),
        )
        self.generate = nn.Conv2d(guide_channels, in_channels * prod(self.kernel_size), 1)
        self.fuse = nn.Conv2d(in_channels, out_channels, 3, padding=1)

    def kernels(self, guide: Tensor) -> Tensor:
        """(B, D, H, W) -> (B, C, kh*kw, H, W), taps row-major."""
        return unflatten(self.generate(self.embed(guide)), 1, (-1, prod(self.kernel_size)))

    def forward(self, x: Tensor, guide: Tensor) -> Tensor:
        """(B, C, H, W) and (B, D, H, W) -> (B, O, H, W).

        Raises:
            ShapeError: x and the guide are not of the same batch and size.
        """
        (B, _, *size), (N, _, *other) = plain_shape(x), plain_shape(guide)
        if B != N or size != other:
            raise ShapeError(
                f"x is {tuple(x.shape)} but the guide {tuple(guide.shape)}; only their channels may differ: resize one"
            )
        padding = tuple(d * (k - 1) // 2 for k, d in zip(self.kernel_size, self.dilation, strict=True))
        window: dict[str, Any] = {"kernel_size": self.kernel_size, "padding": padding, "dilation": self.dilation}
        if self.recompute:
            return self.fuse(recomputed(self.kernels, x, guide, **window))
        return self.fuse(pixel_conv(x, self.kernels(guide), **window))

    def extra_repr(self) -> str:
        """What the parts do not show."""
        return f"kernel_size={self.kernel_size}, dilation={self.dilation}, recompute={self.recompute}"


class DDPM(Released):
    """Dynamic dilated pyramid: one ``DepthDC`` per dilation on a narrowed x, all of them and x fused.

    ``x' = reduce(x)`` with O / reduction channels, ``out = block(cat(x', DepthDC_d(x', guide) for d in dilations))``.

    Args:
        in_channels: C of x.
        guide_channels: D of the guide.
        out_channels: O.
        kernel_size: Of every branch.
        dilations: One branch each.
        reduction: Divides O, and D inside the branches' generators.
        depth: Of the generators' dense layers; the released code's ``down_factor``, see ``DepthDC``.
        recompute: See ``DepthDC``.

    Raises:
        ConfigError: no dilations, depth below 1, or the numbers do not divide.
    """

    def __init__(
        self,
        in_channels: int,
        guide_channels: int,
        out_channels: int,
        kernel_size: Size = 3,
        *,
        dilations: tuple[int, ...] = (1, 3, 5),
        reduction: int = 4,
        depth: int = 4,
        recompute: bool = False,
    ) -> None:
        super().__init__()
        if not dilations:
            raise ConfigError("dilations is empty; give one per branch, as in (1, 3, 5)")
        inner = _divided("reduction", out_channels, reduction)
        self.reduce = nn.Conv2d(in_channels, inner, 1)
        options: dict[str, Any] = {"reduction": reduction, "depth": depth, "recompute": recompute}
        self.branches = nn.ModuleList(
            DepthDC(inner, guide_channels, inner, kernel_size, dilation=d, **options) for d in dilations
        )
        self.fuse = ConvNormReLU(inner * (1 + len(dilations)), out_channels)

    def forward(self, x: Tensor, guide: Tensor) -> Tensor:
        """(B, C, H, W) and (B, D, H, W) -> (B, O, H, W).

        Raises:
            ShapeError: x and the guide are not of the same batch and size.
        """
        x = self.reduce(x)
        return self.fuse(torch.cat([x, *(branch(x, guide) for branch in self.branches)], 1))


def _divided(name: str, channels: int, by: int) -> int:
    """``channels / by``, which must be whole."""
    if by < 1 or channels % by:
        raise ConfigError(f"{name} must divide {channels} channels; got {by}")
    return channels // by
