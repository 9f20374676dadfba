# SPDX-License-Identifier: Apache-2.0
"""The small pictures in the methods' figures: maps, coefficients, banks and kernels, each about a point."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from scripts.diagram import EXPERTS, Drawing, blend, color

from convary.report.style import COLORS

Icon = Callable[[Drawing, float, float], None]
SHARES = (0.1, 0.62, 0.06, 0.22)
PER_FILTER = ((0.7, 0.1, 0.1, 0.1), (0.1, 0.2, 0.6, 0.1), (0.15, 0.5, 0.05, 0.3))
PAIR = ((0.8, 0.2), (0.3, 0.7), (0.5, 0.5))
PARTS = tuple(tuple(0.02 + random.Random(f"{i} {j}").random() ** 3 for j in range(4)) for i in range(9))
FILTERS, TAPS = (1.0, 0.45, 0.75), (0.4, 0.7, 0.4, 0.7, 1.0, 0.7, 0.4, 0.7, 0.4)
GRAY = color("static")


def weights(drawn: Drawing, x: float, y: float) -> None:
    """A number for every weight: three filters side by side."""
    for i in range(3):
        drawn.cells(x - 21 + 15 * i, y - 6, 4.2, _filter(GRAY, f"local {i}", 3))


def maps(drawn: Drawing, x: float, y: float) -> None:
    """Three channels of a map."""
    for i in range(3):
        shift = 6 * (1 - i)
        drawn.box(x - 18 + shift, y - 12 - shift, 34, 26, fill=color("surface"), edge=color("muted"), radius=2)
    drawn.cells(x - 20, y - 13, 9, _filter(GRAY, "map", 3, 3))


def vector(drawn: Drawing, x: float, y: float) -> None:
    """A vector."""
    drawn.cells(x - 6, y - 24, 12, _filter(GRAY, "vector", 4, 1))


def shares(drawn: Drawing, x: float, y: float) -> None:
    """A bar for each expert."""
    for i, (share, fill) in enumerate(zip(SHARES, EXPERTS, strict=True)):
        drawn.box(x - 19 + 10 * i, y + 12 - 38 * share, 8, 38 * share, fill=fill)


def bars(drawn: Drawing, x: float, y: float) -> None:
    """A bar for each of three filters or channels."""
    for i, value in enumerate(FILTERS):
        drawn.box(x - 15 + 10 * i, y + 11 - 21 * value, 8, 21 * value, fill=GRAY)


def taps(drawn: Drawing, x: float, y: float) -> None:
    """A value for each of nine taps."""
    drawn.cells(x - 11, y - 11, 7.4, [[(GRAY, v) for v in TAPS[3 * i : 3 * i + 3]] for i in range(3)])


def latent(drawn: Drawing, x: float, y: float) -> None:
    """A small dynamic matrix."""
    drawn.cells(x - 13, y - 13, 8.6, _filter(COLORS["series-1"][0], "latent", 3))


def filter_shares(drawn: Drawing, x: float, y: float) -> None:
    """For each of three filters a bar for each expert."""
    _matrix(drawn, x, y, PER_FILTER)


def pairs(drawn: Drawing, x: float, y: float) -> None:
    """For each of three filters two numbers."""
    _matrix(drawn, x, y, PAIR)


def cell_shares(drawn: Drawing, x: float, y: float) -> None:
    """For each part of a kernel a share of every cell."""
    _matrix(drawn, x, y - 2, PARTS, side=(9, 5.4))


def gate_map(drawn: Drawing, x: float, y: float) -> None:
    """Nine taps for each of three rows."""
    drawn.cells(x - 20, y - 7, 4.6, _filter(GRAY, "gate", 3, 9))


def bank(drawn: Drawing, x: float, y: float) -> None:
    """A kernel of three filters for each expert."""
    _side_by_side(drawn, x, y, EXPERTS)


def pair_bank(drawn: Drawing, x: float, y: float) -> None:
    """Two numbers behind every weight."""
    _side_by_side(drawn, x, y, EXPERTS[:2])


def static(drawn: Drawing, x: float, y: float) -> None:
    """One kernel."""
    _kernel(drawn, x, y, [GRAY] * 3)


def matrices(drawn: Drawing, x: float, y: float) -> None:
    """A matrix for each expert."""
    for i, fill in enumerate(EXPERTS):
        drawn.cells(x - 58 + 30 * i, y - 17, 8.4, _filter(fill, "matrix", 4, 3))


def matrix(drawn: Drawing, x: float, y: float) -> None:
    """Their mixture."""
    drawn.cells(x - 18, y - 25, 12.5, _filter(blend(SHARES), "matrix", 4, 3))


def low_rank(drawn: Drawing, x: float, y: float) -> None:
    """A static kernel, a tall matrix and a wide one."""
    _kernel(drawn, x - 42, y, [GRAY] * 3)
    drawn.text(x - 20, y + 5, "+", size=14)
    drawn.cells(x - 4, y - 25, 8.4, _filter(EXPERTS[0], "tall", 6, 2))
    drawn.cells(x + 24, y - 8, 8.4, _filter(EXPERTS[2], "wide", 2, 4))


def warehouse(drawn: Drawing, x: float, y: float) -> None:
    """Cells on shelves."""
    drawn.box(x - 40, y - 32, 80, 64, edge=color("muted"), radius=3, dashed=True)
    for i in range(8):
        drawn.box(
            x - 34 + 18 * (i % 4), y - 24 + 28 * (i // 4), 14, 20, fill=EXPERTS[i % 4], opacity=1 - 0.45 * (i // 4)
        )


def spectrum(drawn: Drawing, x: float, y: float) -> None:
    """Frequencies by radius, in groups."""
    drawn.box(x - 32, y - 32, 64, 64, fill=EXPERTS[3])
    for radius, fill in ((30, EXPERTS[2]), (20, EXPERTS[1]), (10, EXPERTS[0])):
        drawn.circle(x, y, radius, fill=fill)


def mixed(drawn: Drawing, x: float, y: float) -> None:
    """The mixture of the bank: all filters alike."""
    _kernel(drawn, x, y, [blend(SHARES)] * 3)


def filters_mixed(drawn: Drawing, x: float, y: float) -> None:
    """A mixture for each filter."""
    _kernel(drawn, x, y, [blend(row) for row in PER_FILTER])


def pairs_mixed(drawn: Drawing, x: float, y: float) -> None:
    """A mixture of two for each filter."""
    _kernel(drawn, x, y, [blend(row) for row in PAIR])


def scaled(drawn: Drawing, x: float, y: float) -> None:
    """The mixture, with filters and taps of different strength."""
    for i, strength in enumerate(FILTERS):
        rows = [[(blend(SHARES), strength * v) for v in TAPS[3 * j : 3 * j + 3]] for j in range(3)]
        drawn.cells(x - 10, y - 33 + 22.5 * i, 6.9, rows)


def gated(drawn: Drawing, x: float, y: float) -> None:
    """The static kernel, each weight gated."""
    _kernel(drawn, x, y, [EXPERTS[0]] * 3)


def residual(drawn: Drawing, x: float, y: float) -> None:
    """The static kernel with something added."""
    _kernel(drawn, x, y, [blend((0.5, 0.2, 0.3)), GRAY, blend((0.2, 0.3, 0.5))])


def assembled(drawn: Drawing, x: float, y: float) -> None:
    """Nine parts, a mixture each."""
    drawn.cells(x - 27, y - 27, 18, [[(blend(PARTS[3 * i + j]), 1.0) for j in range(3)] for i in range(3)])


def positions(drawn: Drawing, x: float, y: float) -> None:
    """A kernel at each of nine positions."""
    for i in range(9):
        fill = blend(PARTS[i])
        drawn.cells(x - 28 + 20 * (i % 3), y - 28 + 20 * (i // 3), 5.4, _filter(fill, f"at {i}", 3))


WIDE = (assembled, positions, matrix)  # kernels that reach further to the sides than to a filter's edge


def _kernel(drawn: Drawing, x: float, y: float, fills: Sequence[str]) -> None:
    """Three filters, one below the other."""
    for i, fill in enumerate(fills):
        drawn.cells(x - 10, y - 33 + 22.5 * i, 6.9, _filter(fill, f"filter {i}", 3))


def _side_by_side(drawn: Drawing, x: float, y: float, fills: Sequence[str]) -> None:
    for i, fill in enumerate(fills):
        _kernel(drawn, x + 29 * (i - (len(fills) - 1) / 2), y, [fill] * 3)


def _matrix(
    drawn: Drawing, x: float, y: float, rows: Sequence[Sequence[float]], side: tuple[float, float] = (13, 13)
) -> None:
    """Rows of shares: the expert's colour, as strong as the share."""
    wide, tall = side
    left, top = x - wide * len(rows[0]) / 2, y - tall * len(rows) / 2
    for i, row in enumerate(rows):
        for j, share in enumerate(row):
            strength = min(1.0, 0.12 + share / max(row))
            drawn.box(left + j * wide, top + i * tall, wide - 1, tall - 1, fill=EXPERTS[j], opacity=strength)


def _filter(fill: str, seed: str, rows: int, columns: int = 3) -> list[list[tuple[str, float]]]:
    """Weights of one filter, as strengths of a colour; the same seed gives the same weights."""
    draw = random.Random(seed)
    return [[(fill, 0.4 + 0.6 * draw.random()) for _ in range(columns)] for _ in range(rows)]
