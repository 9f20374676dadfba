# SPDX-License-Identifier: Apache-2.0
"""Involution: a kernel per position, made from the features there and shared by the channels of a group.

``y[c, p] = sum_t w[c // 16, t, p] x[c, p*stride + t]`` with ``w = W_2 ReLU(BN(W_1 AvgPool_stride(x))) + b``.

Li, Hu, Wang, Li, She, Zhu, Zhang, Chen, "Involution: Inverting the Inherence of Convolution for Visual Recognition",
CVPR 2021; as in the released code, whose names the submodules have. Its kernels are not normalised. On a map that the
stride does not divide, where the released code fails, the last pool averages what there is.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from math import prod
from typing import Any, ClassVar, Literal

import torch.nn.functional as F
from torch import Tensor, nn

from convary.errors import ConfigError, ShapeError
from convary.methods.config import MethodConfig
from convary.nn import Opaque, Placed, Site
from convary.nn.arguments import Device, Dtype
from convary.nn.conv import PADDING_MODES
from convary.nn.conv_norm_relu import conv_norm_relu
from convary.nn.same import pads_like_tensorflow
from convary.ops import pixel_conv
from convary.ops.geometry import Size, per_axis, whole
from convary.ops.shapes import plain_shape, unflatten


@dataclass(frozen=True, kw_only=True)
class Involution(MethodConfig):
    """Options of involution, which replaces k x k convolutions that keep the number of channels.

    Attributes:
        kernel_size: Of the involution; None takes the convolution's. Published: 7 in place of 3.
        group_channels: Channels that share a kernel; divides the layer's channels.
        reduction: The generator's hidden layer has C // reduction channels.

    Examples:
        >>> from torch import nn
        >>> Involution(kernel_size=5).build(nn.Conv2d(16, 16, 3, padding=1)).kernel_size
        (5, 5)
    """

    name: ClassVar[str] = "involution"
    title: ClassVar[str] = "Involution"
    citation: ClassVar[str] = "Li et al., Involution, CVPR 2021"
    upcycles: ClassVar[bool] = False

    kernel_size: int | None = 7
    group_channels: int = 16
    reduction: int = 4

    def __post_init__(self) -> None:
        """Check the numbers."""
        super().__post_init__()
        for field in ("group_channels", "reduction"):
            if getattr(self, field) < 1:
                raise ConfigError(f"{field} must be at least 1; got {getattr(self, field)}")
        if self.kernel_size is not None and (self.kernel_size < 1 or self.kernel_size % 2 == 0):
            raise ConfigError(f"kernel_size must be odd and above 0, or None; got {self.kernel_size}")

    def refuses(self, module: Any) -> str | None:
        """Why a layer has no involution in its place: one is per position, of odd size, and mixes no channels."""
        if not isinstance(module, nn.Conv2d):
            return "involution replaces 2-D convolutions only"
        k, C = module.kernel_size, module.in_channels
        if prod(k) == 1:
            return "a 1x1 convolution mixes channels, which involution can't"
        if module.out_channels != C:
            return f"involution keeps the number of channels; the layer makes {module.out_channels} of {C}"
        if C % self.group_channels or C < self.reduction:
            return f"its {C} channels are no multiple of group_channels={self.group_channels}, or below the reduction"
        if pads_like_tensorflow(module) or not _is_centered(module):
            return f"involution wants an odd kernel and padding dilation*(k-1)/2; got {k} and {module.padding}"
        return None

    def build(self, module: Any) -> nn.Module:
        """An involution with the channels, stride, dilation, padding mode, dtype and device of a convolution.

        Raises:
            ConfigError: see ``refuses``.
        """
        reason = self.refuses(module)
        if reason:
            raise ConfigError(reason)
        layer = Involution2d(
            module.in_channels,
            module.kernel_size if self.kernel_size is None else self.kernel_size,
            module.stride,
            module.dilation,
            module.padding_mode,
            module.weight.device,
            module.weight.dtype,
            group_channels=self.group_channels,
            reduction=self.reduction,
        )
        return layer.train(module.training)

    @classmethod
    def placement(cls, site: Site) -> bool:
        """The k x k convolutions inside blocks: the 3x3 ones of a ResNet's bottlenecks (Sec. 4.1)."""
        return site.is_conv and site.block is not None and not site.shortcut and prod(site.module.kernel_size) > 1


class Involution2d(Opaque, Placed):
    """Involution over (B, C, H, W).

    Args:
        channels: C.
        kernel_size: int or one per axis; odd.
        stride: int or one per axis.
        dilation: int or one per axis.
        padding_mode: What is seen beyond the edge: "zeros", "reflect", "replicate" or "circular".
        device: Of the parameters.
        dtype: Of the parameters.
        group_channels: Channels that share a kernel.
        reduction: The generator's hidden layer has C // reduction channels.

    Shape:
        x (B, C, H, W) to (B, C, ceil(H / stride), ceil(W / stride)).

    Raises:
        ConfigError: a size that can't work.

    >>> import torch
    >>> Involution2d(32, 7, stride=2)(torch.randn(2, 32, 9, 8)).shape
    torch.Size([2, 32, 5, 4])
    """

    def __init__(
        self,
        channels: int,
        kernel_size: Size,
        stride: Size = 1,
        dilation: Size = 1,
        padding_mode: Literal["zeros", "reflect", "replicate", "circular"] = "zeros",
        device: Device = None,
        dtype: Dtype = None,
        *,
        group_channels: int = 16,
        reduction: int = 4,
    ) -> None:
        super().__init__()
        channels, group_channels, reduction = whole(
            channels=channels, group_channels=group_channels, reduction=reduction
        )
        if channels % group_channels or channels < reduction:
            raise ConfigError(
                f"group_channels must divide channels and reduction not exceed them; got {channels=}, "
                f"{group_channels=}, {reduction=}"
            )
        self.kernel_size = per_axis(kernel_size, 2, "kernel_size")
        if any(k % 2 == 0 for k in self.kernel_size):
            raise ConfigError(f"kernel_size must be odd, so that a kernel has a middle; got {kernel_size}")
        if padding_mode not in PADDING_MODES:
            raise ConfigError(f"padding_mode must be one of {', '.join(PADDING_MODES)}; got {padding_mode!r}")
        self.in_channels = self.out_channels = channels
        self.groups = channels // group_channels
        self.stride, self.dilation = per_axis(stride, 2, "stride"), per_axis(dilation, 2, "dilation")
        self.padding_mode: Literal["zeros", "reflect", "replicate", "circular"] = padding_mode
        self.hidden = channels // reduction
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self.conv1 = conv_norm_relu(channels, self.hidden, 1, **factory)
        span = nn.Conv2d(self.hidden, self.groups * prod(self.kernel_size), 1, **factory)
        self.conv2 = nn.Sequential(OrderedDict(conv=span))

    def kernels(self, x: Tensor) -> Tensor:
        """The kernels of x (B, C, H, W): (B, G, T, ceil(H / stride), ceil(W / stride)), taps row-major."""
        if self.stride != (1, 1):
            x = F.avg_pool2d(x, self.stride, ceil_mode=True)
        return unflatten(self.conv2(self.conv1(x)), 1, (self.groups, -1))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C, ceil(H / stride), ceil(W / stride)).

        Raises:
            ShapeError: x has another number of axes or channels.
        """
        if x.ndim != 4 or plain_shape(x)[1] != self.in_channels:
            raise ShapeError(f"Involution2d wants x (B, {self.in_channels}, H, W); got {tuple(x.shape)}")
        return pixel_conv(
            x,
            self.kernels(x),
            kernel_size=self.kernel_size,
            stride=self.stride,
            padding=tuple(d * (k - 1) // 2 for k, d in zip(self.kernel_size, self.dilation, strict=True)),
            dilation=self.dilation,
            border=self.padding_mode,
        )

    def macs(self, positions: int) -> dict[str, int]:
        """Multiply-adds per sample with that many output positions: applying the kernels, and making them."""
        taps = prod(self.kernel_size)
        made = self.hidden * (self.in_channels + self.groups * taps)
        return {"convolution": self.in_channels * taps * positions, "routing": made * positions}

    def extra_repr(self) -> str:
        """Like ``nn.Conv2d``, with the groups that share a kernel."""
        parts = [f"{self.in_channels}, kernel_size={self.kernel_size}, groups={self.groups}"]
        parts += [f"{name}={getattr(self, name)}" for name in ("stride", "dilation") if getattr(self, name) != (1, 1)]
        return ", ".join(parts)


def _is_centered(conv: nn.Conv2d) -> bool:
    """Whether a convolution sees as far to each side, so that it has a position for every stride-th one of x."""
    if any(k % 2 == 0 for k in conv.kernel_size):
        return False
    if isinstance(conv.padding, str):
        return conv.padding == "same"
    reach = tuple(d * (k - 1) // 2 for k, d in zip(conv.kernel_size, conv.dilation, strict=True))
    return tuple(conv.padding) == reach
