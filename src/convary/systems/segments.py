# SPDX-License-Identifier: Apache-2.0
"""A picture of segmentations: photograph, truth, prediction side by side, and what the colours mean."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from convary.data.segmentation import IGNORE
from convary.report.style import COLORS, rc

WIDTH = 9.0  # inches
OPACITY = 0.75


def draw_segments(
    rows: Sequence[tuple[Tensor, Tensor | None, Tensor]], classes: Sequence[str], path: Path, *, name: str
) -> Path:
    """Write a PNG.

    Args:
        rows: Photographs (3, H, W) uint8, with true and predicted class ids (H, W); the truth of all, or of none.
        classes: Names by id.
        path: Where to.
        name: Who predicts.

    Returns:
        ``path``.
    """
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    palette = colors(len(classes))
    ink = COLORS["ink"][0]
    titles = ("photograph", name) if rows[0][1] is None else ("photograph", "truth", name)
    height = sum(WIDTH / len(titles) * image.shape[1] / image.shape[2] for image, _, _ in rows) + 0.7
    with rc():
        drawn = Figure(figsize=(WIDTH, height), layout="constrained")
        panels = drawn.subplots(len(rows), len(titles), squeeze=False)
        for line, (image, *maps) in zip(panels, rows, strict=True):
            photo = image.permute(1, 2, 0)
            pictures = (photo, *(over(photo, ids, palette) for ids in maps if ids is not None))
            for panel, picture in zip(line, pictures, strict=True):
                panel.imshow(picture.numpy(), interpolation="antialiased")
                panel.set_axis_off()
        for panel, title in zip(panels[0], titles, strict=True):
            panel.set_title(title, loc="left", fontsize=9.5, color=ink, fontweight="bold")
        seen = {int(i) for _, *maps in rows for ids in maps if ids is not None for i in ids.unique()} - {IGNORE}
        key = [Patch(facecolor=tuple((palette[i] / 255).tolist()), label=classes[i]) for i in sorted(seen)]
        drawn.legend(handles=key, loc="outside lower left", ncols=7, frameon=False, fontsize=8.5, labelcolor=ink)
        drawn.savefig(path, dpi=110)
    return path


def over(photo: Tensor, ids: Tensor, palette: Tensor) -> Tensor:
    """The photograph (H, W, 3) uint8 in grey under the colours of its classes; what does not count stays grey."""
    grey = photo.float().mean(2, keepdim=True).expand(-1, -1, 3)
    known = (ids != IGNORE).unsqueeze(2)
    mixed = OPACITY * palette[ids.clamp(max=len(palette) - 1)] + (1 - OPACITY) * grey
    return torch.where(known, mixed, grey).to(torch.uint8)


def colors(count: int) -> Tensor:
    """(count, 3) float, Pascal VOC's colours: the bits of an id, lowest first, go to red, green and blue in turn."""
    ids = torch.arange(count).unsqueeze(1)
    shift = torch.arange(3).unsqueeze(0)
    found = torch.zeros(count, 3, dtype=torch.int64)
    for bit in range(8):
        found |= ((ids >> (3 * bit + shift)) & 1) << (7 - bit)
    return found.float()
