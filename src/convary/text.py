# SPDX-License-Identifier: Apache-2.0
"""Tables, durations and the doubt of few images in plain text."""

from __future__ import annotations

import html
import math
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


def html_table(head: Sequence[str], body: Iterable[Sequence[str]], lines: Iterable[str] = ()) -> str:
    """A table as notebooks show it, with lines of text above.

    >>> html_table(["a"], [["<b>"]], ["one"])
    '<p>one</p><table><thead><tr><th>a</th></tr></thead><tbody><tr><td>&lt;b&gt;</td></tr></tbody></table>'
    """

    def row(cells: Sequence[str], tag: str) -> str:
        return f"<tr>{''.join(f'<{tag}>{html.escape(cell)}</{tag}>' for cell in cells)}</tr>"

    above = "".join(f"<p>{html.escape(line)}</p>" for line in lines)
    rows = "".join(row(cells, "td") for cells in body)
    return f"{above}<table><thead>{row(head, 'th')}</thead><tbody>{rows}</tbody></table>"


def without_empty(head: Sequence[str], body: Sequence[Sequence[str]]) -> tuple[list[str], list[list[str]]]:
    """Leave out the columns that have nothing, or a dash, in every line.

    >>> without_empty(["a", "b"], [["1", "-"], ["2", ""]])
    (['a'], [['1'], ['2']])
    """
    kept = [i for i in range(len(head)) if any(cells[i] not in ("", "-") for cells in body)]
    return [head[i] for i in kept], [[cells[i] for i in kept] for cells in body]


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


def standard_error(percent: float, count: int) -> float:
    """Of a share of ``count`` images, in points; after Agresti and Coull, so that 0 and 100 % of few are not certain.

    >>> [round(standard_error(percent, count), 1) for percent, count in ((90, 2000), (50, 4), (100, 4), (100, 0))]
    [0.7, 17.7, 15.3, 25.0]
    """
    near = (percent / 100 * count + 2) / (count + 4)
    return 100 * math.sqrt(near * (1 - near) / (count + 4))


FEW = 200


def of_few(percent: float, count: int) -> str:
    """What to know about a top-1 of so few images; nothing where they are enough.

    >>> of_few(80, 5)
    'Only 5 test images: one standard error of this top-1 is about 16 points, so smaller differences are chance.'
    >>> of_few(80, 2000)
    ''
    """
    if count >= FEW:
        return ""
    images, error = f"{count} test image{'s' if count != 1 else ''}", standard_error(percent, count)
    said = f"one standard error of this top-1 is about {error:.0f} points"
    return f"Only {images}: {said}, so smaller differences are chance."
