# SPDX-License-Identifier: Apache-2.0
"""The network that writes the filters of Dynamic Filter Networks."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from torch import nn

from convary.errors import ConfigError
from convary.methods.dfn_local import odd_sizes
from convary.nn.arguments import Device, Dtype


class FilterGenerator(nn.Sequential):
    """The plain filter-generating network: convolutions with LeakyReLU (0.01) in between, none after the last.

    With 1x1 kernels and 64 and 128 hidden channels it is that of the authors' steerable filters.

    Args:
        in_channels: D, of the condition.
        out_channels: Filter coefficients.
        hidden: Channels of the layers before the last, which is 1x1.
        kernel_size: Odd, of the layers before the last.
        device: Of the parameters.
        dtype: Of the parameters.

    Shape:
        (B, D, H, W) to (B, out_channels, H, W).
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        hidden: Sequence[int] = (64, 128),
        kernel_size: int = 3,
        device: Device = None,
        dtype: Dtype = None,
    ) -> None:
        (k, _) = odd_sizes(kernel_size, 2)
        channels = [in_channels, *hidden, out_channels]
        if min(channels) < 1:
            raise ConfigError(f"channels must be at least 1; got {in_channels=}, {hidden=}, {out_channels=}")
        layers: list[nn.Module] = []
        for C, O in itertools.pairwise(channels[:-1]):
            layers += [nn.Conv2d(C, O, k, padding=k // 2, device=device, dtype=dtype), nn.LeakyReLU(0.01)]
        super().__init__(*layers, nn.Conv2d(channels[-2], out_channels, 1, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """See ``init_filter_net``."""
        init_filter_net(self)


def init_filter_net(net: nn.Module) -> None:
    """He-uniform kernels and zero biases in all convolutions.

    He's own gain for a rectifier; the authors' ``HeUniform()`` of Lasagne has a gain of 1, kernels smaller by sqrt(2).
    """
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_uniform_(module.weight, nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
