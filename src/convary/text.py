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


def milliseconds(value: float) -> str:
    """A time of so many milliseconds, to three digits; below one in microseconds.

    >>> [milliseconds(value) for value in (628.4, 12.34, 0.9996, 0.5123, 0.0042)]
    ['628 ms', '12.3 ms', '1.0 ms', '512 µs', '4.2 µs']
    """
    value, unit = (value, "ms") if value >= 0.9995 else (1000 * value, "µs")
    return f"{value:.{0 if value >= 99.95 else 1}f} {unit}"


def standard_error(percent: float, count: int) -> float:
    """Of a share of ``count`` images, in points; the share as Agresti and Coull's, so that 0 and 100 % aren't certain.

    >>> [round(standard_error(percent, count), 1) for percent, count in ((90, 2000), (50, 2), (100, 4), (100, 0))]
    [0.7, 35.4, 21.7, 50.0]
    """
    near = (percent / 100 * count + 2) / (count + 4)
    return 100 * math.sqrt(near * (1 - near) / max(count, 1))


FEW = 200  # test images below which a top-1 needs a word of doubt
TOO_FEW = 30  # below which no difference can be shown


def counted(count: int) -> str:
    """So many, in words.

    >>> counted(1)
    '1 test image'
    """
    return f"{count:,} test image{'s' if count != 1 else ''}"


def points_of_one(count: int) -> str:
    """What one of ``count`` images is of a top-1.

    >>> points_of_one(2), points_of_one(80)
    ('one image is 50 points', 'one image is 1.2 points')
    """
    return f"one image is {100 / count:.2g} points" if count > 1 else "it decides alone"


def of_few(percent: float, count: int) -> str:
    """What to know about a top-1 of so few images; nothing where they are enough.

    >>> of_few(80, 5)
    'Only 5 test images: one image is 20 points, so nothing can be concluded.'
    >>> of_few(80, 100)
    'Only 100 test images: one standard error of this top-1 is about 4 points, of a difference of two about 6.'
    >>> of_few(80, 2000)
    ''
    """
    if count >= FEW:
        return ""
    if count < TOO_FEW:
        return f"Only {counted(count)}: {points_of_one(count)}, so nothing can be concluded."
    error = standard_error(percent, count)
    said = f"one standard error of this top-1 is about {error:.0f} points, of a difference of two about"
    return f"Only {counted(count)}: {said} {math.sqrt(2) * error:.0f}."


FEW_STEPS = 100  # of a training, below which networks hardly leave their initial weights
FEW_FINE = 4  # of one from trained weights, whose new classifier may be right after three


def of_few_steps(steps: int, least: int = FEW_STEPS) -> str:
    """What to know about a training of so few steps; nothing where they are enough.

    >>> of_few_steps(2)
    'Only 2 training steps: little or nothing will be learnt; use more --epochs or a smaller --batch-size.'
    >>> of_few_steps(100), of_few_steps(4, FEW_FINE)
    ('', '')
    """
    if steps >= least:
        return ""
    many = f"{steps} training step{'s' if steps != 1 else ''}"
    return f"Only {many}: little or nothing will be learnt; use more --epochs or a smaller --batch-size."


def of_crowd(load: float, cores: int, threads: int) -> str:
    """What to know about several threads beside other programs; nothing where there is room.

    Args:
        load: Processes that wanted to run in the last minute.
        cores: Of the machine.
        threads: That one operation is spread over.

    >>> of_crowd(8.6, 2, 2)
    '8.6 processes want these 2 cores, and threads that wait ... --threads 1 may be several times as fast (Ctrl-C, ...'
    >>> of_crowd(1.5, 2, 2), of_crowd(8.6, 2, 1)
    ('', '')
    """
    if threads == 1 or load <= cores + 0.5:
        return ""
    return (
        f"{load:.1f} processes want these {cores} cores, and threads that wait for each other lose most: --threads 1 "
        "may be several times as fast (Ctrl-C, then the same command with it: that goes on where this was)."
    )
