# SPDX-License-Identifier: Apache-2.0
"""Tables and durations in plain text."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def columns(lines: Iterable[Sequence[str]]) -> list[str]:
    """Lines whose cells stand below each other; the last cell is as long as it likes.

    >>> columns([("layer", "K", ""), ("stem", "16", "frozen")])
    ['layer  K', 'stem   16  frozen']
    """
    lines = list(lines)
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    padded = ([cell.ljust(width) for cell, width in zip(line, widths, strict=True)] for line in lines)
    return ["  ".join(cells).rstrip() for cells in padded]


def spell(seconds: float) -> str:
    """A duration in its two largest units.

    >>> [spell(value) for value in (8.3, 75, 7260)]
    ['8.3 s', '1 min 15 s', '2 h 1 min']
    """
    if seconds < 59.5:
        return f"{seconds:.1f} s" if seconds < 9.95 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"
