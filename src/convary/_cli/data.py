# SPDX-License-Identifier: Apache-2.0
"""``convary data``: which data sets there are, whether they are on this machine, and how to bring one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from tyro.conf import Positional

from convary._cli.parse import parse
from convary.errors import DataError

if TYPE_CHECKING:
    from convary.data import DataSet


@dataclass(frozen=True, kw_only=True)
class Data:
    """List the data sets and whether they are on this machine; with a NAME, fetch or check that one."""

    name: Positional[str | None] = None
    """The set to fetch; leave it out for the list."""
    root: Path | None = None
    """Data root; None is $CONVARY_DATA, or a folder in the user's cache."""


def run(argv: Sequence[str]) -> int:
    """List the sets, or fetch one."""
    flags = parse(Data, argv, "convary data")
    from convary.data import NAMES, default_root, fetch

    if flags.name is None:
        _list([name for name in NAMES if ":" not in name], flags.root or default_root())
    else:
        print(_describe(fetch(flags.name, flags.root)))
    return 0


def _list(names: Sequence[str], root: Path) -> None:
    from convary.data import load

    table = Table("data set", "here", "", box=None, padding=(0, 2, 0, 0))
    for name in names:
        try:
            table.add_row(name, "[green]yes[/green]", escape(_describe(load(name, root))))
        except DataError as missing:
            table.add_row(name, "no", escape(str(missing).partition(";")[0]))
    table.add_row("folder:PATH", "", "one sub-folder of images for each class, as for ImageNet")
    console = Console(highlight=False)
    console.print(table)
    console.print(f"\nBring a missing set with: convary data NAME --root {escape(str(root))}", soft_wrap=True)


def _describe(found: DataSet) -> str:
    size = "x".join(map(str, found.shape))
    images = f"{len(found.train.labels):,} training and {len(found.test.labels):,} test images of {size}"
    return f"{found.title}: {images}, {len(found.classes)} classes; licence: {found.license}"
