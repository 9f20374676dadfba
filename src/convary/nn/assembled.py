# SPDX-License-Identifier: Apache-2.0
"""The base of convolutions that make a kernel per sample of something else than a bank of whole kernels."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from convary.nn.conv import DynamicConv
from convary.ops import sample_conv
from convary.ops.geometry import Size


class AssembledConv(DynamicConv):
    """A dynamic convolution whose ``kernels`` are made first, then each sample is convolved with its own.

    The bias is static. A subclass sets ``takes`` to what its router makes, narrows the type of ``router``, and defines
    ``make_router``, ``initialise_``, ``kernels`` and ``take_``; ``make_weight`` too where its weight is not one kernel.

    Attributes:
        weight: A bank of one kernel, (1, O, C/G, *k): no state dict of a static layer goes into it unnoticed.
    """

    mixed_bias = False
    fast_path = None  # prepares a bank and its mixing
    constant_weights: ClassVar[bool] = False

    def make_weight(self, **factory: Any) -> None:
        """(1, O, C/G, *k), uninitialised."""
        self.weight = nn.Parameter(torch.empty(1, *self.kernel_shape, **factory))

    def convolve(self, x: Tensor, coeffs: Any, padding: Size | str) -> Tensor:
        """Make the kernels, then convolve each sample with its own."""
        geometry = {"stride": self.stride, "dilation": self.dilation, "groups": self.groups}
        return sample_conv(x, self.kernels(coeffs), self.bias, padding=padding, **geometry)
