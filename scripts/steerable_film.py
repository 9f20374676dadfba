# SPDX-License-Identifier: Apache-2.0
"""Film what steerable filters do: docs/images/steerable.webp, from a network that ``make dfn-steerable`` trained.

    make dfn-steerable
    python scripts/steerable_film.py

The direction goes once round. From left to right: a photograph that was not trained on, with the direction as an arrow;
the filter that the network makes of the angle, and the true one; what both answer. There are no words in it, so that
it stands on a light and on a dark page.
"""

from __future__ import annotations

import math
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from convary.report.frames import diverging
from convary.systems.dfn_steerable import TAPS, response, steered
from convary.systems.trained import restored

ROOT = Path(__file__).parent.parent
FILM = ROOT / "docs" / "images" / "steerable.webp"
FRAMES, MILLISECONDS = 32, 90
SIDE, GAP = 176, 12  # of a tile, between tiles; pixels
PHOTOGRAPH, TOP, LEFT, CROP = 1, 200, 3, 118  # bowls and trays, which have edges in all directions
ORANGE, WHITE, GRAY = (213, 94, 0, 255), (255, 255, 255, 255), (140, 146, 156, 255)


def frames(folder: Path) -> list[Image.Image]:
    """One per direction.

    Args:
        folder: What ``convary train dfn-steerable`` trained into.
    """
    system, model, _ = restored(folder)
    photograph, crop = system.test[PHOTOGRAPH], (slice(TOP, TOP + CROP), slice(LEFT, LEFT + CROP))
    angles = torch.arange(FRAMES).reshape(-1, 1, 1, 1) * 2 * math.pi / FRAMES
    maps = photograph.expand(FRAMES, 1, *photograph.shape)
    with torch.no_grad():
        learned, answers = model.filters(angles)[0].reshape(-1, TAPS, TAPS), model(maps, angles)[:, 0, crop[0], crop[1]]
    true, truth = steered(angles)[:, 0], response(maps, angles)[:, 0, crop[0], crop[1]]
    reach = truth.abs().max().item() / 2
    gray = photograph[crop]
    gray = (gray - gray.min()) / (gray.max() - gray.min())
    return [
        strip(
            [
                arrow(tile(gray.expand(3, -1, -1), Image.Resampling.BICUBIC), float(angles[i])),
                *(tile(diverging(kernel[i]), Image.Resampling.NEAREST) for kernel in (learned, true)),
                *(tile(diverging(y[i], reach), Image.Resampling.BICUBIC) for y in (answers, truth)),
            ]
        )
        for i in range(FRAMES)
    ]


def tile(picture: Tensor, how: Image.Resampling) -> Image.Image:
    """A picture (3, H, W) in 0..1, enlarged."""
    pixels = (picture.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).contiguous().numpy()
    drawn = Image.fromarray(np.ascontiguousarray(pixels)).resize((SIDE, SIDE), how).convert("RGBA")
    ImageDraw.Draw(drawn).rectangle([0, 0, SIDE - 1, SIDE - 1], outline=GRAY)
    return drawn


def arrow(picture: Image.Image, angle: float) -> Image.Image:
    """The picture with an arrow from its middle; an angle grows from right to down, as rows do."""
    times = 4  # drawn larger, so that edges come out smooth
    drawn = Image.new("RGBA", (SIDE * times, SIDE * times))
    pen, middle, length = ImageDraw.Draw(drawn), SIDE * times / 2, SIDE * times * 0.36

    def at(reach: float, turn: float = 0.0) -> tuple[float, float]:
        return middle + reach * math.cos(angle + turn), middle + reach * math.sin(angle + turn)

    for color, width in ((WHITE, 10), (ORANGE, 5)):
        pen.line([at(-length), at(length * 0.8)], fill=color, width=width * times)
        more = (width - 5) * times / 2
        pen.polygon(
            [at(length + 2 * more), at(length * 0.72 - more, 0.26), at(length * 0.72 - more, -0.26)], fill=color
        )
    return Image.alpha_composite(picture, drawn.resize((SIDE, SIDE), Image.Resampling.LANCZOS))


def strip(tiles: list[Image.Image]) -> Image.Image:
    """Tiles in a row on nothing."""
    whole = Image.new("RGBA", (len(tiles) * (SIDE + GAP) - GAP, SIDE))
    for i, picture in enumerate(tiles):
        whole.paste(picture, (i * (SIDE + GAP), 0))
    return whole


def main(folder: Path, target: Path) -> None:
    """Write the film."""
    first, *rest = frames(folder)
    first.save(
        target,
        save_all=True,
        append_images=rest,
        duration=MILLISECONDS,
        loop=0,
        quality=38,
        alpha_quality=100,
        method=4,
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "runs" / "dfn-steerable", FILM)
