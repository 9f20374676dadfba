# SPDX-License-Identifier: Apache-2.0
"""The small pieces that networks making kernels are built from."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

from torch import nn


def conv_norm_relu(in_channels: int, channels: int, kernel_size: int, **factory: Any) -> nn.Sequential:
    """A convolution of odd size that keeps the map's, batch normalisation, ReLU.

    The parts are called ``conv``, ``bn`` and ``activate``, as in the code that several papers released.
    """
    conv = nn.Conv2d(in_channels, channels, kernel_size, padding=kernel_size // 2, bias=False, **factory)
    return nn.Sequential(OrderedDict(conv=conv, bn=nn.BatchNorm2d(channels, **factory), activate=nn.ReLU()))
