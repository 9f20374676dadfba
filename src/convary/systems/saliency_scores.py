# SPDX-License-Identifier: Apache-2.0
"""The measures of salient object detection."""

from __future__ import annotations

import warnings

import torch.nn.functional as F
from torch import Tensor

from convary.extras import require

BETA_SQUARED = 0.3  # of the F-measure, since Achanta et al. 2009
MEASURES = {
    "max_f": "largest F-measure over all thresholds; higher is better, at most 1",
    "mean_f": "F-measure at an adaptive threshold; higher is better, at most 1",
    "weighted_f": "F-measure weighted by place; higher is better, at most 1",
    "mae": "mean absolute error; lower is better",
    "s_measure": "likeness of structure; higher is better, at most 1",
    "e_measure": "alignment, pixel by pixel and whole; higher is better, at most 1",
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
