# SPDX-License-Identifier: Apache-2.0
"""Two networks with the same seeds: the gap seed by seed, and what it is known to."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Any

# Student's t at 97.5 % for 1, 2, ... degrees of freedom.
_T = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131,
    2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)  # fmt: skip


def student(freedom: int) -> float:
    """Student's t at 97.5 %.

    >>> student(4), round(student(100), 3)
    (2.776, 1.984)
    """
    if freedom <= len(_T):
        return _T[freedom - 1]
    z = 1.959964  # the first terms of its expansion about the normal distribution; to 1e-4 from 31 on
    return z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)


def paired(tops: Sequence[float], base: Sequence[float]) -> dict[str, Any] | None:
    """The gap to the base network over paired seeds; None for a single seed, which knows no spread.

    Args:
        tops: Accuracies, one for each seed.
        base: Those of the network that is compared with, for the same seeds.

    Returns:
        ``gaps`` by seed, their ``mean`` and sample standard deviation ``std``, the 95 % interval of the mean from
        ``low`` to ``high`` (Student's t: gaps are taken as normally distributed), and ``wins``, the seeds above zero.
    """
    gaps = [a - b for a, b in zip(tops, base, strict=True)]
    if len(gaps) < 2:
        return None
    mean, std = statistics.fmean(gaps), statistics.stdev(gaps)
    half = student(len(gaps) - 1) * std / math.sqrt(len(gaps))
    wins = sum(gap > 0 for gap in gaps)
    return {"gaps": gaps, "mean": mean, "std": std, "low": mean - half, "high": mean + half, "wins": wins}
