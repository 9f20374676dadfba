# SPDX-License-Identifier: Apache-2.0
"""Tables in plain text."""

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
