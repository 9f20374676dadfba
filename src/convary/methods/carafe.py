# SPDX-License-Identifier: Apache-2.0
"""CARAFE: upsampling with a kernel per output position, made from the features.

``y[c, p] = sum_t w[t, p] x[c, p // scale + t]`` with ``w = softmax_t(pixel_shuffle(W_2 * (W_1 x)))``, where ``*`` is a
3x3 convolution: weights stand on the output's grid, taps on the input's.

Wang, Chen, Xu, Liu, Loy, Lin, "CARAFE: Content-Aware ReAssembly of FEatures", ICCV 2019; as in the authors' code, whose
names the submodules have.
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from convary.errors import ConfigError, ShapeError
from convary.nn import Opaque
from convary.nn.arguments import Device, Dtype
from convary.ops import pixel_conv
from convary.ops.geometry import whole
from convary.ops.shapes import plain_shape, unflatten


class CARAFE(Opaque):
    """Enlarges feature maps by kernels that it makes of them.

    Args:
        channels: C.
        scale_factor: Rows and columns of output per one of input.
        kernel_size: k, of the kernels that are made; odd. Published: 5.
        groups: G; C/G channels share a kernel. Published: 1.
        encoder_kernel: Of the convolution that makes the kernels; odd. Published: 3.
        encoder_dilation: Of that convolution. Published: 1.
        compressed_channels: That it sees. Published: 64.
        device: Of the parameters.
        dtype: Of the parameters.

    Shape:
        x (B, C, H, W) to (B, C, scale_factor * H, scale_factor * W).

    Raises:
        ConfigError: a size that can't work.

    >>> import torch
    >>> CARAFE(8)(torch.randn(2, 8, 5, 7)).shape
    torch.Size([2, 8, 10, 14])
    """

    def __init__(
        self,
        channels: int,
        scale_factor: int = 2,
        *,
        kernel_size: int = 5,
        groups: int = 1,
        encoder_kernel: int = 3,
        encoder_dilation: int = 1,
        compressed_channels: int = 64,
        device: Device = None,
        dtype: Dtype = None,
    ) -> None:
        super().__init__()
        channels, scale_factor, groups, compressed_channels, kernel_size, encoder_kernel, encoder_dilation = whole(
            channels=channels, scale_factor=scale_factor, groups=groups, compressed_channels=compressed_channels,
            kernel_size=kernel_size, encoder_kernel=encoder_kernel, encoder_dilation=encoder_dilation,
        )  # fmt: skip
        if channels % groups:
            raise ConfigError(f"groups must divide channels; got {channels=}, {groups=}")
        for name, size in (("kernel_size", kernel_size), ("encoder_kernel", encoder_kernel)):
            if size % 2 == 0:
                raise ConfigError(f"{name} must be odd and above 0, so that a kernel has a middle; got {size}")
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self.channels, self.scale_factor, self.kernel_size, self.groups = channels, scale_factor, kernel_size, groups
        self.channel_compressor = nn.Conv2d(channels, compressed_channels, 1, **factory)
        made = kernel_size**2 * groups * scale_factor**2
        reach = encoder_dilation * (encoder_kernel // 2)
        self.content_encoder = nn.Conv2d(
            compressed_channels, made, encoder_kernel, padding=reach, dilation=encoder_dilation, **factory
        )
        self.initialise_()

    def initialise_(self) -> None:
        """As published: the compressor by Xavier's rule, the encoder so small that all taps begin alike."""
        nn.init.xavier_uniform_(self.channel_compressor.weight)
        nn.init.normal_(self.content_encoder.weight, std=0.001)
        for conv in (self.channel_compressor, self.content_encoder):
            nn.init.zeros_(conv.get_parameter("bias"))

    def kernels(self, x: Tensor) -> Tensor:
        """The kernels of x (B, C, H, W): (B, G, k*k, scale*H, scale*W), taps row-major; each sums to 1."""
        maps = F.pixel_shuffle(self.content_encoder(self.channel_compressor(x)), self.scale_factor)
        return unflatten(maps, 1, (self.groups, -1)).softmax(2)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C, scale_factor * H, scale_factor * W).

        Raises:
            ShapeError: x has another number of axes or channels.
        """
        if x.ndim != 4 or plain_shape(x)[1] != self.channels:
            raise ShapeError(f"CARAFE wants x (B, {self.channels}, H, W); got {tuple(x.shape)}")
        return pixel_conv(
            x,
            self.kernels(x),
            kernel_size=self.kernel_size,
            padding=self.kernel_size // 2,
            scale_factor=self.scale_factor,
        )

    def extra_repr(self) -> str:
        """The sizes that decide the output."""
        names = ("scale_factor", "kernel_size", "groups")
        return ", ".join([str(self.channels), *(f"{name}={getattr(self, name)}" for name in names)])
