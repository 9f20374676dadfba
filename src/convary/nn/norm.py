# SPDX-License-Identifier: Apache-2.0
"""Normalisation inside routers.

Programs that freeze, split or synchronise the norms of a network find them by ``nn.BatchNorm2d``, which the authors
have over maps of one position. So these are such norms by their class, and what is put in their place gets such maps.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class VectorBatchNorm(nn.BatchNorm2d):
    """Batch normalisation of (B, C) vectors that also takes a batch of one, or none, in training.

    Detectors probe their strides with a single image in training mode, and the last batch of an epoch may hold one
    sample. Statistics of one number are meaningless, so such a batch is normalised with the running statistics and
    leaves them as they are. For two samples and more this is ``nn.BatchNorm1d``, and the state dict is the same.
    """

    def _check_input_dim(self, input: Tensor) -> None:
        """(B, C) is what it takes."""

    def forward(self, input: Tensor) -> Tensor:
        """Normalise (B, C)."""
        alone = self.training and input.shape[0] < 2
        if not alone:
            return super().forward(input)
        return F.batch_norm(input, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)


def scale_and_shift(norm: Any) -> tuple[Tensor, Tensor]:
    """Scale and shift that the running statistics of a batch normalisation make, (C,) each."""
    scale = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
    return scale, norm.bias - norm.running_mean * scale


def mapped(norm: Any, x: Tensor) -> Tensor:
    """X (B, C, *S) by the linear map that a batch normalisation is with its running statistics."""
    # Written out: torch 2.14's double backward of batch_norm with running statistics is wrong behind a matmul.
    scale, shift = (value.reshape(-1, *[1] * (x.ndim - 2)) for value in scale_and_shift(norm))
    return x * scale + shift


class BatchNorm(nn.BatchNorm2d):
    """Batch normalisation of (B, C, *S) with any number of axes; takes a single number per channel as above."""

    def _check_input_dim(self, input: Tensor) -> None:
        """Any number of axes is taken."""

    def forward(self, input: Tensor) -> Tensor:
        """Normalise (B, C, *S)."""
        if self.training and input.numel() >= 2 * input.shape[1]:
            return super().forward(input)
        return mapped(self, input)


class SyncNorm(nn.SyncBatchNorm):
    """What ``convert_sync_batchnorm`` makes of both: statistics over all processes, a single number taken as above."""

    def forward(self, input: Tensor) -> Tensor:
        """Normalise (B, C, *S)."""
        alone = input.numel() < 2 * input.shape[1] and not self._has_company()
        return mapped(self, input) if self.training and alone else super().forward(input)

    def _has_company(self) -> bool:
        together = torch.distributed.is_available() and torch.distributed.is_initialized()
        return together and torch.distributed.get_world_size(self.process_group) > 1


def adopt(module: nn.Module | None, instead_of: nn.Module | None) -> nn.Module | None:
    """The module, as a ``SyncNorm`` where a synchronised norm takes the place of one of those here."""
    if type(module) is nn.SyncBatchNorm and isinstance(instead_of, VectorBatchNorm | BatchNorm):
        module.__class__ = SyncNorm
    return module


_OF_VECTORS = (VectorBatchNorm, BatchNorm, SyncNorm, nn.BatchNorm1d, nn.LayerNorm, nn.Identity)


def normalised(norm: nn.Module, x: Tensor) -> Tensor:
    """X (B, C, *S) by a norm, which may be one of maps that somebody put there, such as a frozen or a split one."""
    if isinstance(norm, _OF_VECTORS):
        return norm(x)
    rows = x.unsqueeze(2) if x.ndim == 2 else x.flatten(2)
    return norm(rows.unsqueeze(3)).reshape(x.shape)


def make_norm(name: str, width: int, **factory) -> nn.Module:
    """The normalisation of a router's hidden vector: "batch", "layer" or "none"."""
    if name == "batch":
        return VectorBatchNorm(width, **factory)
    return nn.LayerNorm(width, **factory) if name == "layer" else nn.Identity()
