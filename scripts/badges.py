# SPDX-License-Identifier: Apache-2.0
"""The README's badges, docs/images/badge-*.svg, from what pyproject.toml says; no service draws them.

python -m scripts.badges
"""

from __future__ import annotations

import re
from pathlib import Path

from scripts.diagram import EM, Drawing, glyph

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "docs" / "images"
SIZE, HEIGHT, PADDING = 11, 20, 7


def facts() -> dict[str, tuple[str, str]]:
    """What each badge says, by its name."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")

    def found(pattern: str) -> list[str]:
        return re.findall(pattern, text)

    pythons = sorted(found(r'"Programming Language :: Python :: (3\.\d+)"'), key=lambda version: int(version[2:]))
    return {
        "licence": ("licence", found(r'(?m)^license = "([^"]+)"')[0]),
        "python": ("Python", f"{pythons[0]} to {pythons[-1]}"),
        "torch": ("PyTorch", found(r"dependencies = .*torch>=([\d.]+)")[0] + "+"),
    }


def badge(left: str, right: str) -> str:
    """The SVG: a name on grey, what it is on blue."""
    first, second = (sum(glyph(c, False)[1] for c in words) * SIZE / EM + 2 * PADDING for words in (left, right))
    drawn = Drawing(round(first + second), HEIGHT, f"{left}: {right}", f"{left}: {right}")
    drawn.parts.clear()  # the ground
    drawn.box(0, 0, round(first + second), HEIGHT, fill="#4b5563", radius=3)
    drawn.box(first, 0, second, HEIGHT, fill="#0067a3", radius=3)
    drawn.box(first, 0, 4, HEIGHT, fill="#0067a3")
    for x, words in ((first / 2, left), (first + second / 2, right)):
        drawn.text(x, 14, words, size=SIZE, role="#fefefe")
    return drawn.svg()


def write(folder: Path = FOLDER) -> None:
    """All badges."""
    for name, words in facts().items():
        (folder / f"badge-{name}.svg").write_text(badge(*words), encoding="utf-8")


if __name__ == "__main__":
    write()
