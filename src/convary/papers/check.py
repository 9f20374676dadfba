# SPDX-License-Identifier: Apache-2.0
"""Ours against what is published: exactly, to the digits that are printed, or by how much not."""

from __future__ import annotations

from convary.papers.ours import Ours
from convary.papers.row import COUNTS, Row

EXACT, PRINTED, NOTHING = "exact", "as printed", ""
EXACT_ALONE = "exact; printed otherwise"
_UNITS = {"M": 1e6, "G": 1e9}


def params_check(row: Row, ours: Ours | None) -> str:
    """How our parameters agree: with the authors' own network where it was counted, else with the printed number.

    Returns:
        ``"exact"``, with a word where what is printed does not round to it; ``"as printed"``; ``"differs by ..."``; or
        nothing where there is nothing to compare.
    """
    if ours is None:
        return NOTHING
    if row.count is not None:
        difference = ours.params - COUNTS[row.count]
        if difference:
            return f"differs by {difference:+,}"
        return EXACT if _printed(row, ours) in (PRINTED, NOTHING) else EXACT_ALONE
    return _printed(row, ours)


def _printed(row: Row, ours: Ours) -> str:
    if row.published.added:
        return against(ours.added, row.published.added)
    return against(ours.params, row.published.params)


def madds_check(row: Row, ours: Ours | None) -> str:
    """How our multiply-adds of a static network agree with the printed number; nothing for dynamic ones.

    What papers count of making kernels and of routing differs from paper to paper, and none says it.
    """
    if ours is None or not row.is_static:
        return NOTHING
    return against(ours.convolution, row.published.madds)


def against(number: int, printed: str) -> str:
    """Whether a number rounds to what is printed.

    >>> against(11_689_512, "11.69M"), against(300_774_272, "300M"), against(1, "")
    ('as printed', 'differs by +0.8M', '')
    """
    if not printed:
        return NOTHING
    digits, unit = printed[:-1], printed[-1]
    places = len(digits.partition(".")[2])
    if f"{number / _UNITS[unit]:.{places}f}" == digits:
        return PRINTED
    difference = number / _UNITS[unit] - float(digits)
    return f"differs by {difference:+.{places + 1}f}{unit}"
