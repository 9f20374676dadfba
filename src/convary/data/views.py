# SPDX-License-Identifier: Apache-2.0
"""Random views of a photograph together with its mask: larger or smaller, a part of it, mirrored or not."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from convary.data.normalisation import normalised
from convary.data.segmentation import IGNORE


def random_view(
    image: Tensor, mask: Tensor, rng: torch.Generator, *, size: int, scales: tuple[float, float]
) -> tuple[Tensor, Tensor]:
    """Scale by a factor drawn evenly from ``scales``, cut out a square anywhere, mirror half of the time.

    Args:
        image: (3, H, W) uint8.
        mask: (H, W) int64.
        rng: Draws scale, place and mirroring; on the CPU.
        size: Side of the square. Where the scaled image is smaller, zeros (the mean colour) are added at the right and
            the bottom, with the mask at 255.
        scales: Smallest and largest factor.

    Returns:
        The view, normalised, (3, size, size) float32, and its mask (size, size) int64.
    """
    low, high = scales
    factor = low + (high - low) * torch.rand((), generator=rng).item()
    scaled = [max(1, round(side * factor)) for side in mask.shape]
    x = F.interpolate(normalised(image)[None], size=scaled, mode="bilinear", antialias=True)
    y = F.interpolate(mask[None, None].float(), size=scaled, mode="nearest-exact")
    top, left = (int(torch.randint(max(0, side - size) + 1, (), generator=rng)) for side in scaled)
    window = (..., slice(top, top + size), slice(left, left + size))
    missing = [max(0, size - side) for side in scaled]
    sides = (0, missing[1], 0, missing[0])
    x, y = F.pad(x[window], sides), F.pad(y[window], sides, value=IGNORE)
    if torch.rand((), generator=rng) < 0.5:
        x, y = x.flip(-1), y.flip(-1)
    return x[0], y[0, 0].long()
