# SPDX-License-Identifier: Apache-2.0
"""DCD's router: what fuses the latent channels of a sample, and what scales its filters."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from convary.nn import Router
from convary.nn.arguments import Device, Dtype
from convary.ops.coefficients import Factors
from convary.ops.shapes import unflatten


class Fusion(Factors):
    """What a DCD layer does to a sample.

    Attributes:
        filter: (B, 1, O) scale of each filter of the static kernel, L(x).
        latent: (B, latent, latent) matrix that fuses the latent channels, Phi(x).
    """

    __slots__ = ()
    filter: Tensor
    latent: Tensor


class FusionRouter(Router):
    """Makes Phi and L from pooled features.

    Args:
        in_channels: C.
        out_channels: O.
        latent: Width of the latent space.
        pool: Positions per axis that are left of x; 1 or 2.
        rank: Spatial axes of x.
        hidden: Width of z.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        latent: int,
        pool: int,
        rank: int,
        hidden: int,
        device: Device = None,
        dtype: Dtype = None,
    ) -> None:
        super().__init__(in_channels)
        factory: dict[str, Any] = {"bias": False, "device": device, "dtype": dtype}
        self.pool, self.sizes = pool, [latent**2, out_channels]
        self.squeeze = nn.Linear(in_channels * pool**rank, hidden, **factory)
        self.gate = nn.Linear(hidden, hidden, **factory)
        self.heads = nn.Linear(hidden, sum(self.sizes), **factory)
        self.initialise_()

    def initialise_(self) -> None:
        """Normal, and small."""
        super().initialise_()
        for linear in (self.squeeze, self.gate, self.heads):
            nn.init.normal_(linear.weight, 0, 0.01)

    def _route(self, x: Tensor) -> Fusion:
        return self.coefficients((halves(x) if self.pool == 2 else x.flatten(2).mean(2)).to(self.dtype()))

    def coefficients(self, vector: Tensor) -> Fusion:
        """filter: (B, 1, O) and latent: (B, latent, latent), from pooled features (B, C * pool ** rank)."""
        v = self.squeeze(vector)
        phi, scale = self.heads(v * hsigmoid(self.gate(v))).split_with_sizes(self.sizes, 1)
        width = math.isqrt(self.sizes[0])
        return Fusion(filter=hsigmoid(scale).unsqueeze(1), latent=unflatten(phi, 1, (width, width)))

    def neutral_(self) -> None:
        """Zero logits: every filter's scale is 1, and Phi 0."""
        nn.init.zeros_(self.heads.weight)


def hsigmoid(t: Tensor) -> Tensor:
    """``relu6(t + 3) / 3``, from 0 to 2."""
    return F.relu6(t + 3) / 3


def halves(x: Tensor) -> Tensor:
    """Means over the halves of every axis, (B, C, *S) to (B, C * 2 ** rank): adaptive pooling to 2, for any size.

    The halves of an odd axis share its middle, as in ``F.adaptive_avg_pool2d``.
    """
    for _ in range(2, x.ndim):  # each turn takes the first axis that is left and puts its halves last
        size = x.shape[2]
        x = torch.stack([x[:, :, : (size + 1) // 2].mean(2), x[:, :, size // 2 :].mean(2)], -1)
    return x.flatten(1)
