# SPDX-License-Identifier: Apache-2.0
"""Pixels to numbers of about zero mean and unit variance."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's, as every pretrained network assumes


def normalised(images: Tensor, mean: Sequence[float] = MEAN, std: Sequence[float] = STD) -> Tensor:
    """Uint8 (..., C, H, W) to float32, by the mean and deviation of each channel in 0..1."""
    middle, width = (torch.tensor(numbers, device=images.device).mul(255).reshape(-1, 1, 1) for numbers in (mean, std))
    return images.to(torch.float32, copy=True).sub_(middle).div_(width)  # new memory costs ten times the sums
