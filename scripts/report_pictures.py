# SPDX-License-Identifier: Apache-2.0
"""Pictures for docs/gallery.md out of a report: docs/images/experts.webp and maps.webp. Wants a Chromium.

convary compare --model convnet_nano --where "all & ~first" --methods static odconv dyconv condconv \
      --epochs 3 --limit-train 1000 --out runs/gallery
python -m scripts.report_pictures runs/gallery
"""

from __future__ import annotations

import base64
import io
import json
import sys
from pathlib import Path

from PIL import Image
from tests.report.chromium import Chromium

FOLDER = Path(__file__).parent.parent / "docs" / "images"
PARTS = {
    "experts": '#images .routing[data-m="dyconv"] .experts',
    "maps": '#routing .routing[data-m="dyconv"] .cards',
}
WIDTH, HEIGHT, MARGIN, SCALE = 900, 12000, 12, 2  # so high that nothing waits to be scrolled to


def shoot(page: Chromium, selector: str) -> Image.Image:
    """The part of the open page that a selector finds."""
    code = f"""(() => {{ const e = document.querySelector({json.dumps(selector)});
        const inner = [...e.querySelectorAll("svg, .plain")].map(part => part.getBoundingClientRect());
        const b = e.getBoundingClientRect(), right = Math.max(...inner.map(r => r.right));
        return [b.left + scrollX, b.top + scrollY, right - b.left, b.height]; }})()"""
    x, y, width, height = page.run(code)
    clip = {"x": x - MARGIN, "y": y - MARGIN, "width": width + 2 * MARGIN, "height": height + 2 * MARGIN}
    shot = page.call("Page.captureScreenshot", clip={**clip, "scale": SCALE})
    return Image.open(io.BytesIO(base64.b64decode(shot["data"]))).convert("RGB")


def main(run: Path, folder: Path = FOLDER) -> None:
    """Write the pictures."""
    with Chromium() as page:
        page.open(run / "report.html", WIDTH, HEIGHT)
        for name, selector in PARTS.items():
            shoot(page, selector).save(folder / f"{name}.webp", quality=80, method=6)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
