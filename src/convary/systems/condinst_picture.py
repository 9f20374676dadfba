# SPDX-License-Identifier: Apache-2.0
"""Photographs with their instances, annotated beside found."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torchvision.utils import draw_segmentation_masks

from convary.data.coco import Photo
from convary.files import write_whole
from convary.models.instances import Instances
from convary.report.style import COLORS, SERIES, rc


def draw_photos(photos: list[Photo], found: list[Instances], classes: Sequence[str], path: Path) -> Path:
    """Write a PNG: a row per photograph, on the left what is annotated, on the right what was found.

    Args:
        photos: With their objects.
        found: The same, as the network sees them.
        classes: Names.
        path: Of the PNG.
    """
    from matplotlib.figure import Figure

    with rc():
        height = sum(9.5 / 2 * photo.image.shape[1] / photo.image.shape[2] for photo in photos)
        figure = Figure(figsize=(9.5, height + 0.3), layout="constrained")
        panels = figure.subplots(len(photos), 2, squeeze=False)
        for row, photo, instances in zip(panels, photos, found, strict=True):
            own = torch.arange(len(photo.masks))
            said = [classes[int(label)] for label in photo.labels.tolist()]
            _panel(row[0], photo.image, photo.masks, photo.boxes, said, own)
            _found(row[1], photo.image, instances, classes, _nearest(instances.masks.cpu(), photo.masks))
        for panel, title in zip(panels[0], ("annotated", "found"), strict=True):
            panel.set_title(title, loc="left", fontsize=9.5, color=COLORS["ink"][0], fontweight="bold")
        _write(figure, path)
    return path


def draw_found(image: Tensor, found: Instances, classes: Sequence[str], path: Path) -> None:
    """Write a PNG of a photograph (3, H, W) uint8 with the objects that were found, a colour for each."""
    from matplotlib.figure import Figure

    with rc():
        figure = Figure(figsize=(9.5, 9.5 * image.shape[1] / image.shape[2]), layout="constrained")
        panel = figure.subplots()
        _found(panel, image, found, classes, torch.arange(len(found.masks)))
        if not len(found.masks):
            panel.set_title("nothing found that is sure enough", loc="left", fontsize=9.5, color=COLORS["ink"][0])
        _write(figure, path)


def _found(panel, image: Tensor, found: Instances, classes: Sequence[str], numbers: Tensor) -> None:
    names = [classes[int(label)] for label in found.labels.tolist()]
    words = [f"{name} {score:.2f}" for name, score in zip(names, found.scores.tolist(), strict=True)]
    _panel(panel, image, found.masks.cpu(), found.boxes.cpu(), words, numbers)


def _write(figure, path: Path) -> None:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=100)
    write_whole(path, buffer.getvalue())


def _nearest(masks: Tensor, others: Tensor) -> Tensor:
    """(N,) of masks (N, H, W) the one of ``others`` (M, H, W) that each covers best; M where it meets none."""
    one, other = masks.flatten(1).float(), others.flatten(1).float()
    common = one @ other.T
    overlap = common / (one.sum(1, keepdim=True) + other.sum(1) - common).clamp(min=1)
    return torch.cat((overlap, torch.full((len(one), 1), 1e-6)), 1).argmax(1)


def _apart(masks: Tensor) -> Tensor:
    """Masks (N, H, W) whose pixels belong to the first, the surest, that has them: two would paint a pixel black."""
    return masks & (masks.cumsum(0) == 1)


def _panel(panel, image: Tensor, masks: Tensor, boxes: Tensor, words: Sequence[str], numbers: Tensor) -> None:
    from matplotlib.patches import Rectangle

    colors: list[Any] = [COLORS[SERIES[n % len(SERIES)]][0] for n in numbers.tolist()]
    if len(masks):
        image = draw_segmentation_masks(image, _apart(masks), alpha=0.55, colors=colors)
    panel.imshow(image.permute(1, 2, 0).numpy(), aspect="equal", interpolation="antialiased")
    panel.set_axis_off()
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(1).tolist()
    for box, color, word, area in zip(boxes.tolist(), colors, words, areas, strict=True):
        x, y, x2, y2 = box
        panel.add_patch(Rectangle((x, y), x2 - x, y2 - y, fill=False, edgecolor=color, linewidth=0.9))
        if area > 0.005 * image.shape[1] * image.shape[2]:
            panel.text(
                x + 3, y + 3, word, fontsize=5.5, color="white", va="top", clip_on=True,
                bbox={"facecolor": color, "edgecolor": "none", "pad": 1.0},
            )  # fmt: skip
