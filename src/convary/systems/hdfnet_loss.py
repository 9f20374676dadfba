# SPDX-License-Identifier: Apache-2.0
"""HDFNet's hybrid enhanced loss. A part more is a key more of what ``hybrid_enhanced_losses`` returns."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

_EPS = 1e-6


def edge_loss(saliency: Tensor, mask: Tensor) -> Tensor:
    """Mean error near the mask's edges: ``sum(e |p - g|) / sum(e)``, e where g differs from its 5x5 mean.

    As in the released code, beyond the picture there is background: a region that touches the border has an edge there.

    Args:
        saliency: (B, 1, H, W) p in [0, 1].
        mask: (B, 1, H, W) g, 0 or 1.

    Returns:
        (B,)
    """
    edge = (mask != F.avg_pool2d(mask, 5, stride=1, padding=2)).to(mask)
    return (edge * (saliency - mask).abs()).sum((1, 2, 3)) / (edge.sum((1, 2, 3)) + _EPS)


def region_loss(saliency: Tensor, mask: Tensor) -> Tensor:
    """Share of the region that is missed plus share of the background that is hit, (B,); arguments as in ``edge_loss``.

    ``sum(g - gp) / sum(g) + sum((1 - g) p) / sum(1 - g)``
    """
    background = 1 - mask
    missed = (mask * (1 - saliency)).sum((1, 2, 3)) / (mask.sum((1, 2, 3)) + _EPS)
    return missed + (background * saliency).sum((1, 2, 3)) / (background.sum((1, 2, 3)) + _EPS)


def hybrid_enhanced_losses(logits: Tensor, mask: Tensor) -> dict[str, Tensor]:
    """HDFNet's training loss in its parts: binary cross entropy, ``edge_loss`` and ``region_loss``, batch means.

    Args:
        logits: (B, 1, H, W).
        mask: (B, 1, H, W), 0 or 1.
    """
    logits, mask = logits.float(), mask.float()
    saliency = logits.sigmoid()
    return {
        "bce": F.binary_cross_entropy_with_logits(logits, mask),
        "edge": edge_loss(saliency, mask).mean(),
        "region": region_loss(saliency, mask).mean(),
    }
