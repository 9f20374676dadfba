# SPDX-License-Identifier: Apache-2.0
"""DMNet's dynamic convolution module: the image, pooled to k x k, is the kernel.

``y = ReLU(BN( ReLU(BN(W_f x)) * (W_g AvgPool_kxk(x) + b_g) ))`` with ``*`` a depthwise convolution, one kernel per
sample and channel, neither normalised nor activated.

He, Deng, Qiao, "Dynamic Multi-scale Filters for Semantic Segmentation", ICCV 2019. The paper ends a module with a 1x1
convolution, which the released configs leave out (``fusion=False``); we follow the code. Submodules have the released
names, so that the head of a released checkpoint loads as it is.
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from convary.errors import ShapeError
from convary.nn import Opaque
from convary.nn.arguments import Device, Dtype
from convary.nn.conv_norm_relu import conv_norm_relu
from convary.nn.pool import adaptive_avg_pool
from convary.ops import sample_conv
from convary.ops.geometry import whole
from convary.ops.shapes import plain_shape


class DynamicConvModule(Opaque):
    """One scale of DMNet: filters x with kernels of one size that are made of x.

    Args:
        in_channels: C.
        channels: O, of the reduced features, the kernels and the result.
        kernel_size: k, odd or even. An even kernel reaches one position further to the left and the top.
        fusion: Whether a 1x1 convolution with norm and ReLU ends the module, as in the paper.
        norm: Whether there are normalisations, as published; without, the convolutions have biases, as in the released
            code without ``norm_cfg``.
        device: Of the parameters.
        dtype: Of the parameters.

    Shape:
        x (B, C, H, W) to (B, O, H, W).

    Raises:
        ConfigError: sizes below 1.

    >>> import torch
    >>> DynamicConvModule(16, 8, 4)(torch.randn(2, 16, 9, 7)).shape
    torch.Size([2, 8, 9, 7])
    """

    def __init__(
        self,
        in_channels: int,
        channels: int,
        kernel_size: int,
        *,
        fusion: bool = False,
        norm: bool = True,
        device: Device = None,
        dtype: Dtype = None,
    ) -> None:
        super().__init__()
        in_channels, channels, kernel_size = whole(in_channels=in_channels, channels=channels, kernel_size=kernel_size)
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self.in_channels, self.kernel_size = in_channels, kernel_size
        self.filter_gen_conv = nn.Conv2d(in_channels, channels, 1, **factory)
        self.input_redu_conv = conv_norm_relu(in_channels, channels, 1, norm=norm, **factory)
        self.norm = nn.BatchNorm2d(channels, **factory) if norm else nn.Identity()
        self.fusion_conv = conv_norm_relu(channels, channels, 1, norm=norm, **factory) if fusion else None

    @property
    def weight(self) -> Tensor:
        """That of the convolution which makes the kernels, for initialisers that go by "Conv" in a class's name."""
        return self.filter_gen_conv.weight

    def kernels(self, x: Tensor) -> Tensor:
        """The kernels of x (B, C, H, W): (B, O, k, k), one per sample and channel."""
        return self.filter_gen_conv(adaptive_avg_pool(x, self.kernel_size))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, O, H, W).

        Raises:
            ShapeError: x has another number of axes or channels.
        """
        if x.ndim != 4 or plain_shape(x)[1] != self.in_channels:
            raise ShapeError(f"DynamicConvModule wants x (B, {self.in_channels}, H, W); got {tuple(x.shape)}")
        features = self.input_redu_conv(x)
        before, after = self.kernel_size // 2, (self.kernel_size - 1) // 2
        y = sample_conv(
            F.pad(features, (before, after, before, after)),
            self.kernels(x).unsqueeze(2),
            groups=plain_shape(features)[1],
        )
        y = F.relu(self.norm(y))
        return y if self.fusion_conv is None else self.fusion_conv(y)

    def extra_repr(self) -> str:
        """The size of its kernels."""
        return f"kernel_size={self.kernel_size}"
