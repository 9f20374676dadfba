# SPDX-License-Identifier: Apache-2.0
"""Static convolutions with TensorFlow's padding at any stride, which torch's own refuse."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from convary.ops.geometry import same_padding


class _SameConvNd:
    """``nn.ConvNd``'s arguments; ``padding`` stays 0, for x is padded here, by its size."""

    def forward(self: Any, x: Tensor) -> Tensor:
        """(B, C, *S) to (B, O, *ceil(S / stride))."""
        sides = same_padding(x.shape[2:], self.kernel_size, self.stride, self.dilation)
        amounts = [amount for before_after in reversed(sides) for amount in before_after]
        mode = "constant" if self.padding_mode == "zeros" else self.padding_mode
        return self._conv_forward(F.pad(x, amounts, mode), self.weight, self.bias)


class SameConv1d(_SameConvNd, nn.Conv1d):
    """``nn.Conv1d`` whose output has ceil(L / stride) positions."""


class SameConv2d(_SameConvNd, nn.Conv2d):
    """``nn.Conv2d`` whose output has ceil(H / stride) rows and ceil(W / stride) columns, as timm's ``Conv2dSame``."""


class SameConv3d(_SameConvNd, nn.Conv3d):
    """``nn.Conv3d`` whose output has ceil(D / stride), ceil(H / stride) and ceil(W / stride) positions."""


SAME_CONVS: dict[int, type[nn.Module]] = {1: SameConv1d, 2: SameConv2d, 3: SameConv3d}


def pads_like_tensorflow(conv: Any) -> bool:
    """Whether a convolution is one of these or timm's ``Conv2dSame``, whose own padding is 0 as well."""
    cls = type(conv)
    return isinstance(conv, _SameConvNd) or (
        cls.__name__ == "Conv2dSame" and cls.__module__.partition(".")[0] == "timm"
    )
