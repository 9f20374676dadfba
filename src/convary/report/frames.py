# SPDX-License-Identifier: Apache-2.0
"""Rows of small pictures with names: what a network saw, what it made of it, what it should have."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from convary.extras import require
from convary.files import write_whole
from convary.report.style import COLORS, rc

INK, MUTED = (COLORS[role][0] for role in ("ink", "muted"))


def draw_rows(
    rows: Sequence[tuple[str, Sequence[Tensor | None]]],
    path: Path,
    *,
    columns: Sequence[str] = (),
    note: str = "",
    side: float = 1.05,
) -> Path:
    """Write a table of pictures.

    Args:
        rows: Name and pictures of each row, all of one shape or square: (1, H, W) in gray or (3, H, W), uint8 or floats
            that are clipped to 0..1; None leaves a place empty.
        path: .png, .svg or .pdf; replaced in one step.
        columns: Names above the columns.
        note: Below the table.
        side: Height of a picture in inches.

    Raises:
        MissingExtraError: matplotlib is not installed.
        OSError: ``path`` cannot be written.
    """
    require("convary.report.frames", "report", "matplotlib")
    from matplotlib.figure import Figure

    count = max(len(pictures) for _, pictures in rows)
    H, W = next(p.shape[-2:] for _, pictures in rows for p in pictures if p is not None)
    buffer = io.BytesIO()
    with rc(text_as_paths=True):
        drawn = Figure(figsize=(count * side * W / H + 1.1, len(rows) * side + 0.55), layout="constrained")
        panels = drawn.subplots(len(rows), count, squeeze=False)
        for (name, pictures), line in zip(rows, panels, strict=True):
            line[0].set_ylabel(name, rotation=0, ha="right", va="center", fontsize=8.5, color=INK, labelpad=8)
            for panel, picture in zip(line, [*pictures, *[None] * count], strict=False):
                panel.set(xticks=[], yticks=[])
                panel.spines[:].set_visible(False)
                if picture is not None:
                    panel.imshow(_pixels(picture), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        for panel, name in zip(panels[0], columns, strict=False):
            panel.set_title(name, fontsize=8.5, color=MUTED)
        if note:
            drawn.supxlabel(note, fontsize=8.5, color=MUTED)
        drawn.savefig(buffer, format=path.suffix.lstrip("."), dpi=150)
    write_whole(path, buffer.getvalue())
    return path


def flow_colors(flow: Tensor, reach: float) -> Tensor:
    """Flow (2, H, W), rows first, as a picture (3, H, W): hue is the direction, white is no motion.

    Args:
        flow: Offsets in pixels.
        reach: The length that gets the full colour.
    """
    down, right = flow.detach().float().cpu()
    hue = torch.atan2(down, right) / (2 * torch.pi) % 1
    saturation = (flow.detach().float().cpu().norm(dim=0) / reach).clamp(max=1)
    wheel = (hue * 6 - torch.tensor([0.0, 2.0, 4.0]).reshape(3, 1, 1)).remainder(6)
    color = ((wheel - 3).abs() - 1).clamp(0, 1)  # red, green and blue at full saturation
    return 1 - saturation * (1 - color)


def diverging(values: Tensor, reach: float | None = None) -> Tensor:
    """Signed values (H, W) as a picture (3, H, W): blue below zero, white, red above.

    Args:
        values: Any numbers.
        reach: What gets the full colour; by default the largest magnitude.
    """
    values = values.detach().float().cpu()
    scaled = (values / (reach or values.abs().max().clamp(min=1e-12))).clamp(-1, 1)
    up, down = scaled.clamp(min=0), (-scaled).clamp(min=0)
    return torch.stack([1 - down, 1 - up - down, 1 - up])


def _pixels(picture: Tensor):
    picture = picture.detach().cpu()
    picture = picture.float() / 255 if picture.dtype == torch.uint8 else picture.float().clamp(0, 1)
    return picture[0].numpy() if len(picture) == 1 else picture.permute(1, 2, 0).numpy()
