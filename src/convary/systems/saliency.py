# SPDX-License-Identifier: Apache-2.0
"""Salient object detection: HDFNet's hybrid enhanced loss, and the field's measures."""

from __future__ import annotations

import warnings

import torch.nn.functional as F
from torch import Tensor

from convary.extras import require

BETA_SQUARED = 0.3  # of the F-measure, since Achanta et al. 2009
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


class SaliencyScores:
    """Collects predictions and gives the measures that HDFNet's authors report, by PySODMetrics.

    Raises:
        MissingExtraError: PySODMetrics is not installed.
    """

    def __init__(self) -> None:
        require("scores of salient objects", "systems", "py_sod_metrics")
        import py_sod_metrics as measures

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Fmeasure is to go in favour of a class with more options
            self._f = measures.Fmeasure(BETA_SQUARED)
        self._weighted, self._mae = measures.WeightedFmeasure(), measures.MAE()
        self._s, self._e = measures.Smeasure(), measures.Emeasure()

    def add(self, saliency: Tensor, mask: Tensor) -> None:
        """One prediction, as the authors compare it: in 8 bits, enlarged by nearest neighbour, stretched to [0, 1].

        Args:
            saliency: (h, w) in [0, 1], any size.
            mask: (H, W) bool.
        """
        eight = (saliency.float() * 255).byte()[None, None]
        enlarged = F.interpolate(eight, tuple(mask.shape), mode="nearest-exact")[0, 0].double()
        low, high = enlarged.min(), enlarged.max()
        self.compare((enlarged - low) / (high - low) if high > low else enlarged / 255, mask)

    def compare(self, saliency: Tensor, mask: Tensor) -> None:
        """One prediction (H, W) in [0, 1], as it is, with a mask (H, W) bool."""
        for measure in (self._f, self._weighted, self._mae, self._s, self._e):
            measure.step(saliency.double().cpu().numpy(), mask.cpu().numpy(), normalize=False)

    def result(self) -> dict[str, float]:
        """``max_f``, ``mean_f``, ``weighted_f``, ``mae``, ``s_measure``, ``e_measure`` over all predictions.

        ``max_f`` is the largest F over 255 thresholds, of precision and recall that were averaged over the images
        before; ``mean_f`` and ``e_measure`` cut each prediction at twice its own mean, and are averaged then. All are
        the authors' numbers but ``s_measure``: PySODMetrics follows its inventors' MATLAB code more closely, which
        makes a difference in the third decimal.
        """
        f = self._f.get_results()
        precision, recall = f["pr"]["p"][1:], f["pr"]["r"][1:]  # the authors have no threshold of 255
        curve = (1 + BETA_SQUARED) * precision * recall / (BETA_SQUARED * precision + recall + 1e-8)
        return {
            "max_f": float(curve.max()),
            "mean_f": float(f["fm"]["adp"]),
            "weighted_f": float(self._weighted.get_results()["wfm"]),
            "mae": float(self._mae.get_results()["mae"]),
            "s_measure": float(self._s.get_results()["sm"]),
            "e_measure": float(self._e.get_results()["em"]["adp"]),
        }
