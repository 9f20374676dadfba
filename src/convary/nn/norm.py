# SPDX-License-Identifier: Apache-2.0
"""Normalisation inside routers."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class VectorBatchNorm(nn.BatchNorm1d):
    """Batch normalisation of (B, C) vectors that also takes a batch of one, or none, in training.

    Detectors probe their strides with a single image in training mode, and the last batch of an epoch may hold one
    sample. Statistics of one number are meaningless, so such a batch is normalised with the running statistics and
    leaves them as they are. For two samples and more this is ``nn.BatchNorm1d``, and the state dict is the same.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Normalise (B, C)."""
        alone = self.training and input.shape[0] < 2
        if not alone:
            return super().forward(input)
        return F.batch_norm(input, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)


class BatchNorm(nn.modules.batchnorm._BatchNorm):
    """Batch normalisation of (B, C, *S) with any number of axes; takes a single number per channel as above."""

    def _check_input_dim(self, input: Tensor) -> None:
        """Any will do."""

    def forward(self, input: Tensor) -> Tensor:
        """Normalise (B, C, *S)."""
        if self.training and input.numel() >= 2 * input.shape[1]:
            return super().forward(input)
        # Written out: torch 2.14's double backward of batch_norm with running statistics is wrong behind a matmul.
        scale, shift = (value.reshape(-1, *[1] * (input.ndim - 2)) for value in self.scale_and_shift())
        return input * scale + shift

    def scale_and_shift(self) -> tuple[Tensor, Tensor]:
        """Scale and shift that the running statistics make, (C,) each."""
        assert self.running_mean is not None  # it keeps statistics
        assert self.running_var is not None
        scale = self.weight * torch.rsqrt(self.running_var + self.eps)
        return scale, self.bias - self.running_mean * scale


def make_norm(name: str, width: int, **factory) -> nn.Module:
    """The normalisation of a router's hidden vector: "batch", "layer" or "none"."""
    if name == "batch":
        return VectorBatchNorm(width, **factory)
    return nn.LayerNorm(width, **factory) if name == "layer" else nn.Identity()
