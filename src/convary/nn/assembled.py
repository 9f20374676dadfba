# SPDX-License-Identifier: Apache-2.0
"""The base of convolutions that make a kernel per sample of something else than a bank of whole kernels."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from convary.nn.conv import DynamicConv
from convary.ops import sample_conv
from convary.ops.geometry import Size
from convary.ops.tracing import is_traced

# Bytes of kernels that are made at a time. They are still in the cache when they are used, and malloc has pages for
# them; those of a whole batch, 9 MiB for each sample of 512x512 with 3x3, come fresh from the system.
_AT_ONCE = 8 << 20


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
        geometry = {"stride": self.stride, "padding": padding, "dilation": self.dilation, "groups": self.groups}
        few = self._at_once(x, coeffs)
        if few is None:
            return sample_conv(x, self.kernels(coeffs), self.bias, **geometry)
        parts = zip(x.split(few), *(factor.split(few) for factor in coeffs), strict=True)
        kind = type(coeffs)
        return torch.cat(
            [sample_conv(part, self.kernels(kind(*factors)), self.bias, **geometry) for part, *factors in parts]
        )

    def _at_once(self, x: Tensor, coeffs: Any) -> int | None:
        """Of how many samples to make the kernels at a time; None: of all, as in graphs, which know no batch."""
        if not x.is_cpu or is_traced(x):
            return None
        few = max(1, _AT_ONCE // (math.prod(self.kernel_shape) * x.element_size()))
        return few if few < len(x) and all(len(factor) == len(x) for factor in coeffs) else None
