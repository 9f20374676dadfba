# SPDX-License-Identifier: Apache-2.0
"""From what CondInst says everywhere to instances: boxes, classes, scores and masks."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import nms

from convary.data.normalisation import normalised
from convary.errors import ConfigError, DataError
from convary.methods.condinst import MaskHead, aligned_bilinear, mask_logits
from convary.models.condinst import STRIDE, UNIT, CondInst, Dense

_CHUNK = 16  # masks enlarged at a time: at the size of a photograph they are what memory goes to


@dataclass(frozen=True, kw_only=True, eq=False)
class Instances:
    """The instances of one photograph, best first.

    Attributes:
        boxes: (N, 4) float32 x1 y1 x2 y2 in its pixels.
        scores: (N,) float32.
        labels: (N,) int64.
        masks: (N, H, W) bool.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    masks: Tensor


class Detector(nn.Module):
    """CondInst with what follows it, as one module of fixed output shapes: what to export.

    Args:
        model: The network.
        candidates: Best (position, class) pairs of an image that non-maximum suppression sees.
        detections: K, instances per image.
        threshold: Least class probability times centerness.
        overlap: Intersection over union above which the lower of two boxes of a class is dropped.
    """

    def __init__(
        self,
        model: CondInst,
        *,
        candidates: int = 1000,
        detections: int = 100,
        threshold: float = 0.05,
        overlap: float = 0.6,
    ) -> None:
        super().__init__()
        if not 1 <= detections <= candidates:
            raise ConfigError(f"detections must be between 1 and {candidates=}; got {detections}")
        self.model = model
        self.candidates, self.detections, self.threshold, self.overlap = candidates, detections, threshold, overlap

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """The best K instances of each image, best first; unused places have a score of 0.

        Args:
            images: (B, 3, H, W), normalised.

        Returns:
            ``boxes`` (B, K, 4) x1 y1 x2 y2 in pixels of the input, ``scores`` (B, K) in [0, 1], ``labels``
            (B, K) int64, ``masks`` (B, K, h, w) logits, where (h, w) is (ceil(H / 8), ceil(W / 8)) times
            8 / mask_stride.
        """
        dense = self.model(images)
        scores, labels, place = best(dense, self.candidates)
        boxes = boxes_at(dense, place, images.shape[2:])
        scores = suppress(boxes, scores, labels, self.overlap)
        scores = scores * (scores > self.threshold)
        scores, rank = scores.topk(self.detections, 1)
        labels, place = labels.gather(1, rank), place.gather(1, rank)
        boxes = boxes.gather(1, rank.unsqueeze(2).expand(-1, -1, 4))
        masks = masks_at(dense, place, self.model.mask_head, STRIDE // self.model.mask_stride)
        return {"boxes": boxes, "scores": scores, "labels": labels, "masks": masks}


def best(dense: Dense, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """The ``count`` pairs of position and class with the highest class probability times centerness.

    Returns:
        scores, labels and positions, each (B, count), best first; a score of 0 where there are fewer pairs.
    """
    classes = dense.logits.shape[2]
    scores = (dense.logits.sigmoid() * dense.centerness.sigmoid().unsqueeze(2)).flatten(1)
    scores, pair = F.pad(scores, (0, count)).topk(count, 1)  # padded: a small image has fewer pairs
    place = (pair // classes).clamp(max=dense.logits.shape[1] - 1)
    return scores, pair % classes, place


def boxes_at(dense: Dense, place: Tensor, size: tuple[int, int] | torch.Size) -> Tensor:
    """Boxes (B, K, 4) of positions (B, K), inside an image of ``size`` (H, W)."""
    points = dense.points[place]
    near, far = dense.distances.gather(1, place.unsqueeze(2).expand(-1, -1, 4)).split(2, 2)
    x, y = torch.stack((points - near, points + far), 2).unbind(3)
    return torch.stack((x.clamp(0, size[1]), y.clamp(0, size[0])), 3).flatten(2)


def suppress(boxes: Tensor, scores: Tensor, labels: Tensor, overlap: float) -> Tensor:
    """``scores`` with 0 for what greedy non-maximum suppression within image and class drops.

    Args:
        boxes: (B, K, 4), no coordinate below 0.
        scores: (B, K).
        labels: (B, K) int64.
        overlap: Intersection over union that is still kept.
    """
    B, K = scores.shape
    if not B:
        return scores
    # One call for all: classes are set apart along x and images along y, so that the offset costs few digits. Two boxes
    # beside them always survive, for torchvision tells torch.export that at least two do.
    image = torch.arange(B, device=labels.device).unsqueeze(1).expand(B, K)
    offset = torch.stack((labels, image), 2) * (boxes.max() + 1)
    beside = boxes.new_tensor([[-2, -2, -1, -1], [-4, -4, -3, -3]])
    apart = torch.cat(((boxes + offset.repeat(1, 1, 2)).flatten(0, 1), beside))
    kept = nms(apart, F.pad(scores.flatten(), (0, 2)), overlap)
    keep = scores.new_zeros(B * K + 2).index_fill(0, kept, 1)[: B * K]
    return scores * keep.reshape(B, K)


def masks_at(dense: Dense, place: Tensor, head: MaskHead, factor: int) -> Tensor:
    """Mask logits (B, K, h, w) of the instances at positions (B, K), ``factor`` times the size of the features."""
    B, K = place.shape
    index = torch.arange(B, device=place.device).unsqueeze(1).expand(B, K).flatten()
    params = dense.params.gather(1, place.unsqueeze(2).expand(-1, -1, dense.params.shape[2])).flatten(0, 1)
    logits = instance_masks(dense, params, index, place.flatten(), head, factor)
    return logits.unflatten(0, (B, K))


def instance_masks(dense: Dense, params: Tensor, index: Tensor, place: Tensor, head: MaskHead, factor: int) -> Tensor:
    """Mask logits (N, h, w) of N instances.

    Args:
        dense: What the network says.
        params: (N, num_params) of the instances.
        index: (N,) their images.
        place: (N,) their positions.
        head: The shape of the mask heads.
        factor: How much larger than the features the masks are.
    """
    with torch.autocast(dense.features.device.type, enabled=False):  # a coordinate has more digits than bfloat16
        logits = mask_logits(
            dense.features, params, index, dense.points[place], UNIT * dense.strides[place], head, stride=STRIDE
        )
        return aligned_bilinear(logits, factor).squeeze(1)


def scaled(size: tuple[int, int], short: int, long: int) -> tuple[int, int]:
    """(H, W) brought to a shorter side of ``short``, or less where the longer one would pass ``long``.

    >>> scaled((375, 500), 800, 1333), scaled((100, 400), 800, 1333)
    ((800, 1067), (333, 1333))
    """
    factor = min(short / min(size), long / max(size))
    return max(1, round(size[0] * factor)), max(1, round(size[1] * factor))


def prepare(image: Tensor, size: tuple[int, int]) -> Tensor:
    """A photograph (3, H, W) uint8 as the network wants it: (3, *size) float32, normalised.

    Raises:
        DataError: it is not such a tensor, or empty.
    """
    if image.dtype != torch.uint8 or image.ndim != 3 or image.shape[0] != 3 or not image.numel():
        raise DataError(f"an image must be (3, H, W) uint8 and not empty; got {tuple(image.shape)} {image.dtype}")
    x = F.interpolate(image.unsqueeze(0).float(), size=size, mode="bilinear", antialias=True, align_corners=False)[0]
    return normalised(x)


@torch.no_grad()
def predict(
    model: CondInst,
    image: Tensor,
    *,
    short: int = 800,
    long: int = 1333,
    threshold: float = 0.05,
    detections: int = 100,
) -> Instances:
    """The instances of a photograph.

    Args:
        model: The network, in eval mode.
        image: (3, H, W) uint8, of any size.
        short: Its shorter side is scaled to this; give what the network was trained with.
        long: At most this for the longer side.
        threshold: Least score.
        detections: At most so many.

    Raises:
        DataError: not such an image.
    """
    device = next(model.parameters()).device
    size = (image.shape[-2], image.shape[-1])
    inner = scaled(size, short, long) if image.numel() else size
    x = prepare(image.to(device), inner).unsqueeze(0)
    detector = Detector(model, threshold=threshold, detections=detections, candidates=max(1000, detections))
    found = {name: value[0] for name, value in detector(x).items()}
    found = {name: value[found["scores"] > 0] for name, value in found.items()}
    factor = x.new_tensor([size[1] / inner[1], size[0] / inner[0]]).repeat(2)
    return Instances(
        boxes=found["boxes"] * factor,
        scores=found["scores"],
        labels=found["labels"],
        masks=enlarge(found["masks"], model.mask_stride, inner, size),
    )


def enlarge(logits: Tensor, stride: int, inner: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """Mask logits (N, h, w), one per ``stride`` pixels of an input of ``inner`` (H, W), as masks (N, *size)."""
    masks = torch.zeros(len(logits), *size, dtype=torch.bool, device=logits.device)
    for first in range(0, len(logits), _CHUNK):
        some = logits[first : first + _CHUNK].unsqueeze(1).sigmoid()
        some = aligned_bilinear(some, stride)[:, :, : inner[0], : inner[1]]
        masks[first : first + _CHUNK] = (
            F.interpolate(some, size=size, mode="bilinear", align_corners=False).squeeze(1) > 0.5
        )
    return masks
