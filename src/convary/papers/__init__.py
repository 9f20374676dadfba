# SPDX-License-Identifier: Apache-2.0
"""Published tables as data: each row's network, method and training, and its numbers with their source."""

from __future__ import annotations

from convary.errors import ConfigError, nearest
from convary.papers import cgc, condconv, dcd, dyconv, dynet, fdconv, kernelwarehouse, odconv, speed, weightnet
from convary.papers.ours import Ours, count
from convary.papers.row import COUNTS, Published, Row, Source, Table

_PAPERS = (condconv, dyconv, dynet, odconv, kernelwarehouse, dcd, weightnet, cgc, fdconv, speed)
TABLES: tuple[Table, ...] = tuple(table for paper in _PAPERS for table in paper.TABLES)

__all__ = ["COUNTS", "TABLES", "Ours", "Published", "Row", "Source", "Table", "count", "table"]


def table(name: str) -> Table:
    """A published table by its name.

    Raises:
        ConfigError: there is none.

    >>> table("odconv-resnet").rows[2].published.top1
    '74.19'
    """
    by_name = {table.name: table for table in TABLES}
    if name not in by_name:
        raise ConfigError(f"there is no table {name!r}{nearest(name, by_name)}; convary reproduce lists them")
    return by_name[name]
