# SPDX-License-Identifier: Apache-2.0
"""COCO's average precision, by pycocotools."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterable
from typing import Any, Literal

from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from convary.data.coco import CocoSet, encode
from convary.models.instances import Instances

_STATS = {"ap": 0, "ap50": 1, "ap75": 2}  # where COCOeval keeps them
_SIZES = {  # the same, with the objects' least and most area in pixels
    "ap_small": (3, 0.0, 32.0**2), "ap_medium": (4, 32.0**2, 96.0**2), "ap_large": (5, 96.0**2, float("inf"))
}  # fmt: skip
_OVERLAPS = {"ap": "the mean over overlaps from 0.5 to 0.95", "ap50": "at an overlap of 0.5", "ap75": "at 0.75",
             "ap_small": "of objects below 32 x 32 pixels", "ap_medium": "of those below 96 x 96",
             "ap_large": "of larger ones"}  # fmt: skip
MEASURES = {
    f"{kind}_{stat}": f"average precision of {what}, {words}; higher is better, at most 1"
    for kind, what in (("mask", "masks"), ("box", "boxes"))
    for stat, words in _OVERLAPS.items()
}


def average_precision(dataset: CocoSet, found: Iterable[Instances], *, masks: bool = True) -> dict[str, float]:
    """Mask and box AP over all thresholds, at 0.5 and at 0.75, and of small, medium and large objects.

    Args:
        dataset: What is there.
        found: What was found, photograph after photograph; taken one at a time, for masks are large.
        masks: Whether masks are scored too.

    Returns:
        ``mask_ap``, ``mask_ap50``, ``mask_ap75`` and the same for boxes, in [0, 1]; ``mask_ap_small`` (below 32x32
        pixels), ``mask_ap_medium`` and ``mask_ap_large`` (above 96x96) and the same for boxes where there are such.
    """
    shapes: list[dict[str, Any]] = []
    boxes: list[dict[str, Any]] = []
    for record, instances in zip(dataset.images, found, strict=True):
        labels, scores, corners = (t.tolist() for t in (instances.labels, instances.scores, instances.boxes))
        for label, score, (x1, y1, x2, y2), mask in zip(labels, scores, corners, instances.masks, strict=True):
            result = {"image_id": record["id"], "category_id": dataset.categories[label], "score": score}
            boxes.append(result | {"bbox": [x1, y1, x2 - x1, y2 - y1]})
            if masks:
                shapes.append(result | {"segmentation": encode(mask)})
    with contextlib.redirect_stdout(io.StringIO()):
        truth: Any = COCO()
        truth.dataset = dataset.truth()
        truth.createIndex()
        found_masks = _scores(truth, shapes, "segm", "mask") if masks else {}
        return found_masks | _scores(truth, boxes, "bbox", "box")


def _scores(truth: Any, results: list[dict[str, Any]], kind: Literal["segm", "bbox"], name: str) -> dict[str, float]:
    areas = [annotation["area"] for annotation in truth.dataset["annotations"] if not annotation["iscrowd"]]
    sizes = {stat: place for stat, (place, low, high) in _SIZES.items() if any(low <= area <= high for area in areas)}
    if not results:  # which pycocotools cannot load
        return {f"{name}_{stat}": 0.0 for stat in _STATS | sizes}
    evaluation = COCOeval(truth, truth.loadRes(results), kind)
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return {f"{name}_{stat}": max(0.0, float(evaluation.stats[place])) for stat, place in (_STATS | sizes).items()}
