# SPDX-License-Identifier: Apache-2.0
"""``convary data``: which data sets there are, whether they are on this machine, and how to bring one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from convary._cli.console import plain_console, stages
from convary.data.cards import CARDS, Card, default_root

FEW = 100  # test images


def run(argv: Sequence[str]) -> int:
    """List the sets, or fetch one."""
    if not argv:  # a parser takes longer than the list
        _list(default_root())
        return 0
    from convary._cli.data_flags import Data
    from convary._cli.parse import parse

    flags = parse(Data, argv, "convary data")
    if flags.name is None:
        _list(flags.root or default_root())
        return 0
    with stages() as tell:
        tell(f"looking for {flags.name}, or fetching it")
        from convary.data import fetch

        found = fetch(flags.name, flags.root)
    sizes = len(found.train.labels), len(found.test.labels), found.shape, len(found.classes)
    print(Card(found.title, *sizes, found.license))
    tested = len(found.test.labels)
    if flags.name.startswith("folder:") and tested < FEW:
        advice = "Folders train/CLASS and test/CLASS in place of CLASS say which they are."
        parts = (Path(flags.name.partition(":")[2]) / part for part in ("test", "val"))
        print(
            f"One of {tested} test images is {100 / tested:.3g} points of accuracy"
            + ("." if any(part.is_dir() for part in parts) else f": keep more for testing. {advice}")
        )
    return 0


def _list(root: Path) -> None:
    from rich.markup import escape
    from rich.table import Table

    table = Table("data set", "here", "", box=None, padding=(0, 2, 0, 0))
    for name, card in CARDS.items():
        table.add_row(name, "[green]yes[/green]" if card.here(root) else "no", escape(str(card)))
    table.add_row("folder:PATH", "", "one sub-folder of images for each class, as for ImageNet")
    table.add_row(
        "hf:NAME", "", "what Hugging Face datasets finds: a folder that it saved or can read, or a set's name"
    )
    console = plain_console()
    console.print(table)
    console.print(f"\nBring a missing set with: convary data NAME --root {escape(str(root))}", soft_wrap=True)
