# SPDX-License-Identifier: Apache-2.0
"""The small pieces that networks making kernels are built from."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

from torch import nn


def conv_norm_relu(
    in_channels: int, channels: int, kernel_size: int, *, norm: bool = True, **factory: Any
) -> nn.Sequential:
    """A convolution of odd size that keeps the map's, batch normalisation, ReLU; without the norm it has a bias.

    The parts are called ``conv``, ``bn`` and ``activate``, as in the code that several papers released.
    """
    conv = nn.Conv2d(in_channels, channels, kernel_size, padding=kernel_size // 2, bias=not norm, **factory)
    parts = OrderedDict[str, nn.Module](conv=conv)
    if norm:
        parts["bn"] = nn.BatchNorm2d(channels, **factory)
    return nn.Sequential(parts | OrderedDict(activate=nn.ReLU()))
