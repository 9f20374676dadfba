# SPDX-License-Identifier: Apache-2.0
"""CondInst's loss: which position answers for which object, and the four terms, each of weight 1."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import generalized_box_iou_loss, sigmoid_focal_loss

from convary.methods.condinst import MaskHead, dice_loss
from convary.models.condinst import Dense
from convary.models.instances import instance_masks

RADIUS = 1.5  # strides around an object's centre of mass
REACH = 8  # strides to the farthest side of the box that a level answers for; the level before ends at half of it


class Targets(NamedTuple):
    """The objects of a batch, one image after the other.

    Attributes:
        index: (M,) image of each object.
        boxes: (M, 4) x1 y1 x2 y2 in pixels of the input.
        labels: (M,) int64.
        centres: (M, 2) x and y of the centre of mass of each mask.
        masks: (M, h, w) bool, as large as the network's masks: one position per 8, 4 or 2 pixels.
    """

    index: Tensor
    boxes: Tensor
    labels: Tensor
    centres: Tensor
    masks: Tensor


def assign(points: Tensor, strides: Tensor, targets: Targets, images: int) -> Tensor:
    """The object that each position answers for: (B, P) indices into the targets, -1 for none.

    A position answers for an object if it lies in its box and, on both axes, within ``RADIUS`` strides of its centre of
    mass, and its level is made for the distance to the farthest side; the smallest of several objects wins.
    """
    x, y = points.unbind(1)
    x1, y1, x2, y2 = targets.boxes.unsqueeze(2).unbind(1)
    sides = torch.stack((x - x1, y - y1, x2 - x, y2 - y))
    near = (points - targets.centres.unsqueeze(1)).abs().amax(2) < RADIUS * strides
    low = torch.where(strides == strides.min(), 0.0, REACH * strides / 2)
    high = torch.where(strides == strides.max(), torch.inf, REACH * strides)
    far = sides.amax(0)
    fits = (sides.amin(0) > 0) & near & (far >= low) & (far <= high)
    area = torch.where(fits, (x2 - x1) * (y2 - y1), torch.inf)
    rows = []
    for image in range(images):
        own = (targets.index == image).nonzero().squeeze(1)
        if not len(own):
            rows.append(torch.full_like(x, -1, dtype=torch.int64))
            continue
        least, place = area[own].min(0)
        rows.append(torch.where(least.isfinite(), own[place], -1))
    return torch.stack(rows)


def condinst_losses(dense: Dense, targets: Targets, head: MaskHead, max_instances: int = 500) -> dict[str, Tensor]:
    """The four terms, each connected to the network also where there is no object.

    Args:
        dense: What the network says.
        targets: What is there.
        head: The shape of the mask heads.
        max_instances: Of more positions that answer for an object, as many are drawn for the mask loss.

    Returns:
        ``class``: focal loss. ``box``: GIoU weighted by centerness. ``center``: cross entropy. ``mask``: dice.
    """
    match = assign(dense.points, dense.strides, targets, dense.logits.shape[0])
    image, place = (match >= 0).nonzero().unbind(1)
    found = match[image, place]
    count = max(1, len(found))

    wanted = torch.zeros_like(dense.logits)
    wanted[image, place, targets.labels[found]] = 1
    boxes, points = targets.boxes[found], dense.points[place]
    before, after = points - boxes[:, :2], boxes[:, 2:] - points
    center = (torch.minimum(before, after) / torch.maximum(before, after)).prod(1).sqrt()
    near, far = dense.distances[image, place].split(2, 1)
    overlap = generalized_box_iou_loss(torch.cat((points - near, points + far), 1), boxes)

    drawn = torch.arange(len(found), device=found.device)
    if len(found) > max_instances:
        drawn = torch.randperm(len(found), device=found.device)[:max_instances]
    image, place, found = image[drawn], place[drawn], found[drawn]
    factor = targets.masks.shape[2] // dense.features.shape[3]
    masks = instance_masks(dense, dense.params[image, place], image, place, head, factor)
    dice = dice_loss(masks.sigmoid(), targets.masks[found])

    return {
        "class": sigmoid_focal_loss(dense.logits, wanted, reduction="sum") / count,
        "box": (overlap * center).sum() / center.sum().clamp(min=1e-6),
        "center": F.binary_cross_entropy_with_logits(dense.centerness[match >= 0], center, reduction="sum") / count,
        "mask": dice.sum() / max(1, len(found)),
    }
