# SPDX-License-Identifier: Apache-2.0
"""A picture file that follows the reader's light or dark setting, as the report's page does."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING

from convary.files import write_whole
from convary.report.style import COLORS

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def save(drawn: Figure, path: Path) -> None:
    """Write a figure, by the ending of the file; without one as SVG. An SVG is drawn for both settings.

    Raises:
        OSError: ``path`` cannot be written.
    """
    buffer, kind = io.BytesIO(), path.suffix.lstrip(".").lower() or "svg"
    drawn.savefig(buffer, format=kind, dpi=200, metadata={"Date": None} if kind == "svg" else None)
    content = buffer.getvalue()
    write_whole(path, themed(content.decode()).encode() if kind == "svg" else content)


def themed(svg: str) -> str:
    """An SVG drawn in the light colours, with rules that turn them into the dark ones.

    Rules leave the drawing as it is, so that a viewer without them shows the light picture.

    >>> themed('<svg><path style="fill: #1b2330"/></svg>')
    '<svg><style>@media (prefers-color-scheme:dark){[style*="fill: #1b2330"]{fill:#e6eaf0!important}}</style><path style="fill: #1b2330"/></svg>'
    """  # noqa: E501
    rules = [
        f'[style*="{part}: {light}"]{{{part}:{dark}!important}}'
        for light, dark in COLORS.values()
        for part in ("fill", "stroke")
        if f"{part}: {light}" in svg
    ]
    start = svg.index(">", svg.index("<svg")) + 1
    return f"{svg[:start]}<style>@media (prefers-color-scheme:dark){{{''.join(rules)}}}</style>{svg[start:]}"
